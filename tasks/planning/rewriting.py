"""How much of a run's files is still to be rewritten in a form that can be read in ranges."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from data_contracts.sources import RemoteFile
from tasks.fetching.addresses import local_file
from tasks.fetching.kept_files import earlier_copy
from tasks.planning.wanted_files import Rewriting, WantedFile
from tasks.storage.digests import digest_file

READ_LIMIT = 16 << 30
"""Bytes that are read only to tell what is there already; about a minute from a disk."""


def bytes_to_rewrite(
    wanted: Sequence[WantedFile],
    sizes: Mapping[str, int],
    here: Collection[str],
    downloads: Path,
) -> Counter[str]:
    """Bytes of each address that are still to be kept a second time, or more often.

    Args:
        wanted: all files.
        sizes: by address, where they are known.
        here: addresses of which nothing is to be fetched.
        downloads: where fetched and rewritten files are kept.
    """
    files = {item.file.uri: item.file for item in wanted}
    found: Counter[str] = Counter()
    for rewriting in _different(wanted):
        is_here = all(uri in here for uri in rewriting.uris)
        if is_here and _is_made(rewriting, files, sizes, downloads):
            continue
        found.update({uri: sizes.get(uri, 0) for uri in rewriting.uris})
    return found


def _different(wanted: Iterable[WantedFile]) -> list[Rewriting]:
    """Two sources may have the same files rewritten in the same way."""
    found: list[Rewriting] = []
    for item in wanted:
        if item.rewriting is not None and item.rewriting not in found:
            found.append(item.rewriting)
    return found


def _is_made(
    rewriting: Rewriting, files: Mapping[str, RemoteFile], sizes: Mapping[str, int], downloads: Path
) -> bool:
    """Whether an earlier run rewrote the files as they are now.

    What would take too much reading counts as not made.
    """
    if not rewriting.conversion.was_ever_made(downloads):
        return False
    local = [uri for uri in rewriting.uris if local_file(uri) is not None]
    if sum(sizes.get(uri, 0) for uri in local) > READ_LIMIT:
        return False
    digests = [_digest(files[uri], downloads) for uri in rewriting.uris]
    known = [digest for digest in digests if digest is not None]
    return known == digests and rewriting.conversion.folder(downloads, known).is_dir()


def _digest(file: RemoteFile, downloads: Path) -> str | None:
    """Of the file as it is on this machine's disk."""
    path = local_file(file.uri)
    if path is not None:
        return file.sha256 or digest_file(path)
    copy = earlier_copy(file, downloads)
    return None if copy is None else copy.sha256
