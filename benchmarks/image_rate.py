"""Images a second from a folder, a zip and a tar: ``python -m benchmarks.image_rate``.

The yardstick is a loop over the folder that opens each file with Pillow and converts it to RGB. The
others read as extraction and training do: the member's bytes where they lie, digest checked, one
decode path. Times are CPU time of one thread; the order of images is random.
"""

import argparse
import hashlib
import io
import random
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from data_contracts.sources import ImageArchive
from tasks.artifacts.store import ArtifactStore
from tasks.sources.files import load_image
from tasks.sources.image_places import Archive, archive_addresses
from tasks.storage.storage import Storage

Addresses = dict[str, str]


def write_images(folder: Path, number: int) -> dict[str, str]:
    """Photograph-like JPEGs in a folder, a zip and a tar; returns the digest of each."""
    rng = np.random.default_rng(0)
    digests = {}
    (folder / "images").mkdir()
    with (
        zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as zipped,
        tarfile.open(folder / "images.tar", "w") as tarred,
    ):
        for index in range(number):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            name, data = f"{index:05d}.jpg", buffer.getvalue()
            path = folder / "images" / name
            path.write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
            zipped.write(path, name)
            tarred.add(path, name)
    return digests


def addresses_in(archive: Path, names: Iterable[str]) -> Addresses:
    """Where each image lies in an archive."""
    storage = Storage(str(archive.parent))
    where = Archive(str(archive), str(archive), storage, archive.name, (), None)
    return archive_addresses(where, ImageArchive(file=str(archive)), set(names), str(archive))


def rate(read: Callable[[str], object], names: list[str]) -> float:
    """Images per CPU second, the best of three rounds."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for name in names:
            read(name)
        best = min(best, time.process_time() - start)
    return len(names) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    number = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digests = write_images(folder, number)
        names = random.Random(0).sample(sorted(digests), number)
        store = ArtifactStore(f"{folder}/store")
        start = time.process_time()
        places = {
            "folder": {key: f"{folder}/images/{key}" for key in names},
            "zip": addresses_in(folder / "images.zip", names),
            "tar": addresses_in(folder / "images.tar", names),
        }
        index_seconds = time.process_time() - start
        plain = rate(lambda key: Image.open(folder / "images" / key).convert("RGB"), names)
        print(f"{number} JPEGs of 640 x 480, both archives listed in {index_seconds:.2f} CPU s")
        print(f"{'Pillow on the folder':<24}{plain:6.0f} images/s")
        for kind, where in places.items():
            found = rate(lambda key, w=where: load_image(store, w[key], digests[key]), names)  # type: ignore[misc]
            print(f"{kind:<24}{found:6.0f} images/s  {found / plain:5.2f} of the yardstick")


if __name__ == "__main__":
    main()
