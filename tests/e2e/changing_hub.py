"""Two runs on an unpinned model of a hub whose weights change in between.

Run as ``python -m tests.e2e.changing_hub FOLDER``; the library reads the hub's address when it is
imported. Prints the attention artifact of each run, and whether a plan calls attention done before
and after it.
"""

import os
import sys
from pathlib import Path

import yaml

from tests.hub_server import COMMIT, model_hub

LATER = COMMIT[::-1]
MODEL = "lab/tiny"


def main(folder: Path) -> None:
    """Write a tiny pipeline into the folder and extract attention twice."""
    hub: dict[str, Path] = {}
    with model_hub(hub, commit=lambda: COMMIT if hub[MODEL].name == "model" else LATER) as endpoint:
        os.environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": f"{folder}/cache"}
        os.environ |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        from data_contracts.enums import Stage
        from data_contracts.runtime import RuntimeConfig
        from flows.dry_run import plan_run
        from flows.execution import LocalExecution
        from flows.wiring import Pipeline
        from tests.pipelines import write_tiny_pipeline
        from tests.tiny_models import tiny_llava

        config = write_tiny_pipeline(folder, num_images=4)
        profile = tiny_llava(folder / "later", seed=5).model_copy(update={"model_id": MODEL})
        Path(config.model.profile).write_text(yaml.safe_dump(profile.model_dump(mode="json")))
        runtime = RuntimeConfig(store=f"{folder}/store", device="cpu")

        def is_done() -> bool:
            stages = plan_run(config, runtime).stages
            return next(s.is_done for s in stages if s.stage is Stage.EXTRACT_ATTENTION)

        for model in ("model", "later"):
            hub[MODEL] = folder / model
            before = is_done()
            made = Pipeline(config, LocalExecution(runtime)).attention(config.sources[0])
            print(made, before, is_done())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
