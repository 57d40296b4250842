"""Drivers of storage services: which one an address needs. No other module knows fsspec's."""

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.storage.errors import BadAddress, StoreError, explain, scheme_of

FileSystem: TypeAlias = fsspec.AbstractFileSystem

HTTP = {"http", "https"}
"""Schemes of servers that list nothing."""
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_PACKAGES = {"hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "abfs": "adlfs"}
_TRIES_OF_S3 = 2
"""Of each request: the client below the driver repeats it as well, and waits in between.

By the driver's own number, 5, a server that is silent is waited for 25 times 15 seconds. What the
client does is for ``config_kwargs`` and AWS's own settings to say."""
_GCS_OVER_GRPC = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"


def is_local(filesystem: FileSystem) -> bool:
    """Whether a driver's files lie on this machine's disk."""
    return isinstance(filesystem, LocalFileSystem)


def connect(uri: str, options: Mapping[str, Any]) -> tuple[FileSystem, str]:
    """The driver for an address, and the address in its notation.

    Raises:
        BadAddress: if there is no such kind of storage.
        StoreError: naming the remedy, if its driver is missing or takes no such options.
    """
    scheme = scheme_of(uri)
    path = uri if os.path.isabs(uri) else uri[7:] if uri.lower().startswith("file://") else None
    if path is not None:  # as it is: fsspec would take '::' in a name for a chain of addresses
        return LocalFileSystem(use_listings_cache=False, **options), path
    try:
        # Listings are cached by default, which would hide what other processes have written.
        options = {"use_listings_cache": False, **options}
        if scheme == "gs" and os.environ.get(_GCS_OVER_GRPC, "").lower() not in ("1", "true"):
            filesystem = _google_driver()(**options)
            path = filesystem._strip_protocol(uri)
        elif scheme in HTTP:
            filesystem, path = _http_driver()(**options), uri
        elif scheme == "s3":
            filesystem = _s3_driver()(**options)
            filesystem.retries = _TRIES_OF_S3
            path = filesystem._strip_protocol(uri)
        else:
            filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        package = f"sdrpn[{_EXTRAS[scheme]}]" if scheme in _EXTRAS else _PACKAGES.get(scheme)
        remedy = f"pip install '{package}'" if package else str(error)
        raise StoreError(f"{uri}: no driver for {scheme}:// is installed; {remedy}") from error
    except Exception as error:
        if scheme.rpartition("::")[2] not in fsspec.available_protocols():
            known = "a folder, file://, memory://, s3:// or gs://"
            raise BadAddress(f"{uri}: {error}; use {known}") from error
        raise StoreError(f"{uri}: {explain(error, uri)}") from error  # say, a token it cannot use
    return filesystem, path


def _http_driver() -> Callable[..., FileSystem]:
    """Loaded only where it is needed: it takes aiohttp."""
    driver: Callable[..., FileSystem]
    driver = importlib.import_module("tasks.storage.http_driver").PatientHTTPFileSystem
    return driver


def _s3_driver() -> Callable[..., FileSystem]:
    """Loaded only where it is needed: it takes s3fs."""
    driver: Callable[..., FileSystem]
    driver = importlib.import_module("tasks.storage.s3_driver").SparingS3FileSystem
    return driver


def _google_driver() -> Callable[..., FileSystem]:
    """The plain one, over HTTP alone.

    The other asks every bucket over gRPC whether it is a zonal one, which with any server but
    Google's takes a minute each time.
    """
    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:  # it logs the trace of every error that it also raises
        logger.setLevel(logging.CRITICAL)
    driver: Callable[..., FileSystem]
    driver = importlib.import_module("gcsfs.core").GCSFileSystem
    return driver
