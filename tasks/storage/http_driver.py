"""fsspec's HTTP driver, more patient: the original asks once, and all failures are "not found"."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from sdrpn_core.transport_errors import may_pass, retry_after

T = TypeVar("T")

_WAITS = (0.5, 2.0, 5.0)
"""Seconds before asking again."""
_MAX_WAIT = 60.0
"""Of what a server asks for."""
_FAILS_ITSELF = 500


class PatientHTTPFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files on HTTP servers.

    Where a file is looked at or read, a failure that may pass (``may_pass``, a connection that
    broke off) is waited for, and then is a ``ConnectionError``. What a server refuses for good is
    not found, as is the one file of which it says again and again that it fails itself (500). A
    server that is silent is not asked again.
    """

    def __init__(self, *args: Any, client_kwargs: Any = None, **options: Any) -> None:
        patience = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        super().__init__(*args, client_kwargs={**patience, **(client_kwargs or {})}, **options)

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        look = super()._info
        found: dict[str, Any] = await _patiently(lambda: look(url, **options))
        return found

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        read = super()._cat_file
        data: bytes = await _patiently(lambda: read(url, start, end, **options))
        return data


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    for wait in (*_WAITS, None):
        try:
            return await ask()
        except Exception as error:
            hiccup = _hiccup(error)
            if hiccup is None:
                raise
            if wait is None or isinstance(hiccup, TimeoutError):
                raise _for_good(hiccup) from hiccup
            asked_for = retry_after(getattr(hiccup, "headers", None) or {}) or 0.0
            await asyncio.sleep(max(wait, min(asked_for, _MAX_WAIT)))
    raise AssertionError("the last attempt returns or raises")


def _hiccup(error: BaseException) -> BaseException | None:
    """What may pass of an error or, where it is fsspec's "not found", of its cause."""
    if isinstance(error, FileNotFoundError):
        return None if error.__cause__ is None else _hiccup(error.__cause__)
    if isinstance(error, aiohttp.ClientResponseError):
        return error if may_pass(error.status) else None
    passing = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
    return error if isinstance(error, passing) else None


def _for_good(hiccup: BaseException) -> OSError:
    """What is said of a hiccup that does not pass."""
    detail = str(hiccup) or type(hiccup).__name__
    is_own = isinstance(hiccup, aiohttp.ClientResponseError) and hiccup.status == _FAILS_ITSELF
    return FileNotFoundError(detail) if is_own else ConnectionError(detail)
