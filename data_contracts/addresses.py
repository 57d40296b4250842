"""Addresses without passwords: recipes, logs, reports and Prefect's pages show them whole."""

import re
from typing import TypeVar

T = TypeVar("T")

_CREDENTIALS = re.compile(r"(?i)^(https?://[^/?#]*@|[a-z][a-z0-9+.-]*://[^/?#@]*:[^/?#]*@)")
"""On other services than the web, a name before ``@`` may be that of a container or a host's user;
with a colon it has its password."""
_BEFORE_HOST = re.compile(r"://[^/?#\s]*@")
REMEDY = (
    "holds a user's name or password, which would be seen in recipes, logs and reports: take it "
    "out; for https:// put it into ~/.netrc, for buckets into the environment"
)


def holds_credentials(address: str) -> bool:
    """Whether whoever sees an address can log in with it."""
    return _CREDENTIALS.match(address) is not None


def no_credentials(address: T) -> T:
    """Validator of settings that are an address, or may be.

    Raises:
        ValueError: if it is one that holds credentials.
    """
    if isinstance(address, str) and holds_credentials(address):
        raise ValueError(f"the address {REMEDY}")
    return address


def concealed(text: str) -> str:
    """Text for a message, without what stands before the hosts of its addresses."""
    return _BEFORE_HOST.sub("://...@", text)
