"""Record the stages' code: ``python -m tests.architecture.record_stage_versions``.

Changed code under an unchanged version is recorded only with ``--same-output``, which says that
artifacts made before would come out the same.
"""

import argparse
import json

from tests.architecture.stage_code import RECORD, STAGES, current, recorded


def main() -> None:
    """Write ``stage_versions.json``, or say what is missing for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--same-output", action="store_true", help="changed code gives the same artifacts"
    )
    same_output = parser.parse_args().same_output
    found, known = current(), recorded() if RECORD.exists() else {}
    silent = [
        name
        for name, stage in found.items()
        if name in known
        and stage["digest"] != known[name]["digest"]
        and stage["version"] == known[name]["version"]
    ]
    if silent and not same_output:
        where = "; ".join(f"{name}: {STAGES[name].constant}" for name in silent)
        parser.error(f"raise the version ({where}) or give --same-output")
    RECORD.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    changed = [name for name in found if found[name] != known.get(name)]
    print(f"recorded: {', '.join(changed) or 'nothing had changed'}")


if __name__ == "__main__":
    main()
