"""Addresses without what lets in whoever sees them: logs, reports and Prefect's pages show them.

Passwords are refused in settings. A signature is part of some addresses, so it stays in settings
and in what is asked for, and is left out wherever an address is shown.
"""

import re
from typing import Any, TypeVar

T = TypeVar("T")

_CREDENTIALS = re.compile(r"(?i)^(https?://[^/?#]*@|[a-z][a-z0-9+.-]*://[^/?#@]*:[^/?#]*@)")
"""On other services than the web, a name before ``@`` may be that of a container or a host's user;
with a colon it has its password."""
_BEFORE_HOST = re.compile(
    r"(?i)(https?://|(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://(?=[^/?#@\s]*:))[^/?#\s]*@"
)
_SIGNED = re.compile(
    r"(?i)([?&;#](?:[^=?&;#\s]{0,40}"
    r"(?:signature|token|secret|passw|credential|api.?key|access.?key|hmac|jwt|auth(?!ors?=))"
    r"[^=?&;#\s]{0,40}|hdn[a-z]{1,9}|(?:[^=?&;#\s]{0,40}[-_.])?(?:sig|key|pwd))=)"
    r"[^&;#\s\"'<>`]*[^&;#\s\"'<>`:,.)\]}]"
)
"""A query's parameter that signs the address or is a password; the sign that ends a sentence after
it stays."""
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
    """Text to be shown, without the passwords and signatures of its addresses."""
    return _SIGNED.sub(r"\1...", _BEFORE_HOST.sub(r"\1...@", text))


def file_name(address: str) -> str:
    """The last part of an address's path; a signature after it may have slashes too."""
    return address.partition("?")[0].rstrip("/").rpartition("/")[2]


def all_concealed(value: Any) -> Any:
    """Plain data to be shown, each text of it concealed."""
    if isinstance(value, dict):
        return {key: all_concealed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [all_concealed(inner) for inner in value]
    return concealed(value) if isinstance(value, str) else value
