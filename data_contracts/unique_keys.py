"""YAML and JSON as plain data, in which no key is given twice.

The libraries' own readers let the last one count, and what was meant to count is gone without a
word.
"""

import json
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_SHOWN = 100
_TOO_DEEP = "it is nested too deeply"


class RepeatedKey(ValueError):
    """A section gives a key twice; the message names the key, the place and the remedy."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A section as it is written: what ``<<`` brings is to give way to the section's keys."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise RepeatedKey(
                    f"line {line}: key {key.value!r} is given twice, first in line {lines[name]}; "
                    "keep one of them"
                )
            lines[name] = line
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """A value that can be written to a file again."""
        node = super().compose_scalar_node(anchor)
        _require_unicode(node.value)
        return node


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        RepeatedKey: if a section gives a key twice.
        yaml.YAMLError: if it is not YAML.
        ValueError: if a scalar is not what it looks like, such as the thirteenth month, or it is
            nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a value is not what its tag (!!...) says: {error}") from error


def parse_json(text: str) -> Any:
    """The value of a JSON document.

    Raises:
        RepeatedKey: if an object gives a key twice.
        ValueError: if it is not JSON, or is nested too deeply.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        _require_unicode(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return value


def _require_unicode(text: str) -> None:
    """Refuse escapes (\\ud800) that spell halves of characters, which no file can hold.

    Raises:
        UnicodeEncodeError: which is a ``ValueError``.
    """
    text.encode()


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for key, value in pairs:
        if key in given:
            # The parser does not tell the line, and values may be secret.
            keys = shorten(", ".join(name for name, _ in pairs), _SHOWN)
            raise RepeatedKey(
                f"key {key!r} is given twice, in the section of {keys}; keep one of them"
            )
        given[key] = value
    return given
