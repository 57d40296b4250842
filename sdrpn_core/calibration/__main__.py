"""Calibrate a model: ``python -m sdrpn_core.calibration --model reference --out DIR``."""

import argparse
import sys
from pathlib import Path

import torch

from data_contracts.calibration import CalibrationSettings
from data_contracts.configs import load_settings
from data_contracts.errors import SdrpnError
from sdrpn_core.calibration import CalibrationResult, calibrate, draft_profile, scene_examples
from sdrpn_core.calibration.profile_file import profile_yaml
from sdrpn_core.models.loading import load_adapter

COMMENT = (
    "Found by calibration on generated scenes, see `source`; run it again rather than editing "
    "heads, sinks or thresholds by hand."
)


def main() -> None:
    """Parse arguments, calibrate, write ``profile.yaml``, ``evidence.json`` and ``heads.svg``."""
    arguments = _parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = CalibrationSettings()
    if arguments.settings is not None:
        settings = load_settings(CalibrationSettings, arguments.settings)
    if arguments.scenes is not None:
        settings = settings.model_copy(update={"num_scenes": arguments.scenes})
    try:
        result = _run(arguments, settings)
    except SdrpnError as error:
        sys.exit(f"error: {error}")
    write_result(result, arguments.out)
    print(f"wrote {arguments.out / 'profile.yaml'}, evidence.json and heads.svg")


def _run(arguments: argparse.Namespace, settings: CalibrationSettings) -> CalibrationResult:
    draft = draft_profile(
        arguments.model,
        name=arguments.name,
        family=arguments.family,
        prompt=arguments.prompt,
        revision=arguments.revision,
    )
    adapter = load_adapter(draft, device=arguments.device, dtype=arguments.dtype)
    return calibrate(
        adapter,
        list(scene_examples(settings)),
        settings,
        batch_size=arguments.batch_size,
        source=(
            f"calibration of {arguments.model}: {settings.num_scenes} generated scenes from seed "
            f"{settings.seed}, up to {settings.questions_per_scene} questions each"
        ),
        report=lambda line: print(line, flush=True),
    )


def write_result(result: CalibrationResult, out: Path) -> None:
    """Write profile, evidence and heat map into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    profile = profile_yaml(result.profile, COMMENT)
    (out / "profile.yaml").write_text(profile, encoding="utf-8")
    evidence = result.evidence.model_dump_json(indent=1) + "\n"
    (out / "evidence.json").write_text(evidence, encoding="utf-8")
    (out / "heads.svg").write_text(result.heat_map(), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sdrpn_core.calibration")
    parser.add_argument("--model", required=True, help="hub id, directory or 'reference'")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--settings", type=Path, help="YAML file of CalibrationSettings")
    parser.add_argument("--scenes", type=int, help="number of scenes, instead of the settings'")
    parser.add_argument("--name", help="name of the profile")
    parser.add_argument("--family", help="adapter family, if the model's type does not say")
    parser.add_argument("--prompt", help="with {images} and {question}")
    parser.add_argument("--revision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
