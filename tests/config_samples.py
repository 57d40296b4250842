"""A configuration that holds the least, and files of such."""

from pathlib import Path

import yaml

MINIMAL = {"name": "mine", "sources": [{"type": "scenes", "name": "s", "num_images": 4}]}


def write(folder: Path, data: object) -> Path:
    """A configuration's file, of data or of text as it stands."""
    path = folder / "config.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path
