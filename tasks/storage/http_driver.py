"""fsspec's HTTP driver, more patient: the original asks once, and all failures are "not found"."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from sdrpn_core.transport_errors import may_pass

T = TypeVar("T")

_WAITS = (0.5, 2.0, 5.0)
"""Seconds before asking again."""
_MAX_WAIT = 60.0
"""Of what a server asks for."""


class PatientHTTPFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files on HTTP servers.

    A failure that may pass (``may_pass``, a broken or silent connection) is waited for, and then
    is a ``ConnectionError``. Only what a server refuses for good is not found.
    """

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
    for wait in _WAITS:
        try:
            return await ask()
        except Exception as error:
            hiccup = _hiccup(error)
            if hiccup is None:
                raise
            await asyncio.sleep(max(wait, _asked_for(hiccup)))
    try:
        return await ask()
    except Exception as error:
        hiccup = _hiccup(error)
        if hiccup is None:
            raise
        raise ConnectionError(str(hiccup) or type(hiccup).__name__) from hiccup


def _hiccup(error: BaseException) -> BaseException | None:
    """What may pass of an error or, where it is fsspec's "not found", of its cause."""
    if isinstance(error, FileNotFoundError):
        return None if error.__cause__ is None else _hiccup(error.__cause__)
    if isinstance(error, aiohttp.ClientResponseError):
        return error if may_pass(error.status) else None
    passing = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
    return error if isinstance(error, passing) else None


def _asked_for(hiccup: BaseException) -> float:
    """Seconds that the server wants to be left alone, as far as we are ready to wait."""
    headers = getattr(hiccup, "headers", None) or {}
    wanted = headers.get("Retry-After", "")
    return min(float(wanted), _MAX_WAIT) if wanted.isdecimal() else 0.0
