"""A trained RPN as files: weights, configuration, model card and training log.

The files hold no time stamps, paths of the training machine or pickles; equal training gives equal
bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, field_serializer, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from data_contracts.base import Settings
from data_contracts.configs import ConfigError, parse_settings
from data_contracts.errors import SdrpnError
from data_contracts.interop import ImportedFrom
from data_contracts.json_lines import json_lines
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.training import TrainingConfig
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.data import DatasetSizes
from sdrpn_core.rpn.model_card import render_model_card
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.rpn.score_calibration import ScoreCalibration
from sdrpn_core.rpn.threshold import Calibration, CellQuality

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD, METRICS = "rpn.safetensors", "config.json", "README.md", "metrics.jsonl"


class CheckpointError(SdrpnError):
    """An RPN checkpoint cannot be read or does not fit the model."""


class ValidationSummary(Settings):
    """Quality on the validation images at the end of training."""

    loss: float
    calibration: Calibration
    """Of the plain sigmoid."""
    calibrated: Calibration | None = None
    """Of calibrated scores, each half of the images judged with the other half's fit; None where
    there was too little to split."""
    chosen: CellQuality
    """At the chosen threshold, on smoothed maps."""
    sweep: tuple[CellQuality, ...]
    """At every threshold that was tried."""


class RpnConfig(Settings):
    """Everything needed to use an RPN, and how it came about."""

    format_version: int
    profile: ModelProfile
    """The frozen model: a checkpoint needs no profile file beside it. How others would train an RPN
    of it is not kept; ``training`` is what this one was trained with."""
    shape: RpnShape
    dtype: str
    """Precision of the weights."""
    threshold: float = Field(ge=0, le=1)
    """Region threshold, chosen on validation images of the training data."""
    regions: RegionSettings
    """Region settings that the threshold was chosen for."""
    score_calibration: ScoreCalibration = ScoreCalibration()
    """RoI logits -> probabilities, fitted on the validation images."""
    training: TrainingConfig | None = None
    label_set: str | None = None
    """``merge-labels/<id>`` that the network was trained on."""
    data: DatasetSizes | None = None
    validation: ValidationSummary | None = None
    imported: ImportedFrom | None = Field(None, exclude_if=lambda origin: origin is None)
    """Where a network comes from that was not trained here; such a one has no training, label set,
    data and validation."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        trained = (self.training, self.label_set, self.data, self.validation)
        if any((part is None) == (self.imported is None) for part in trained):
            raise ValueError(
                "training, label_set, data and validation belong to a trained RPN, and only there"
            )
        return self

    @field_serializer("profile")
    def _profile_without_recipe(self, profile: ModelProfile) -> dict[str, Any]:
        return profile.model_dump(mode="json", exclude={"training"})

    @field_serializer("training")
    def _without_resume_points(self, training: TrainingConfig | None) -> dict[str, Any] | None:
        return None if training is None else recipe_settings(training)

    @field_serializer("regions")
    def _regions_as_identity(self, regions: RegionSettings) -> dict[str, Any]:
        return regions.identity()

    @property
    def measured(self) -> ValidationSummary:
        """Quality at the end of training.

        Raises:
            CheckpointError: for an imported RPN, which was not measured.
        """
        if self.validation is None:
            raise CheckpointError("an imported RPN has no validation figures: evaluate it instead")
        return self.validation

    @property
    def origin(self) -> str:
        """In a few words, what it was trained on and how well it learnt that."""
        beside = f"of {self.profile.name}"
        if self.data is None or self.validation is None:
            return f"{beside}, trained elsewhere"
        return (
            f"{beside}, trained on {self.data.num_train} questions, "
            f"F1 {self.validation.chosen.f1:.2f} on held-out labels{self._own_regions}"
        )

    @property
    def _own_regions(self) -> str:
        """Region settings that differ from the preset ``default``."""
        default = RegionSettings.preset("default").model_dump(mode="json")
        own = self.regions.model_dump(mode="json")
        differing = [
            f"{key} {json.dumps(value)}" for key, value in own.items() if value != default[key]
        ]
        return f", regions with {', '.join(differing)}" if differing else ""


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
        except SafetensorError as error:
            raise CheckpointError(
                f"{origin}: {WEIGHTS} is damaged ({error}); copy it anew"
            ) from None
        return cls(config, state, tuple(json_lines(files.get(METRICS, b""))))

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


def recipe_settings(config: TrainingConfig) -> dict[str, Any]:
    """Settings that decide what is learnt, as plain JSON: all but how often progress is kept."""
    return config.model_dump(mode="json", exclude={"checkpoint_every"})


def network_state(network: RegionProposalNetwork) -> dict[str, Tensor]:
    """Parameters by name, contiguous and on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def weights_digest(network: RegionProposalNetwork) -> str:
    """Digest of every parameter."""
    return hashlib.sha256(save_safetensors(network_state(network))).hexdigest()


def load_parameters(network: RegionProposalNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy parameters into a network.

    Raises:
        CheckpointError: naming the first parameter that is missing, unknown or of another shape.
    """
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() - state.keys()):
        raise CheckpointError(f"{WEIGHTS}: parameter {missing[0]} is missing; {_REMEDY}")
    if unknown := sorted(state.keys() - wanted.keys()):
        raise CheckpointError(f"{WEIGHTS}: parameter {unknown[0]} is not known; {_REMEDY}")
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise CheckpointError(
                f"{WEIGHTS}: parameter {name} is {tuple(state[name].shape)}, the model needs "
                f"{tuple(value.shape)}; {_REMEDY}"
            )
    network.load_state_dict(dict(state))


def metrics_to_jsonl(metrics: tuple[dict[str, Any], ...]) -> bytes:
    """One line per entry."""
    return "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in metrics).encode()


_REMEDY = "use the checkpoint with the model and RPN shape it was trained for"


def read_config(data: bytes, origin: str) -> RpnConfig:
    """Read the configuration of an RPN.

    Raises:
        CheckpointError: naming the key and the remedy.
    """
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{origin}: {CONFIG} is not JSON ({error}); copy it anew") from None
    version = plain.get("format_version") if isinstance(plain, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{origin}: {CONFIG} has format_version {version}, this release reads "
            f"{FORMAT_VERSION}; install the release of sdrpn that made it"
        )
    try:
        return parse_settings(RpnConfig, plain, f"{origin}: {CONFIG}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _check_profile(trained: ModelProfile, loaded: ModelProfile) -> None:
    """Refuse another model. Its source may differ: a local copy is as good as the hub's."""
    for field in ("name", "family", "num_layers", "num_heads", "prompt", "images", "rpn"):
        theirs, ours = getattr(trained, field), getattr(loaded, field)
        if theirs != ours:
            raise CheckpointError(
                f"the RPN was trained for profile {trained.name!r} with {field} {theirs!r}, the "
                f"loaded model has {ours!r}: load the model with the checkpoint's profile"
            )


def torch_dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return re.sub(r"^torch\.", "", str(dtype))
