"""Fetching one file: ranges side by side, pauses as asked, mirrors in turn, verified at the end.

What ends a fetch is a right file or one line that says which address failed how. A file without a
published digest is as right as its size and entity tag can say: both must be the same before the
first byte and after the last.
"""

import errno
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_contracts.addresses import concealed
from data_contracts.runtime import DownloadSettings
from data_contracts.sources import RemoteFile
from sdrpn_core.threads import in_parallel
from tasks.fetching.kept_files import FetchedFile, kept_file, local_path, still_same
from tasks.fetching.pace import Pace
from tasks.fetching.partial_file import (
    Note,
    Origin,
    PartialFile,
    publish,
    write_from_start,
)
from tasks.fetching.remote import (
    DownloadError,
    FileChanged,
    Hiccup,
    NoAnswer,
    RangesIgnored,
    Remote,
    RemoteInfo,
    TooSlow,
    Unavailable,
)
from tasks.storage.digests import digest_file

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 3
_BYTES_BETWEEN_LOOKS = 1 << 26
"""Of one connection, between looks at the free space of the disk."""
OpenRemote = Callable[[str], Remote]
"""URI -> its remote; may raise ``Hiccup`` and ``Unavailable``."""
OnBytes = Callable[[int, int | None], None]
"""(bytes here, bytes in all if known); called by the fetching thread, not by connections'."""


class _WrongBytes(Exception):
    """The bytes are not those that were published."""


def describe(file: RemoteFile, open_remote: OpenRemote, settings: DownloadSettings) -> RemoteInfo:
    """What the first address that answers says of the file.

    Raises:
        NoAnswer: if none has the file for us now, and one may later.
        DownloadError: if none has it.
    """
    problems: list[str] = []
    hiccup: Hiccup | None = None
    for uri in (file.uri, *file.mirrors):
        pace = Pace(settings, uri)
        try:
            return pace.patiently(lambda uri=uri: open_remote(uri).describe())  # type: ignore[misc]
        except (Unavailable, Hiccup) as error:
            problems.append(f"{uri}: {error}")
            hiccup = error if isinstance(error, Hiccup) else hiccup
    kind = DownloadError if hiccup is None else NoAnswer
    raise kind("; ".join(problems)) from hiccup


def fetch(
    file: RemoteFile,
    folder: Path,
    open_remote: OpenRemote,
    settings: DownloadSettings,
    on_bytes: OnBytes = lambda num_done, num_bytes: None,
) -> FetchedFile:
    """Bring a file here, going on from what an earlier attempt left.

    Args:
        file: addresses, and digest and size where they are known.
        folder: where it is kept; a later fetch finds it there.
        open_remote: opens an address.
        settings: connections, time-outs, patience.
        on_bytes: told how far it is.

    Raises:
        NoAnswer: if a later attempt may go better.
        DownloadError: naming every address that was tried and what was wrong with it.
    """
    if kept := kept_file(file, folder):
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch_from_any(file, folder, open_remote, settings, on_bytes)
    except OSError as error:  # remotes have errors of their own: this is our disk
        raise DownloadError(
            f"{file.uri}: cannot be written to {folder} ({error}); make room, or set "
            "downloads.folder to another disk; what is here is kept"
        ) from error


def _fetch_from_any(
    file: RemoteFile,
    folder: Path,
    open_remote: OpenRemote,
    settings: DownloadSettings,
    on_bytes: OnBytes,
) -> FetchedFile:
    problems: list[str] = []
    is_worth_retrying = False
    hiccup: Hiccup | None = None
    for uri in (file.uri, *file.mirrors):
        try:
            return _Fetch(file, uri, folder, settings, on_bytes).run(open_remote)
        except (Unavailable, Hiccup, _WrongBytes) as error:
            problems.append(f"{uri}: {error}")
            is_worth_retrying |= not isinstance(error, Unavailable)
            hiccup = error if isinstance(error, Hiccup) else hiccup
            logger.warning("%s: %s", concealed(uri), error)
    hint = "" if file.mirrors else "; try again later, or add another address to `mirrors`"
    kind = DownloadError if hiccup is None else NoAnswer
    raise kind(f"{'; '.join(problems)}{hint if is_worth_retrying else ''}") from hiccup


class _Fetch:
    """One file from one address."""

    def __init__(
        self,
        file: RemoteFile,
        uri: str,
        folder: Path,
        settings: DownloadSettings,
        on_bytes: OnBytes,
    ) -> None:
        self._file = file
        self._uri = uri
        self._path = local_path(file, folder)
        self._settings = settings
        self._on_bytes = on_bytes
        self._num_here = 0
        self._lock = threading.Lock()

    def run(self, open_remote: OpenRemote) -> FetchedFile:
        """Fetch, starting over when the file turns out to be another than described."""
        failure: Exception = Unavailable("")
        num_wrong = 0
        for _ in range(_MAX_RESTARTS):
            pace = Pace(self._settings, self._uri)
            remote, info = self._open(open_remote, pace)
            if known := still_same(self._file, self._path, info):
                return known
            try:
                return self._fetch(remote, info, pace)
            except FileChanged:
                remedy = "give its sha256, or" if info.sha256 is None else "try again later, or"
                failure = Unavailable(
                    f"changes again and again while it is fetched; {remedy} add a mirror"
                )
            except _WrongBytes as error:
                failure = error
                num_wrong += 1
                if num_wrong == 2:  # once may be parts of an earlier attempt; twice is the server
                    break
            logger.info("%s: starting over", concealed(self._uri))
        raise failure

    def _open(self, open_remote: OpenRemote, pace: Pace) -> tuple[Remote, RemoteInfo]:
        opened: list[Remote] = []

        def attempt() -> RemoteInfo:
            opened[:] = [open_remote(self._uri)]
            return opened[0].describe()

        info = pace.patiently(attempt)
        wanted = self._file.num_bytes
        if wanted is not None and info.num_bytes not in (None, wanted):
            raise Unavailable(
                f"has {info.num_bytes} bytes, {wanted} are expected; "
                "it was replaced: correct num_bytes and sha256, or add a mirror"
            )
        return opened[0], replace(info, sha256=self._file.sha256 or info.sha256)

    def _fetch(self, remote: Remote, info: RemoteInfo, pace: Pace) -> FetchedFile:
        if info.takes_ranges and info.num_bytes:
            try:
                return self._fetch_parts(remote, info, pace)
            except RangesIgnored:
                shown = concealed(self._uri)
                logger.info("%s: the server ignores ranges; one connection it is", shown)
        return self._fetch_whole(remote, info, Pace(self._settings, self._uri))

    def _fetch_parts(self, remote: Remote, info: RemoteInfo, pace: Pace) -> FetchedFile:
        assert info.num_bytes is not None
        part_bytes = max(1, int(self._settings.part_mib * (1 << 20)))
        if info.sha256 is None:
            origin = Origin(concealed(self._uri), info.version, info.num_bytes, part_bytes)
        else:
            origin = Origin.of_digest(info.sha256, info.num_bytes, part_bytes)
        partial = PartialFile(self._path, origin)
        self._num_here = partial.num_bytes_done
        self._on_bytes(self._num_here, info.num_bytes)
        try:
            self._fetch_missing(remote, info, pace, partial)
        except Exception as error:
            partial.close()
            if isinstance(error, FileChanged | RangesIgnored):
                partial.discard()
            raise
        partial.close()  # not after a Ctrl-C: connections may be writing still
        try:
            sha256 = self._verified(partial.path, remote, info)
        except (_WrongBytes, FileChanged):
            partial.discard()
            raise
        partial.publish(info.version, sha256)
        return FetchedFile(self._path, info.num_bytes, sha256)

    def _fetch_missing(
        self, remote: Remote, info: RemoteInfo, pace: Pace, partial: PartialFile
    ) -> None:
        def fetch(part: tuple[int, int]) -> None:
            self._fetch_or_stop(remote, info, pace, partial, *part)

        def report() -> None:
            self._on_bytes(self._num_here, info.num_bytes)

        try:
            in_parallel(fetch, partial.missing(), self._settings.num_connections, report)
            report()
        finally:
            pace.stopped.set()  # after the last part, or to end the others when one fails

    def _fetch_or_stop(self, remote: Remote, info: RemoteInfo, pace: Pace, *part: Any) -> None:
        """Fetch a part; failing for good ends the other connections too."""
        if pace.stopped.is_set():
            return
        try:
            self._fetch_part(remote, info, pace, *part)
        except Exception:
            pace.stopped.set()
            raise

    def _fetch_part(
        self,
        remote: Remote,
        info: RemoteInfo,
        pace: Pace,
        partial: PartialFile,
        start: int,
        stop: int,
    ) -> None:
        position, num_failures, num_slow = start, 0, 0
        while position < stop:
            pace.hold()
            try:
                for chunk in remote.stream(position, stop, info):
                    if pace.stopped.is_set():
                        return
                    partial.write(position, chunk)
                    position += len(chunk)
                    num_failures = 0
                    with self._lock:
                        self._num_here += len(chunk)
            except TooSlow as error:  # by the bytes that came, it would be asked for ever
                num_slow += 1
                pace.pause(error, num_slow)
            except Hiccup as error:
                num_failures += 1
                pace.pause(error, num_failures)
        partial.complete(start)

    def _fetch_whole(self, remote: Remote, info: RemoteInfo, pace: Pace) -> FetchedFile:
        num_failures = 0
        while True:
            try:
                self._num_here = 0
                chunks = self._counted(remote.stream(0, None, info), info)
                partial, num_bytes = write_from_start(self._path, chunks)
                if info.num_bytes not in (None, num_bytes):
                    raise Hiccup(f"{num_bytes} bytes came instead of {info.num_bytes}")
                break
            except Hiccup as error:
                num_failures += 1
                pace.pause(error, num_failures)
        sha256 = self._verified(partial, remote, info)
        publish(partial, self._path, Note(info.version, num_bytes, sha256))
        return FetchedFile(self._path, num_bytes, sha256)

    def _require_room(self) -> None:
        """A server that tells no length must not fill the disk, nor one that sends more than it
        told."""
        if shutil.disk_usage(self._path.parent).free < self._settings.free_gib * (1 << 30):
            raise OSError(errno.ENOSPC, "downloads.free_gib would not be left")

    def _verified(self, partial: Path, remote: Remote, info: RemoteInfo) -> str:
        """Digest of the bytes that came, once they are known to be the right ones."""
        sha256 = digest_file(partial)
        if info.sha256 is None:
            again = Pace(self._settings, self._uri).patiently(remote.describe)
            if (again.num_bytes, again.version) != (info.num_bytes, info.version):
                raise FileChanged
        elif sha256 != info.sha256:
            raise _WrongBytes(
                f"sends other bytes than were published: SHA-256 {sha256}, expected {info.sha256}"
            )
        return sha256

    def _counted(self, chunks: Iterator[bytes], info: RemoteInfo) -> Iterator[bytes]:
        num_checked = 0
        for chunk in chunks:
            if self._num_here >= num_checked:
                self._require_room()
                num_checked += _BYTES_BETWEEN_LOOKS
            self._num_here += len(chunk)
            if info.num_bytes is not None and self._num_here > info.num_bytes:
                raise Hiccup(f"more bytes came than the {info.num_bytes} that it has")
            self._on_bytes(self._num_here, info.num_bytes)
            yield chunk
