"""Changed code cannot silently keep serving artifacts that older code made."""

import ast

import pytest

from tests.architecture.stage_code import (
    KEEPS_BYTES,
    STAGES,
    current,
    modules_of,
    normalised,
    reached_tasks,
    recorded,
)

COMMAND = "python -m tests.architecture.record_stage_versions"


@pytest.mark.parametrize("stage", STAGES)
def test_code_and_version_are_as_recorded(stage: str):
    found, known = current()[stage], recorded().get(stage)
    assert known is not None, f"new stage {stage}: run `{COMMAND}`"
    if found["version"] != known["version"]:
        pytest.fail(f"{stage} has version {found['version']}: run `{COMMAND}`")
    assert found["digest"] == known["digest"], (
        f"the code of {stage} changed. If its artifacts come out differently, raise "
        f"{STAGES[stage].constant} and run `{COMMAND}`; otherwise `{COMMAND} --same-output`"
    )


def test_the_code_of_a_stage_is_what_its_adapter_reaches():
    reached = modules_of(STAGES["make-labels"].roots)
    assert {"tasks.make_labels", "sdrpn_core.pseudo_labels", "sdrpn_core.geometry"} <= reached
    assert "sdrpn_core.rpn.training" not in reached


def test_every_module_that_a_stage_reaches_is_watched_or_decides_nothing():
    """A benchmark's rows were read by code that no version stood for."""
    watched = {root for stage in STAGES.values() for root in stage.roots}
    reached = reached_tasks()
    unknown = {name for name in reached - watched if not name.startswith(KEEPS_BYTES)}
    assert not unknown, "add these to a stage's roots, or to KEEPS_BYTES"
    assert not [part for part in KEEPS_BYTES if not any(n.startswith(part) for n in reached)]


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("def f(x):\n    'Doc.'\n    # why\n    return x + 1\n", True),
        ("def f(x): return (x + 1)\n", True),
        ("def f(x):\n    return x + 2\n", False),
        ("def f(x):\n    return x - 1\n", False),
        ("def f(x, y=None):\n    return x + 1\n", False),
    ],
)
def test_only_meaning_enters_the_digest(other: str, is_same: bool):
    base = normalised(ast.parse("def f(x):\n    return x + 1\n"))
    assert (normalised(ast.parse(other)) == base) is is_same
