"""fsspec's HTTP driver, more patient: the original asks once, and all failures are "not found"."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from data_contracts.errors import one_line
from sdrpn_core.transport_errors import may_pass, retry_after
from tasks.storage.errors import TooLarge
from tasks.storage.trickles import Flow, Trickle

T = TypeVar("T")
logger = logging.getLogger(__name__)

_WAITS = (0.5, 2.0, 5.0)
"""Seconds before asking again."""
_MAX_WAIT = 60.0
"""Of what a server asks for."""
_FAILS_ITSELF = 500
_SILENCE = 60.0
"""Seconds that a server may be silent, or all but silent."""


class PatientHTTPFileSystem(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files on HTTP servers.

    A failure that may pass (``may_pass``, a connection that broke off) is waited for, and then is a
    ``ConnectionError``; a server that is silent is asked once more only. What a server refuses for
    good is not found. Nor is what makes it fail again and again (500) where it is looked at: one
    such file would stop every run, and the next look finds it if it is mended.
    """

    def __init__(self, *args: Any, client_kwargs: Any = None, **options: Any) -> None:
        # Proxies and passwords by host are looked up as for files that are fetched.
        own = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_SILENCE),
            "trust_env": True,
        }
        super().__init__(*args, client_kwargs={**own, **(client_kwargs or {})}, **options)

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        look = super()._info
        try:
            found: dict[str, Any] = await _patiently(lambda: look(url, **options))
        except ConnectionError as error:
            if getattr(error.__cause__, "status", None) == _FAILS_ITSELF:
                raise FileNotFoundError(str(error)) from error.__cause__
            raise
        return found

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        if start is None and end is None:
            return await _patiently(lambda: self._whole(url, **options))
        read = super()._cat_file
        data: bytes = await _patiently(lambda: read(url, start, end, **options))
        return data

    async def _whole(self, url: str, max_bytes: int | None = None, **options: Any) -> bytes:
        """All that a server sends, unless it has no end: the original waits for it."""
        session = await self.set_session()
        data = bytearray()
        async with session.get(self.encode_url(url), **{**self.kwargs, **options}) as response:
            self._raise_not_found_for_status(response, url)
            flow = Flow(session.timeout.sock_read or _SILENCE)
            async for chunk in response.content.iter_any():
                flow.came(len(chunk))
                data += chunk
                if max_bytes is not None and len(data) > max_bytes:
                    raise TooLarge.than(max_bytes)
                flow.wait()
        return bytes(data)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    num_silent = 0
    for wait in (*_WAITS, None):
        try:
            return await ask()
        except Exception as error:
            hiccup = _hiccup(error)
            if hiccup is None:
                raise
            num_silent += isinstance(hiccup, TimeoutError | Trickle)
            if wait is None or num_silent > 1:
                raise ConnectionError(str(hiccup) or type(hiccup).__name__) from hiccup
            asked_for = retry_after(getattr(hiccup, "headers", None) or {}) or 0.0
            pause = max(wait, min(asked_for, _MAX_WAIT))
            if wait == _WAITS[-1]:
                logger.warning("%s; asking a last time in %.1f s", one_line(hiccup), pause)
            await asyncio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _hiccup(error: BaseException) -> BaseException | None:
    """What may pass of an error or, where it is fsspec's "not found", of its cause."""
    if isinstance(error, FileNotFoundError):
        return None if error.__cause__ is None else _hiccup(error.__cause__)
    if isinstance(error, aiohttp.ClientResponseError):
        return error if may_pass(error.status) else None
    passing = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, Trickle)
    return error if isinstance(error, passing) else None
