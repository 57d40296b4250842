"""A run's way to the files of its sources: on this machine's disk, fetched, or rewritten there.

A file that is fetched, or rewritten in another form, is kept in the folder for downloads and found
there the next time.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from data_contracts.addresses import concealed
from data_contracts.sources import FileAddress, RemoteFile, remote_file
from tasks.artifacts.stage import NotMade, StageRun
from tasks.fetching.addresses import (
    downloads_folder,
    local_file,
    matching,
    opener,
    require_space,
)
from tasks.fetching.fetcher import describe, fetch
from tasks.fetching.kept_files import FetchedFile, earlier_copy, kept_file, missing_bytes
from tasks.fetching.partial_file import exclusive
from tasks.fetching.remote import DownloadError
from tasks.sources.conversions import Conversion
from tasks.sources.record_stream import SourceError
from tasks.storage.digests import digest_file

logger = logging.getLogger(__name__)

_MIB = 1 << 20


class Fetcher:
    """Brings a run's files here."""

    def __init__(self, run: StageRun) -> None:
        """Prepare; nothing is fetched yet."""
        self.folder = downloads_folder(run.runtime)
        self._run = run
        self._settings = run.runtime.downloads
        self._open_remote = opener(run.store.storage, self._settings)

    def get(self, address: FileAddress) -> FetchedFile:
        """A file as a local one: where it is if it is on this machine's disk, else fetched.

        Raises:
            DownloadError, SourceError: if it cannot be had.
            NotMade: if the run only looks, and no earlier one fetched it.
        """
        file = remote_file(address)
        path = local_file(file.uri)
        if path is not None:
            return file_on_disk(path, file.uri, file.sha256)
        known = kept_file(file, self.folder)
        if known is not None:
            return known
        if self._run.only_looks:
            return self._fetched_before(file)
        try:
            info = describe(file, self._open_remote, self._settings)
        except DownloadError as error:
            copy = earlier_copy(file, self.folder)
            if copy is None:
                raise
            logger.warning("%s; going on with the copy that was fetched before", error)
            return copy
        num_missing = missing_bytes(file, self.folder, info)
        if num_missing:
            require_space(self.folder, num_missing, self._settings)
            shown = concealed(file.uri)
            logger.info("fetching %s: %s bytes, licence %s", shown, info.num_bytes, info.licence)
        with exclusive(self.folder):
            fetched = fetch(
                file, self.folder, self._open_remote, self._settings, self._report(file.uri)
            )
        num_mib = fetched.num_bytes // _MIB
        self._run.on_progress(_part(file.uri), num_mib, num_mib)
        return fetched

    def _fetched_before(self, file: RemoteFile) -> FetchedFile:
        """Whoever only looks has asked the file's server already whether it is still the same."""
        copy = earlier_copy(file, self.folder)
        if copy is None:
            raise NotMade(f"{file.uri}: is still to be fetched")
        return copy

    def matching(self, address: FileAddress) -> tuple[FileAddress, ...]:
        """See ``addresses.matching``."""
        return matching(self._run.store.storage, address)

    def _report(self, uri: str) -> Callable[[int, int | None], None]:
        reported = [-1]

        def on_bytes(num_done: int, num_bytes: int | None) -> None:
            done = num_done // _MIB
            if done > reported[0]:
                reported[0] = done
                total = None if num_bytes is None else num_bytes // _MIB + 1
                self._run.on_progress(_part(uri), done, total)

        return on_bytes

    def converted(
        self,
        sources: tuple[FetchedFile, ...],
        conversion: Conversion,
        convert: Callable[[Path], None],
    ) -> Path:
        """The folder that a conversion filled, now or earlier.

        Args:
            sources: the files it is made of, in their order.
            conversion: which it is.
            convert: fills an empty folder.

        Raises:
            NotMade: if the run only looks, and no earlier one filled it.
        """
        folder = conversion.folder(self.folder, [source.sha256 for source in sources])
        if folder.is_dir():
            return folder
        if self._run.only_looks:
            raise NotMade(f"{folder}: is still to be written")
        made = folder.with_name(f"{folder.name}.partial")
        with exclusive(self.folder):
            if not folder.is_dir():
                num_bytes = sum(source.num_bytes for source in sources)
                require_space(self.folder, num_bytes, self._settings)
                made.mkdir(parents=True, exist_ok=True)
                convert(made)
                os.replace(made, folder)
        return folder


def file_on_disk(path: Path, uri: str | None = None, sha256: str | None = None) -> FetchedFile:
    """A file of this machine's disk with its digest.

    Args:
        path: where it is.
        uri: how the settings name it, for messages; None if they do not.
        sha256: the digest that it must have; None if it may have any.

    Raises:
        SourceError: if it does not exist, or has another digest.
    """
    if not path.is_file():
        raise SourceError(f"{uri or path}: no such file; check the source's URI")
    digest = digest_file(path)
    if sha256 not in (None, digest):
        raise SourceError(f"{uri or path}: SHA-256 is {digest}, {sha256} expected; replace it")
    return FetchedFile(path, path.stat().st_size, digest)


def _part(uri: str) -> str:
    """What progress is told of while a file is fetched."""
    return f"MiB of {concealed(uri)}"
