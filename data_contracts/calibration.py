"""Settings of calibration: how a new model's heads, sinks, thresholds and branch are looked for."""

from typing import Annotated, Literal

from pydantic import Field

from data_contracts.base import Settings
from data_contracts.training import TrainingConfig

LEAST_SCENES = 12
CalibrationMethod = Literal["boxes", "unsupervised"]
_Positive = Annotated[float, Field(gt=0)]
_PositiveShare = Annotated[float, Field(gt=0, le=1)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Side = Annotated[int, Field(ge=64)]


class BranchTraining(TrainingConfig):
    """Brief training of one candidate branch layer."""

    num_epochs: int = Field(8, gt=0)
    batch_size: int = Field(16, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    """For small models; large ones want what they are trained with."""
    validation_ratio: float = Field(0.3, gt=0, lt=1)


class CalibrationSettings(Settings):
    """How many scenes are shown, and what it takes for a choice to count as an improvement."""

    num_scenes: int = Field(300, ge=LEAST_SCENES)
    """Generated scenes: two thirds choose, in two halves that must agree; quality is reported on
    the rest."""
    questions_per_scene: int = Field(2, ge=1)
    """Most questions about one scene; two show what attention does regardless of the question."""
    print_scale: float = Field(1.0, gt=0)
    """Size of the print in the scenes, as of ``make_scene``: 1 is too small for the model's input,
    as in the pictures that zooming is for."""
    image_size: tuple[_Side, _Side] | None = None
    """(width, height) of every scene, for models whose grid follows the image; None varies it."""
    seed: int = Field(700_000, ge=0)
    """Seed of the first scene; the others follow."""
    max_new_tokens: int = Field(32, gt=0)

    method: CalibrationMethod = "boxes"
    """What chooses heads, sinks and thresholds: label quality against the true boxes, or attention
    alone (see ``calibration.unsupervised``). Quality is reported for both."""

    max_heads: int = Field(4, ge=1)
    """Most grounding heads per question kind."""
    num_head_candidates: int = Field(24, ge=1)
    """Heads that forward selection tries: the best ones by themselves."""
    min_gain: float = Field(0.01, ge=0)
    """Least gain in foreground F1, on both halves, for one more head, a sink rule, or heads of a
    question kind's own."""

    num_unsupervised_heads: int = Field(3, ge=1)
    """Heads that the unsupervised method takes per question kind."""

    num_sink_candidates: int = Field(16, ge=0)
    """Single heads tried as sink heads, besides the mean of every layer."""
    sink_levels: tuple[_Positive, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Sink thresholds tried, as multiples of attention spread evenly over the image."""
    sink_norms: tuple[_Positive, ...] = (1.5, 2.0, 3.0, 5.0, 10.0)
    """Thresholds tried for hidden-state norms, as multiples of the median."""
    num_sink_dimensions: int = Field(2, ge=0)
    """Dimensions of the hidden state that are watched, those with the largest outliers."""
    sink_values: tuple[_Positive, ...] = (5.0, 10.0, 20.0, 40.0)
    """Thresholds tried for the RMS-normalised value at these; VisAttnSink's is 20."""
    planted_sinks: bool = False
    """Also measure every kind of sink rule on attention with sinks planted into it; for models that
    have none of their own."""

    max_question_dependence: float = Field(0.3, ge=0)
    """A signal that changes more than this with the question is no sink; see ``SinkScore``."""

    foreground_thresholds: tuple[_PositiveShare, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
    background_thresholds: tuple[_Share, ...] = (0.02, 0.05, 0.1, 0.15, 0.2)
    min_precision: float = Field(0.8, ge=0, le=1)
    """Least ``overlap_precision`` of labels: the share of foreground cells that are inside the true
    box or that it covers noticeably. Foreground thresholds that fall short are not considered if
    another one reaches it."""
    min_threshold_gain: float = Field(0.02, ge=0)
    """Least gain in label F1, on both halves, for leaving the paper's foreground threshold."""

    exhaustive_heads: int = Field(0, ge=0)
    """Compare with the best of all sets of up to this many heads; 0 does not. The number of sets
    grows with this power of the number of heads: for small models only."""

    rpn_depth: int = Field(3, ge=1)
    """R; fewer where the model is too shallow."""
    num_branch_candidates: int = Field(6, ge=0)
    """Most branch layers tried, evenly spaced; 0 keeps the profile's without trying any."""
    branch_training: BranchTraining = BranchTraining()
    """What branch layers are compared by."""
    branch_tolerance: float = Field(0.01, ge=0)
    """Validation F1 that a lower branch layer may lose against the best one."""
