"""The findings as tables of text, for the terminal and the page."""

from collections.abc import Sequence

from data_contracts.sink_rules import (
    Heads,
    SinkCombination,
    SinkDimensions,
    SinkHeads,
    SinkHiddenNorm,
    SinkLayerMean,
    SinkSignal,
)
from sdrpn_core.calibration.comparison import EXHAUSTIVE, MethodScore
from sdrpn_core.calibration.evidence import CalibrationResult
from sdrpn_core.calibration.sink_search import SinkScore

Rows = list[dict[str, str]]

MEASURES = (
    "Centre precision: the share of foreground cells whose centre is inside the true box; the "
    "touch precision in the report of a run counts those that show any part of it. Recall: the "
    "share of the cells inside the true box that are foreground. False background: the share of "
    "the cells inside the true box that are background."
)
"""What the column headings mean that other pages use too."""


def tables(result: CalibrationResult) -> dict[str, Rows]:
    """Title -> rows under their column names; tables without rows are left out."""
    evidence = result.evidence
    planted = {id(score): f"{score.found:.0%}" for score in evidence.planted_sinks}
    found = {
        "Profile": _profile(result),
        "Ways of choosing, labels on the unseen scenes": _methods(evidence.methods),
        "Sink rules, labels on the unseen scenes": [_sink(score) for score in evidence.sinks],
        "Sink rules against planted sinks": [
            _sink(score) | {"found": planted[id(score)]} for score in evidence.planted_sinks
        ],
        "Denoising, labels on the unseen scenes": [
            {
                "questions": step.kind.value,
                "up to": step.step,
                "centre precision": f"{step.centre_precision:.3f}",
                "recall": f"{step.recall:.3f}",
                "false background": f"{step.false_background:.3f}",
            }
            for step in evidence.denoising
        ],
        "Branch layers, validation of a short RPN training": [
            {
                "branch layer": str(branch.branch_layer),
                "F1": f"{branch.f1:.3f}",
                "AUC": f"{branch.auc:.3f}",
                "kept": "yes" if branch.is_kept else "",
            }
            for branch in evidence.branches
        ],
    }
    return {title: rows for title, rows in found.items() if rows}


def heads_text(heads: Heads) -> str:
    """``0: 1, 3; 4: 2`` for {0: (1, 3), 4: (2,)}."""
    return "; ".join(f"{layer}: {', '.join(map(str, some))}" for layer, some in heads.items())


def rule_text(rule: SinkCombination) -> str:
    """A sink rule in a few words."""
    terms = [f"{_signal_text(term.signal)} >= {term.threshold:g}" for term in rule.terms]
    return (" or " if rule.rule == "any" else " and ").join(terms)


def _signal_text(signal: SinkSignal) -> str:
    match signal:
        case SinkHeads(heads=heads):
            return f"head {heads_text(heads)}"
        case SinkLayerMean(layer=layer):
            return f"mean of layer {layer}"
        case SinkHiddenNorm(layer=layer):
            return f"norm into layer {layer}"
        case SinkDimensions(layer=layer, dimensions=dimensions):
            return f"dimensions {', '.join(map(str, dimensions))} into layer {layer}"


def _profile(result: CalibrationResult) -> Rows:
    labels, rpn = result.profile.labels, result.profile.rpn
    return [
        {
            "questions": kind.value,
            "heads": heads_text(selection.grounding),
            "sinks": "none"
            if not isinstance(selection.sink, SinkCombination)
            else rule_text(selection.sink),
            "foreground": f"{labels.foreground_ratio_threshold:g}",
            "background": f"{labels.background_ratio_threshold:g}",
            "B": str(rpn.branch_layer),
            "R": str(rpn.depth),
            "centre precision": f"{quality.centre_precision:.3f}",
            "recall": f"{quality.recall:.3f}",
        }
        for kind, selection in result.profile.heads.items()
        for quality in [result.evidence.quality[kind]]
    ]


def _methods(methods: Sequence[MethodScore]) -> Rows:
    best = next((score.unseen.f1 for score in methods if score.method == EXHAUSTIVE), None)
    return [
        {
            "method": score.method,
            "heads": " / ".join(dict.fromkeys(heads_text(heads) for heads in score.heads.values())),
            "foreground": " / ".join(
                dict.fromkeys(f"{t:g}" for t in score.foreground_thresholds.values())
            ),
            "centre precision": f"{score.unseen.centre_precision:.3f}",
            "recall": f"{score.unseen.recall:.3f}",
            "F1": f"{score.unseen.f1:.3f}",
        }
        | ({} if best is None else {"of exhaustive": f"{score.unseen.f1 / max(best, 1e-12):.1%}"})
        for score in methods
    ]


def _sink(score: SinkScore) -> dict[str, str]:
    before, after = score.without, score.with_rule
    return {
        "questions": score.kind.value,
        "rule": rule_text(score.rule),
        "sinks": f"{score.sink_ratio:.1%}",
        "centre precision": f"{before.centre_precision:.3f} -> {after.centre_precision:.3f}",
        "recall": f"{before.recall:.3f} -> {after.recall:.3f}",
        "F1": f"{before.f1:.3f} -> {after.f1:.3f}",
        "kept": "yes" if score.is_kept else "",
    }
