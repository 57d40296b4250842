"""Configuration of a trained RPN: everything needed to use it, and how it came about."""

import json
from typing import Any, Self

from pydantic import Field, field_serializer, model_validator

from data_contracts.base import Settings
from data_contracts.interop import ImportedFrom
from data_contracts.json_lines import json_value
from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import ModelProfile, RpnShape
from data_contracts.settings_files import ConfigError, parse_settings
from data_contracts.training import TrainingConfig
from data_contracts.wording import counted
from sdrpn_core.rpn.checkpoint_files import CONFIG, CheckpointError
from sdrpn_core.rpn.data import DatasetSizes
from sdrpn_core.rpn.score_calibration import ScoreCalibration
from sdrpn_core.rpn.threshold import Calibration, CellQuality
from sdrpn_core.source_paths import is_unicode

FORMAT_VERSION = 1


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
    of it, and ask it, is not kept: ``training`` and ``regions`` are this one's."""
    shape: RpnShape
    dtype: str
    """Precision of the weights."""
    threshold: float = Field(ge=0, le=1)
    """Region threshold, chosen on validation images of the training data."""
    regions: RegionSettings
    """Region settings that the threshold was chosen for, and answering keeps to."""
    score_calibration: ScoreCalibration = ScoreCalibration()
    """RoI logits -> probabilities, fitted on the validation images."""
    training: TrainingConfig | None = None
    label_set: str | None = None
    """``merge-labels/<id>`` that the network was trained on."""
    data: DatasetSizes | None = None
    validation: ValidationSummary | None = None
    shares_experts: bool = Field(False, exclude_if=lambda shares: not shares)
    """The copied layers call the frozen model's experts and routers: the weights have none."""
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
    def _profile_as_identity(self, profile: ModelProfile) -> dict[str, Any]:
        return profile.identity()

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
            f"{beside}, trained on {counted(self.data.num_train, 'question')}, "
            f"F1 {self.validation.chosen.f1:.2f} on held-out labels{self._own_regions}"
        )

    @property
    def _own_regions(self) -> str:
        """Region settings that differ from the preset ``default``."""
        own = self.regions.beyond(RegionSettings.preset("default"))
        differing = [f"{key} {json.dumps(value)}" for key, value in own.items()]
        return f", regions with {', '.join(differing)}" if differing else ""


def recipe_settings(config: TrainingConfig) -> dict[str, Any]:
    """Settings that decide what is learnt, as plain JSON: all but how often progress is kept."""
    return config.model_dump(mode="json", exclude={"checkpoint_every"})


def read_config(data: bytes, origin: str) -> RpnConfig:
    """Read the configuration of an RPN.

    Raises:
        CheckpointError: naming the key and the remedy.
    """
    try:
        plain = json_value(data)
    except ValueError as error:
        raise CheckpointError(f"{origin}: {CONFIG} is not JSON ({error}); copy it anew") from None
    if not is_unicode(json.dumps(plain, ensure_ascii=False)):
        raise CheckpointError(f"{origin}: {CONFIG} is not valid Unicode; copy it anew")
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
