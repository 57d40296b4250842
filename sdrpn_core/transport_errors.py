"""Failures of HTTP, told apart alike for every service and every version of the client.

The hub's library raises those of its HTTP client as they are, and which client that is depends on
its version: they are known by their packages and names, so that none of them need be installed.
"""

import email.utils
import re
from collections.abc import Mapping
from datetime import UTC, datetime

_CLIENTS = re.compile(r"http(x|core)\d*")
_PASSING = {"TransportError", "NetworkError", "TimeoutException", "ProtocolError", "ProxyError"}
_MISTAKES = {"UnsupportedProtocol", "LocalProtocolError"}
"""Also the transport's, but what was asked for is wrong."""
_NOT_IMPLEMENTED = 501
_XET = re.compile(r"\bCAS\b|Reqwest")
"""How the errors of hf_xet, by which the hub's library fetches large files, read: they are plain
``RuntimeError``."""
_TRY_AGAIN = (408, 421, 425, 429)


def may_pass(status: int) -> bool:
    """Whether a request that was refused so may succeed when it is made again."""
    return status in _TRY_AGAIN or (status >= 500 and status != _NOT_IMPLEMENTED)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by a number or a date; None if it does not."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (OverflowError, ValueError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def is_client_error(error: BaseException) -> bool:
    """Whether an error is one of the HTTP client, passing or not."""
    return any(_is_of_client(kind) for kind in type(error).__mro__)


def is_transport_error(error: BaseException) -> bool:
    """Whether a connection could not be made, broke off or fell silent."""
    if isinstance(error, RuntimeError) and _XET.search(str(error)):
        return True
    names = {kind.__name__ for kind in type(error).__mro__ if _is_of_client(kind)}
    return bool(names & _PASSING) and not names & _MISTAKES


def _is_of_client(kind: type) -> bool:
    return _CLIENTS.fullmatch(kind.__module__.partition(".")[0]) is not None
