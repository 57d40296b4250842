"""A trained RPN as files: weights, configuration, model card and training log.

The files hold no time stamps, paths of the training machine or pickles; equal training gives equal
bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from data_contracts.json_lines import json_lines
from data_contracts.profiles import ModelProfile
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.checkpoint_files import (
    CARD,
    CONFIG,
    METRICS,
    WEIGHTS,
    CheckpointError,
    metrics_to_jsonl,
)
from sdrpn_core.rpn.config import RpnConfig, read_config
from sdrpn_core.rpn.model_card import render_model_card
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.parameters import load_parameters


@dataclass(frozen=True)
class RpnCheckpoint:
    """A trained RPN, apart from the model it belongs to."""

    config: RpnConfig
    state: dict[str, Tensor]
    """Parameters by name, on the CPU."""
    metrics: tuple[dict[str, Any], ...] = ()
    """Training log: one entry per step and per validation."""

    def to_files(self) -> dict[str, bytes]:
        """Bytes of every file by name."""
        return {
            WEIGHTS: save_safetensors(self.state),
            CONFIG: (self.config.model_dump_json(indent=2) + "\n").encode(),
            CARD: render_model_card(self.config).encode(),
            METRICS: metrics_to_jsonl(self.metrics),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], origin: str = "checkpoint") -> "RpnCheckpoint":
        """Read the files back.

        Args:
            files: bytes by name; the model card and the training log may be missing.
            origin: what error messages call the checkpoint.

        Raises:
            CheckpointError: naming the file or key and the remedy.
        """
        if missing := [name for name in (WEIGHTS, CONFIG) if name not in files]:
            raise CheckpointError(f"{origin}: no {missing[0]}; give the folder of a trained RPN")
        config = read_config(files[CONFIG], origin)
        try:
            state = load_safetensors(files[WEIGHTS])
        except (SafetensorError, KeyError, TypeError) as error:  # types and sizes torch lacks too
            raise CheckpointError(
                f"{origin}: {WEIGHTS} is damaged ({error}); copy it anew"
            ) from None
        try:
            metrics = tuple(json_lines(files.get(METRICS, b"")))
        except ValueError as error:
            raise CheckpointError(
                f"{origin}: {METRICS} is damaged ({error}); copy it anew, or delete it: answering "
                "does not need it"
            ) from None
        return cls(config, state, metrics)

    @classmethod
    def load_directory(cls, path: str | Path) -> "RpnCheckpoint":
        """Read a checkpoint from a local folder.

        Raises:
            CheckpointError: naming the folder or file and the remedy.
        """
        names = (WEIGHTS, CONFIG, METRICS)
        found = [Path(path) / name for name in names if (Path(path) / name).is_file()]
        return cls.from_files({file.name: file.read_bytes() for file in found}, str(path))

    def build(self, adapter: ModelAdapter) -> RegionProposalNetwork:
        """The network, beside the model it was trained for, in the model's precision.

        Raises:
            CheckpointError: if the model or the parameters do not fit.
        """
        _check_profile(self.config.profile, adapter.profile)
        network = RegionProposalNetwork.from_adapter(adapter, self.config.shape)
        load_parameters(network, self.state)
        return network.set_precision(adapter.dtype).requires_grad_(False)


def _check_profile(trained: ModelProfile, loaded: ModelProfile) -> None:
    """Refuse another model. Its source may differ: a local copy is as good as the hub's."""
    for field in ("name", "family", "num_layers", "num_heads", "prompt", "images", "rpn"):
        theirs, ours = getattr(trained, field), getattr(loaded, field)
        if theirs != ours:
            raise CheckpointError(
                f"the RPN was trained for profile {trained.name!r} with {field} {theirs!r}, the "
                f"loaded model has {ours!r}: load the model with the checkpoint's profile"
            )
