"""Addresses are shown without what would let in whoever sees them."""

import copy

import pytest

from data_contracts.addresses import all_concealed, concealed, file_name
from data_contracts.errors import SdrpnError, one_line
from tasks.storage.errors import StoreUnreachable

SIGNED = "https://host/a/b.zip?X-Amz-Date=20260101&X-Amz-Signature=s3cret"
SHOWN = "https://host/a/b.zip?X-Amz-Date=20260101&X-Amz-Signature=..."


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (SIGNED, SHOWN),
        ("https://h/a?sv=2025&sig=s3%2Fcret%3D&se=1", "https://h/a?sv=2025&sig=...&se=1"),
        ("https://h/a?token=s3cret", "https://h/a?token=..."),
        ("https://h/a?access_token=s3cret#top", "https://h/a?access_token=...#top"),
        ("https://h/a?X-Amz-Security-Token=s3/cret==", "https://h/a?X-Amz-Security-Token=..."),
        ("https://h/a?X-Goog-Credential=s3cret%40x", "https://h/a?X-Goog-Credential=..."),
        ("https://h/a?key=s3cret", "https://h/a?key=..."),
        ("https://h/a?x-api-key=s3cret&b=1", "https://h/a?x-api-key=...&b=1"),
        ("https://h/a?hdnts=exp=1~hmac=s3cret", "https://h/a?hdnts=..."),
        ("https://h/a?Authorization=s3cret", "https://h/a?Authorization=..."),
        ("https://user:s3cret@h/a", "https://...@h/a"),
        ("HTTPS://s3cret@h/a", "HTTPS://...@h/a"),
        ("s3://key:s3cret@bucket/a", "s3://...@bucket/a"),
    ],
)
def test_what_lets_in_is_left_out(address: str, shown: str):
    assert concealed(address) == shown
    assert concealed(shown) == shown
    message = f"{address}: does not exist; see ({address}), '{address}'."
    assert concealed(message) == message.replace(address, shown)


@pytest.mark.parametrize(
    "address",
    [
        "https://h/a?design=round&author=me&id=7",
        "https://h/sig=1/token=2.zip",
        "abfs://container@account.dfs.core.windows.net/a",
        "hf://datasets/a/b@refs/pr/1/c.json",
        "s3://bucket/user@host/a.zip",
    ],
)
def test_all_else_stays(address: str):
    assert concealed(address) == address


def test_every_text_of_plain_data_is_shown_so():
    plain = {"files": [SIGNED, {"uri": SIGNED}], "seed": 1, "boxes": None}
    assert all_concealed(plain) == {"files": [SHOWN, {"uri": SHOWN}], "seed": 1, "boxes": None}


@pytest.mark.parametrize("kind", [SdrpnError, StoreUnreachable])
def test_no_error_repeats_a_signature(kind: type[SdrpnError]):
    """Messages end in terminals, logs, rows and Prefect's pages."""
    error = kind(f"{SIGNED}: is gone")
    assert str(copy.copy(error)) == str(error) == f"{SHOWN}: is gone"
    assert one_line(OSError(SIGNED)) == SHOWN


def test_a_signature_is_no_part_of_a_name():
    assert file_name("https://h/a/b.zip?sig=c/d") == "b.zip"
