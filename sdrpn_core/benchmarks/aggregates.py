"""A benchmark's figures from the answers to all its documents, named as lmms-eval names them.

All figures are in [0, 1] (lmms-eval gives V*'s in per cent). lmms-eval sums OCRBench up in a
dictionary of the module that is never emptied, so that two runs in one process add up; not here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_contracts.enums import ScoringMode
from sdrpn_core.benchmarks.document import plain_field, text_field
from sdrpn_core.benchmarks.scoring import score, scoring_mode
from sdrpn_core.benchmarks.yes_no import given_answer, true_answer

NUM_OCRBENCH = 1000
"""Documents of OCRBench: ``published`` divides by it even if fewer were answered."""


@dataclass(frozen=True)
class Answered:
    """A document and the answer to it."""

    prediction: str
    document: Mapping[str, Any]
    """The benchmark's row on the hub."""
    score: float


Figures = dict[str, float]
Aggregation = Callable[[Sequence[Answered], ScoringMode], Figures]


def aggregate(
    benchmark: str,
    answers: Sequence[tuple[str, Mapping[str, Any]]],
    mode: str = "published",
) -> Figures:
    """Score all answers to a benchmark.

    Args:
        benchmark: name of the benchmark.
        answers: (prediction, the benchmark's row on the hub), at least one.
        mode: as of ``score``.

    Returns:
        Figure by name, the overall ones first, then those by category.

    Raises:
        ValueError: if there are no answers.
        SdrpnError: as ``score``.
    """
    if not answers:
        raise ValueError(f"no answers to {benchmark} to aggregate")
    scored = [Answered(text, row, score(benchmark, text, row, mode)) for text, row in answers]
    return _AGGREGATIONS[benchmark](scored, scoring_mode(mode))


def _mean(answers: Sequence[Answered]) -> float:
    return sum(answer.score for answer in answers) / len(answers)


def _groups(answers: Sequence[Answered], column: str) -> dict[str, list[Answered]]:
    groups: dict[str, list[Answered]] = {}
    for answer in answers:
        groups.setdefault(text_field(answer.document, column), []).append(answer)
    return dict(sorted(groups.items()))


def _mean_named(name: str) -> Aggregation:
    return lambda answers, mode: {name: _mean(answers)}


def _chartqa(answers: Sequence[Answered], mode: ScoringMode) -> Figures:
    human = [answer for answer in answers if answer.document.get("type") == "human_test"]
    augmented = [answer for answer in answers if answer.document.get("type") != "human_test"]
    named = {"relaxed_human_split": human, "relaxed_augmented_split": augmented}
    return {
        "relaxed_overall": _mean(answers),
        **{name: _mean(group) for name, group in named.items() if group},
    }


def _ocrbench(answers: Sequence[Answered], mode: ScoringMode) -> Figures:
    total = sum(answer.score for answer in answers)
    divisor = NUM_OCRBENCH if mode is ScoringMode.PUBLISHED else len(answers)
    groups = _groups(answers, "question_type")
    return {
        "ocrbench_accuracy": total / divisor,
        **{f"ocrbench_accuracy/{name}": _mean(group) for name, group in groups.items()},
    }


def _vstar(answers: Sequence[Answered], mode: ScoringMode) -> Figures:
    groups = _groups(answers, "category")
    return {
        "vstar_overall_acc": _mean(answers),
        **{f"vstar_{name}_acc": _mean(group) for name, group in groups.items()},
    }


def _pope(answers: Sequence[Answered], mode: ScoringMode) -> Figures:
    figures = _yes_no_figures(answers, mode)
    if all("category" in answer.document for answer in answers):
        for name, group in _groups(answers, "category").items():
            part = _yes_no_figures(group, mode)
            figures |= {f"{figure}/{name}": value for figure, value in part.items()}
    return figures


def _yes_no_figures(answers: Sequence[Answered], mode: ScoringMode) -> Figures:
    """Accuracy, precision, recall, F1, share of yes.

    ``published`` counts as missed only the yes that was answered "no", and takes the share of yes
    from the reference answers.
    """
    pairs = [(given_answer(a.prediction, mode), true_answer(a.document)) for a in answers]
    num_hits = pairs.count(("yes", "yes"))
    num_false = pairs.count(("yes", "no"))
    num_missed = sum(
        truth == "yes" and (given == "no" if mode is ScoringMode.PUBLISHED else given != "yes")
        for given, truth in pairs
    )
    precision = _share(num_hits, num_hits + num_false)
    recall = _share(num_hits, num_hits + num_missed)
    counted = 1 if mode is ScoringMode.PUBLISHED else 0
    return {
        "pope_accuracy": _mean(answers),
        "pope_precision": precision,
        "pope_recall": recall,
        "pope_f1_score": _share(2 * (precision * recall), precision + recall),
        "pope_yes_ratio": _share(sum(pair[counted] == "yes" for pair in pairs), len(pairs)),
    }


def _share(part: float, total: float) -> float:
    return part / total if total > 0 else 0.0


def _hrbench(answers: Sequence[Answered], mode: ScoringMode) -> Figures:
    """``single`` is FSP, ``cross`` is FCP; a mean over the means of the option orders."""
    groups = _groups(answers, "category")
    return {
        "average": _mean_over_cycles(answers),
        **{name: _mean_over_cycles(group) for name, group in groups.items()},
    }


def _mean_over_cycles(answers: Sequence[Answered]) -> float:
    cycles: dict[str | float | None, list[Answered]] = {}
    for answer in answers:
        cycle = plain_field(answer.document, "cycle_category")
        cycles.setdefault(cycle, []).append(answer)
    return sum(_mean(group) for group in cycles.values()) / len(cycles)


_AGGREGATIONS: dict[str, Aggregation] = {
    "scenes": _mean_named("exact_match"),
    "textvqa": _mean_named("exact_match"),
    "docvqa": _mean_named("anls"),
    "infovqa": _mean_named("anls"),
    "chartqa": _chartqa,
    "ocrbench": _ocrbench,
    "vstar_bench": _vstar,
    "pope": _pope,
    "hrbench": _hrbench,
}
