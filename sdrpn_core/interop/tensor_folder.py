"""Tensors of a safetensors checkpoint folder, read one by one."""

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_contracts.errors import SdrpnError
from data_contracts.json_lines import json_value
from sdrpn_core.device_memory import is_out_of_memory
from sdrpn_core.source_paths import stays_below

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"


class ForeignCheckpointError(SdrpnError):
    """A published checkpoint cannot be read or does not fit; the message says what to do."""


class TensorFolder:
    """A checkpoint folder; the list of tensors is read at once, a tensor when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Find the tensors.

        Raises:
            ForeignCheckpointError: if the folder holds no safetensors, or a damaged index.
        """
        if not path.is_dir():
            raise ForeignCheckpointError(f"{path}: no such folder; download the checkpoint first")
        self.path = path
        self._files = self._located()

    @property
    def names(self) -> Iterable[str]:
        """Every tensor's name."""
        return self._files.keys()

    def config(self) -> dict[str, Any]:
        """The model's configuration.

        Raises:
            ForeignCheckpointError: if it is missing or not JSON.
        """
        return self._json(CONFIG)

    def extra_file(self, name: str) -> bytes | None:
        """Bytes of another file of the folder, or None if it is not there."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors by name; only the files that hold them are opened."""
        by_file = defaultdict(list)
        for name in names:
            by_file[self._files[name]].append(name)
        found: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            with self._open(file) as tensors, self._explained(file):
                found |= {name: tensors.get_tensor(name) for name in wanted}
        return found

    def head(self, name: str, num_rows: int) -> Tensor:
        """First rows of a matrix; all of what has no rows."""
        file = self._files[name]
        with self._open(file) as tensors, self._explained(file):
            matrix = tensors.get_slice(name)
            rows: Tensor = matrix[:num_rows] if matrix.get_shape() else tensors.get_tensor(name)
            return rows

    def _located(self) -> Mapping[str, str]:
        """File of each tensor."""
        if (self.path / INDEX).is_file():
            listed = self._json(INDEX).get("weight_map")
            if not isinstance(listed, dict):
                raise ForeignCheckpointError(
                    f"{self.path / INDEX}: has no weight_map; download it again"
                )
            named = {str(name): str(file) for name, file in listed.items()}
            if odd := [text for pair in named.items() for text in pair if not stays_below(text)]:
                raise ForeignCheckpointError(
                    f"{self.path / INDEX}: names {odd[0]!r}, which no file or tensor is called; "
                    "download it again"
                )
            return named
        files = sorted(file.name for file in self.path.glob("*.safetensors"))
        if not files:
            raise ForeignCheckpointError(f"{self.path}: {self._why_no_tensors()}")
        located: dict[str, str] = {}
        for file in files:
            with self._open(file) as tensors:
                located |= dict.fromkeys(tensors.keys(), file)
        return located

    def _why_no_tensors(self) -> str:
        if any(self.path.glob("*.bin")):
            return (
                "holds weights as .bin pickles, which are not read; save them as safetensors "
                "with the authors' code (save_pretrained) first"
            )
        return "holds no .safetensors file; give the folder of a full-model checkpoint"

    def _open(self, file: str) -> Any:
        path = self.path / Path(file).name
        with self._explained(file):
            if not path.is_file():
                raise ForeignCheckpointError(
                    f"{path}: missing, but the index names it; download it"
                )
            return safe_open(path, framework="pt")

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        """What cannot be read of a file of tensors, or is not in it, as what to do about it."""
        path = self.path / Path(file).name
        try:
            yield
        except (
            SafetensorError,
            RuntimeError,  # torch's
            TypeError,  # of types that torch lacks
            OSError,
            MemoryError,
        ) as error:
            if _is_full_memory(error):
                raise ForeignCheckpointError(
                    f"{path}: there is not enough memory to read it ({error}); free some, or use a "
                    "machine with more"
                ) from None
            raise ForeignCheckpointError(f"{path}: damaged ({error}); download it again") from None

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json_value(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ForeignCheckpointError(f"{path}: missing; download it") from None
        except (ValueError, OSError) as error:
            raise ForeignCheckpointError(
                f"{path}: is not JSON ({error}); download it again"
            ) from None
        if not isinstance(content, dict):
            raise ForeignCheckpointError(f"{path}: is not a JSON object; download it again")
        return content


def _is_full_memory(error: BaseException) -> bool:
    """Of a file that is mapped into memory, torch says so in the system's words only."""
    is_refused_by_system = os.strerror(errno.ENOMEM) in str(error)
    return isinstance(error, MemoryError) or is_refused_by_system or is_out_of_memory(error)
