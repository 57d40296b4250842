"""How a run is executed (``RuntimeConfig``): never part of an artifact's identity."""

from typing import Any

from pydantic import Field

from data_contracts.base import Settings


class DownloadSettings(Settings):
    """How files are fetched from elsewhere."""

    folder: str | None = None
    """Local folder that keeps fetched files; None is ``.downloads`` in a local store, else the
    user's cache folder."""
    num_connections: int = Field(4, gt=0, le=64)
    """Ranges of one file that are fetched side by side."""
    part_mib: float = Field(16.0, gt=0)
    """Size of a range; at most one per connection is lost when a download is stopped."""
    connect_timeout: float = Field(10.0, gt=0)
    read_timeout: float = Field(60.0, gt=0)
    """Seconds without a byte, or with less than 1 KiB each on average, after which a connection
    counts as lost."""
    max_attempts: int = Field(6, gt=0)
    """Failures in a row, without a byte gained, after which an address is given up."""
    first_wait: float = Field(1.0, ge=0)
    """Seconds before the second attempt; doubles with each failure."""
    max_wait: float = Field(600.0, ge=0)
    """Longest pause that a server may ask for; one that asks for more is given up."""
    free_gib: float = Field(2.0, ge=0)
    """Disk space that a download must leave free."""


class RaySettings(Settings):
    """Shards on a Ray cluster; needs the ``ray`` extra, a run under Prefect, and a store and
    sources that every machine reaches."""

    address: str | None = None
    """``ray://head:10001``, or ``auto`` on a machine of the cluster; None starts one here."""
    cpus_per_shard: float = Field(1.0, ge=0)
    gpus_per_shard: float = Field(0.0, ge=0)
    """What a shard occupies: Ray makes as many side by side as its machines have room for."""


class RuntimeConfig(Settings):
    """How to run: never part of an artifact's identity."""

    store: str = "artifacts"
    """URI of the artifact store: a folder, ``s3://...``, ``gs://...``, ``memory://...``."""
    storage_options: dict[str, Any] = {}
    """Passed to fsspec, for example ``{endpoint_url: ...}``; keep secrets in the environment."""
    device: str = "auto"
    """Torch device of the model; ``auto`` takes the first GPU, else the CPU."""
    device_map: str | dict[str, int | str] | None = None
    """Spread one model over several devices: ``auto``, ``balanced``, ``sequential``, or module ->
    device. Needs the ``multi-gpu`` extra (accelerate); ``device`` is then not used."""
    batch_size: int = Field(32, gt=0)
    """Questions that pass through the model together; lower it if memory runs out. Ids of artifacts
    do not depend on it, numbers in them do in their last digits."""
    feature_cache_gib: float = Field(4.0, ge=0)
    """Host memory for frozen hidden states kept between training epochs; 0 computes them anew."""
    num_threads: int | None = Field(None, gt=0)
    downloads: DownloadSettings = DownloadSettings()
    gpu_hour_price: float = Field(1.0, ge=0)
    """What an hour of one GPU costs, in any currency; for the plan of a dry run."""
    num_workers: int = Field(1, gt=0)
    """Shards, of attention extraction and of evaluation for instance, that are made at the same
    time, each in a process of its own; one per GPU is usual."""
    ray: RaySettings | None = None
    """Make shards on a Ray cluster rather than in ``num_workers`` processes here."""
