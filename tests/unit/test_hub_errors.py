"""Downloads of a model that break off are told of in one line and may be tried again."""

import httpx
import pytest

from sdrpn_core.models.errors import ModelError
from sdrpn_core.models.hub import explained
from tasks.fetching.transient import is_transient

XET = RuntimeError("Data processing error: CAS service error : Reqwest Error: timed out")


@pytest.mark.parametrize(
    "error",
    [httpx.ReadTimeout("timed out"), httpx.RemoteProtocolError("peer closed"), XET],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_breaks_off_says_so_and_is_tried_again(error: Exception) -> None:
    """It went through as it was: a traceback, and under Prefect a stage that was not retried."""
    told = r"'lab/tiny' could not be fetched whole.*run again"
    with pytest.raises(ModelError, match=told) as found, explained("lab/tiny", None):
        raise error
    assert is_transient(found.value)


def test_what_is_no_fault_of_the_model_keeps_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained("lab/tiny", None):
        raise RuntimeError("shapes do not match")
