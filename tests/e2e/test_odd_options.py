"""Values of options that nothing can be done with: one line says so."""

from pathlib import Path

import pytest

from tests.e2e.command_line import sdrpn

pytestmark = pytest.mark.usefixtures("no_server")


@pytest.mark.parametrize("days", ["1000000", "1e9", "inf", "nan"])
def test_an_age_beyond_the_calendar_was_a_traceback(tmp_path: Path, days: str):
    result = sdrpn("artifacts", "gc", "--store", tmp_path, "--older-than-days", days)
    assert result.exit_code == 2
    assert "'--older-than-days': Input should be less than or equal to 36500" in result.stderr
    century = sdrpn("artifacts", "gc", "--store", tmp_path, "--older-than-days", 36500)
    assert "nothing to delete that is older than 36500 days" in century.stdout
