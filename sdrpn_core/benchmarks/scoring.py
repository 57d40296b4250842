"""Registry of scoring rules: benchmark name -> rule."""

from collections.abc import Callable, Mapping
from typing import Any

from data_contracts.errors import SdrpnError
from sdrpn_core.benchmarks.exact_match import exact_match

ScoringRule = Callable[[str, Mapping[str, Any], str], float]
"""(prediction, document, mode) -> score in [0, 1]."""

_RULES: dict[str, ScoringRule] = {"scenes": exact_match}


class UnknownBenchmark(SdrpnError, ValueError):
    """No scoring rule is known for this name."""


def known_benchmarks() -> tuple[str, ...]:
    """Names that ``score`` takes."""
    return tuple(_RULES)


def score(
    benchmark: str, prediction: str, document: Mapping[str, Any], mode: str = "published"
) -> float:
    """Score one answer.

    Args:
        benchmark: name of the benchmark.
        prediction: the model's answer.
        document: the benchmark's row; scenes need its ``answers``.
        mode: variant of the rule; ``published`` is what the benchmark's published numbers use.

    Returns:
        Score in [0, 1].

    Raises:
        UnknownBenchmark: if there is no rule of that name.
    """
    rule = _RULES.get(benchmark)
    if rule is None:
        raise UnknownBenchmark(
            f"no scoring rule for benchmark {benchmark!r}; choose from {', '.join(_RULES)}"
        )
    return rule(prediction, document, mode)
