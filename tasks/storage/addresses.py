"""Addresses of roots and keys, such that they mean the same everywhere and lead nowhere else."""

import os
import re
from pathlib import Path

from data_contracts.addresses import REMEDY, holds_credentials
from sdrpn_core.source_paths import is_unicode
from tasks.storage.errors import BadAddress, StoreError, scheme_of

_WITH_BUCKETS = ("s3", "gs")


def absolute_uri(path: str) -> str:
    """A path that means the same in every working directory; URIs stay as they are."""
    return path if "://" in path else str(absolute_path(path))


def absolute_path(path: str) -> Path:
    """A path that means the same in every working directory and leads through no folder in vain.

    Up to its last ``..`` links are followed, as ``..`` of a link is the folder above what it links
    to; after it, and in paths without, they stay: data is linked into place.
    """
    whole = Path(os.path.expanduser(path)).absolute()  # of nobody's home, it stays as it is
    if ".." not in whole.parts:
        return whole
    num_after = whole.parts[::-1].index("..")
    end = len(whole.parts) - num_after
    return Path(os.path.realpath(Path(*whole.parts[:end])), *whole.parts[end:])


def kept_address(address: str) -> str:
    """An address that can be kept: ids digest it, rows and JSON hold it as text.

    Raises:
        StoreError: if it is a path that is no text, as its name is in another encoding.
    """
    if not is_unicode(address):
        raise StoreError(
            f"{address!r}: this path is not in UTF-8, so that nothing can refer to it; rename "
            "what is written with \\udc.., or link to it under another name"
        )
    return address


def folder_and_name(uri: str) -> tuple[str, str]:
    """What lies at an absolute address as a root and a key below it."""
    folder, _, name = uri.rpartition("/")
    return folder or "/", name


def absolute_root(root: str) -> str:
    """The root such that it means the same in every process, whatever its working directory.

    Raises:
        BadAddress: if it is empty, a URI without its slashes or bucket, or one with a password.
    """
    if holds_credentials(root):
        raise BadAddress(f"{root}: the address {REMEDY}")
    if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+:(?!//)", root):
        raise BadAddress(f"{root}: looks like a URI but lacks '://'; write it as scheme://path")
    scheme = scheme_of(root)
    if scheme in _WITH_BUCKETS and not root.partition("://")[2].strip("/"):
        raise BadAddress(f"{root}: names no bucket; write it as {scheme}://bucket/prefix")
    if scheme != "file":
        return root
    path = root.partition("://")[2] if "://" in root else root
    if not path:
        raise BadAddress(f"{root!r}: the store's root is empty; name a folder or a URI")
    return absolute_uri(path)


def checked_key(key: str) -> str:
    """A key that is a path below the root.

    Raises:
        StoreError: if it is not.
    """
    if not key or key.startswith("/") or "\\" in key or {"", ".", ".."} & set(key.split("/")):
        raise StoreError(f"{key!r} is not a path below the store's root: use a/b/c without '..'")
    return key


def quoted(name: str) -> str:
    """A file's name such that nothing in it means something else in a URL.

    The driver quotes all other signs, so that they stay as they are in addresses.
    """
    return name.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
