"""Files that commands write for their user: checked before the work begins, written at its end."""

import errno
import json
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import typer

from data_contracts.errors import SdrpnError
from data_contracts.settings_files import ConfigError
from tasks.storage.local_disk import publish


class NotWritten(SdrpnError):
    """A command's file cannot be written; what it was made of is kept."""


def check_file(path: Path, option: str) -> None:
    """See to it that a file can be written, without writing it or any folder.

    Raises:
        ConfigError: naming the option and the remedy.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a file")
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _probe(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from None


def check_folder(path: Path, option: str) -> None:
    """See to it that files can be written into a folder, which need not exist.

    Raises:
        ConfigError: naming the option and the remedy.
    """
    try:
        _probe(path)
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written to ({error.strerror}); name another folder"
        ) from None


def at_home(path: Path | None) -> Path | None:
    """Callback of options that name a place: ``~`` as the shell, which a quote hides it from."""
    return None if path is None else Path(os.path.expanduser(path))


def file_option(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Callback of options that name a file to write."""
    path = at_home(path)
    if path is not None:
        check_file(path, option.opts[0])
    return path


def folder_option(option: typer.CallbackParam, path: Path) -> Path:
    """Callback of options that name a folder to write to."""
    path = Path(os.path.expanduser(path))
    check_folder(path, option.opts[0])
    return path


def new_folder_option(option: typer.CallbackParam, path: Path) -> Path:
    """Callback of what names a folder to make, or an empty one.

    Raises:
        ConfigError: if there is something in it, which is left as it is.
    """
    path = Path(os.path.expanduser(path))
    given = option.opts[0]
    name = given if given.startswith("-") else given.upper()
    check_folder(path, name)
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{name} {path}: is not empty; name a new folder, or empty it yourself")
    return path


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and the folders it lies in.

    What is no plain file (a link, a pipe, ``/dev/stdout``) is written to and stays what it is.

    Raises:
        NotWritten: naming the file and the reason, say a full disk.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(data)
        else:
            publish(path, data, replace=True)
    except OSError as error:
        raise NotWritten(
            f"{path}: cannot be written ({error.strerror}); mend that, or name another "
            "file, and run again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write plain data, indented."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def _probe(folder: Path) -> None:
    """Write to the folder, or to the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    with TemporaryFile(dir=folder):
        pass
