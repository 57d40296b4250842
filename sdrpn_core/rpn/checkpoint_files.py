"""The files of an RPN checkpoint by name, and what is said of ones that cannot be used."""

import json
from typing import Any

from data_contracts.errors import SdrpnError

WEIGHTS, CONFIG, CARD, METRICS = "rpn.safetensors", "config.json", "README.md", "metrics.jsonl"


class CheckpointError(SdrpnError):
    """An RPN checkpoint cannot be read or does not fit the model."""


def metrics_to_jsonl(metrics: tuple[dict[str, Any], ...]) -> bytes:
    """One line per entry."""
    return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in metrics).encode()
