"""Table of family x contract test: ``python -m tests.families.table docs/families.md``.

Runs the contract suite and writes what came of it; exits with 1 if anything failed. With
``--collect-only`` nothing is run: the page as it is when every test passes.
"""

import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import transformers

from data_contracts.profiles import ModelProfile
from sdrpn_core.models.families import FAMILIES
from sdrpn_core.models.not_driven import REASONS
from sdrpn_core.models.profiles import load_profile, packaged_profiles
from tests.families.registry import FAMILY_MODELS

SUITE = Path(__file__).parent
COLLECT = "--collect-only"
NOT_FOR_IT = "does not apply"
"""A family can do without what the test is about; the test says why."""
Outcomes = dict[tuple[str, str], list[str]]
_EXPERTS = (
    "Where a layer is a mixture of experts, an RPN copies and trains all of it but the",
    "experts and the router that chooses among them: attention, norms, and an expert that",
    "every token meets. It calls the model's own experts, which stay frozen. With copies, an",
    "RPN beside Qwen3-VL-30B-A3B would have 1.3 billion weights to train, nearly all in",
    "experts that a token meets 8 in 128 of; so it has 47 million, and its files hold no",
    "experts. The same goes for mixtures in other families (InternVL3.5-30B-A3B).",
)


class Recorder:
    """Pytest plugin that keeps the outcome of every case of a family."""

    def __init__(self) -> None:
        self.outcomes: Outcomes = defaultdict(list)
        self._places: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Only tests that take a family's model are part of the contract."""
        for item in items:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            if "loaded" in parameters and isinstance(item, pytest.Function):
                self._places[item.nodeid] = (item.originalname, parameters["loaded"])
        items[:] = [item for item in items if item.nodeid in self._places]

    def pass_all(self) -> None:
        """Count every test that was collected as passed."""
        for place in self._places.values():
            self.outcomes[place].append("passed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A case counts once, with its set-up if that failed."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[self._places[report.nodeid]].append(report.outcome)


def render(outcomes: Outcomes) -> str:
    """Markdown page."""
    lines = [
        "# Model families",
        "",
        "For whoever chooses a model. A *profile* is a packaged file that says what is particular",
        "to a model; a configuration names it (`model.profile`). A *family* is the code that knows",
        "a model's class in transformers. A model of a known family needs a profile only.",
        "",
        *_profile_lines(),
        "",
        *_family_lines(),
        "",
        *_contract_lines(outcomes),
    ]
    return "\n".join(lines) + "\n"


def _profile_lines() -> list[str]:
    return [
        "## Packaged profiles",
        "",
        "| profile | model | family | B, R | grounding heads known for | source |",
        "|---|---|---|---|---|---|",
        *(_profile_row(load_profile(name)) for name in packaged_profiles()),
        "",
        "B is the layer where the region proposal network branches off, R its number of layers.",
        "Grounding heads are the attention heads that look at what an answer is about; questions",
        "are textual (about print) or natural. A profile without heads is uncalibrated:",
        "`sdrpn run` finds them first, in a stage of its own (`calibrate`); see",
        "[calibration.md](calibration.md).",
    ]


def _family_lines() -> list[str]:
    families = (f"* `{name}`: {_in_a_line(name)}" for name in FAMILY_MODELS)
    return ["## Families", "", *families, "", *_EXPERTS, "", *_not_driven_lines()]


def _not_driven_lines() -> list[str]:
    """Families of a reason together."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in REASONS.items():
        names[reason].append(f"`{name}`")
    return [
        "Families that cannot be driven, and why. Others that are not listed may only wait for an",
        "adapter.",
        "",
        *(f"* {', '.join(found)}: {reason}." for reason, found in names.items()),
    ]


def _contract_lines(outcomes: Outcomes) -> list[str]:
    lines = [
        "## The contract that every family passes",
        "",
        "Every family runs the same tests on a tiny random model of its stock class, against that",
        "class's own forward pass, attention maps and `generate`. This page is written by",
        "`python -m tests.families.table docs/families.md`, on the CPU, with",
        f"transformers {transformers.__version__} and torch {torch.__version__}.",
        "",
        f"| contract test | {' | '.join(f'`{family}`' for family in FAMILY_MODELS)} |",
        "|---|" + "---|" * len(FAMILY_MODELS),
    ]
    for test in dict.fromkeys(test for test, _ in outcomes):
        name = test.removeprefix("test_").replace("_", " ")
        cells = [_cell(outcomes.get((test, family), [])) for family in FAMILY_MODELS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if others := [f"`{name}`" for name, model in FAMILY_MODELS.items() if model.stock_masks]:
        lines += [
            "",
            f"In these tests the stock class of {' and '.join(others)} gets the masks that it",
            "makes for caches of fixed size: those of its plain forward pass are not what it was",
            "trained on.",
        ]
    return lines


def _in_a_line(family: str) -> str:
    """What a family is, as the module of its adapter begins."""
    return (sys.modules[FAMILIES[family].__module__].__doc__ or "").splitlines()[0]


def _profile_row(profile: ModelProfile) -> str:
    kinds = ", ".join(sorted(profile.heads)) or "**none: uncalibrated**"
    rpn = profile.rpn if profile.is_calibrated else None
    shape = f"{rpn.branch_layer}, {rpn.depth}" if rpn else "to be found"
    return (
        f"| `{profile.name}` | `{profile.model_id}` | `{profile.family}` | {shape} | {kinds} | "
        f"{profile.source} |"
    )


def _cell(outcomes: list[str]) -> str:
    if not outcomes:
        return "-"
    if set(outcomes) == {"skipped"}:
        return NOT_FOR_IT
    bad = sum(outcome not in ("passed", "skipped") for outcome in outcomes)
    cases = f" ({len(outcomes)} cases)" if len(outcomes) > 1 else ""
    return f"FAIL {bad} of {len(outcomes)}" if bad else f"pass{cases}"


def main() -> None:
    """Run or collect the suite and write the page."""
    *options, file = sys.argv[1:] or [""]
    if not file or file.startswith("-") or options not in ([], [COLLECT]):
        sys.exit(f"usage: python -m tests.families.table [{COLLECT}] FILE")
    recorder = Recorder()
    code = pytest.main(["-q", *options, str(SUITE)], plugins=[recorder])
    if options:
        recorder.pass_all()
    Path(file).write_text(render(recorder.outcomes), encoding="utf-8")
    sys.exit(int(code))


if __name__ == "__main__":
    main()
