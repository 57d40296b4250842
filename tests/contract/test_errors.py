"""Errors in one line."""

import pytest

from data_contracts.errors import one_line, root_cause


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("disk\n  full "), "disk full"),
        (TimeoutError(), "TimeoutError"),
        (OSError("x" * 10_000), f"{'x' * 2000}..."),
    ],
)
def test_an_error_is_said_in_one_line(error: Exception, said: str):
    """Stores said only that they cannot be used () where a driver gave no reason."""
    assert one_line(error) == said
    outer = ValueError("cannot be read")
    outer.__cause__ = error
    assert root_cause(outer) == said
