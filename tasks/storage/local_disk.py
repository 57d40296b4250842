"""Files on a local disk that appear whole or not at all, and what is known of them."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_FORBIDDEN = "forbidden"
"""Version of a file that may not be read."""
_NUM_TRIES = 3


def publish(path: Path, data: bytes, *, replace: bool) -> None:
    """Make a file appear whole, and stay after a power cut.

    Raises:
        FileExistsError: if the name is taken, unless that file is to be replaced.
    """
    for _ in range(_NUM_TRIES - 1):
        # Another run of the same stage, which is ahead, may be deleting the folder.
        with contextlib.suppress(FileNotFoundError):
            return _publish(path, data, replace)
    return _publish(path, data, replace)


def _publish(path: Path, data: bytes, replace: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(path.parent)) from error
    partial = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(partial, path)
        else:
            _link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def publish_copy(path: Path, source: Path, may_link: bool) -> None:
    """Make a copy of a file appear whole, without bytes of its own if it may be a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
    try:
        if may_link:
            with contextlib.suppress(OSError):  # another disk, or one without links: copy
                os.link(source, partial)
        if not partial.exists():
            shutil.copyfile(source, partial)
            sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def facts(path: str) -> dict[str, Any] | None:
    """Size, time and version of a file, links followed; None if there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return {"size": 0, "etag": _FORBIDDEN}  # it may exist; reading it will say
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return None  # no file can be there
        raise
    if not stat.S_ISREG(found.st_mode):
        return None
    # A file that becomes readable keeps its time, but is another to whoever could not read it.
    version = {} if may_read(path) else {"etag": _FORBIDDEN}
    return {"size": found.st_size, "mtime": found.st_mtime, **version}


def may_read(path: str) -> bool:
    """Whether this process, by its present rights, may read a file."""
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.R_OK, effective_ids=effective)


def _link(partial: Path, path: Path) -> None:
    """Like rename, but fails with FileExistsError if the name is taken."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here: whole still, though the last of two racing writers wins.
        os.replace(partial, path)


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
