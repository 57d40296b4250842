"""A profile as a YAML file that people read and edit."""

import textwrap
from typing import Any

import yaml

from data_contracts.profiles import ModelProfile, plain_regions


class _ProfileDumper(yaml.SafeDumper):
    """Lists on one line, text with line breaks quoted on one line."""


_ProfileDumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)
_ProfileDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if "\n" in text else None
    ),
)


def profile_yaml(profile: ModelProfile, comment: str = "") -> str:
    """YAML text that ``load_profile`` reads back as an equal profile.

    Args:
        profile: any profile.
        comment: lines to put on top.
    """
    plain = profile.model_dump(mode="json", exclude_none=True)
    plain["labels"]["sink_threshold"] = profile.labels.sink_threshold
    plain["training"] = profile.training.model_dump(mode="json")
    plain["regions"] = profile.regions.beyond(plain_regions(profile.images))
    plain["heads"] = _restore_integer_keys(plain["heads"])
    text = yaml.dump(plain, Dumper=_ProfileDumper, sort_keys=False, width=96)
    lines = textwrap.wrap(comment, 96, initial_indent="# ", subsequent_indent="# ")
    return "\n".join([*lines, text])


def _restore_integer_keys(value: Any) -> Any:
    """JSON has text keys only; layers read better as numbers."""
    if isinstance(value, list):
        return [_restore_integer_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    restored = {key: _restore_integer_keys(item) for key, item in value.items()}
    if restored and all(key.isdigit() for key in restored):
        return {int(key): item for key, item in restored.items()}
    return restored
