"""Choice of the branch layer B: brief RPN trainings, one per candidate, on the calibrated labels.

A probe of frozen attention cannot decide this: the last prompt token may not look at the region at
all before training (a model that first repeats the question answers its first words blind), yet the
RPN learns to in a hundred steps. So each candidate is trained as it will be, only shorter, and
judged on images it was not trained on. B is about neutral in cost, unless the image is withdrawn: a
layer more before the branch is one more in the first stage and one whose prefix the second stage
need not compute again.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from data_contracts.base import Settings
from data_contracts.calibration import CalibrationSettings
from data_contracts.profiles import ModelProfile, RpnShape
from sdrpn_core.calibration.examples import CalibrationExample
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.rpn.data import TrainingExample
from sdrpn_core.rpn.training import train_rpn

_CACHE_BYTES = 4 * 2**30


class BranchScore(Settings):
    """An RPN trained briefly from one branch layer."""

    branch_layer: int
    f1: float
    """F1 of cells on validation images, at the best threshold."""
    auc: float
    is_kept: bool = False


class ComparedBranches(Settings):
    """Candidates that have been trained: a comparison that is stopped goes on from here."""

    labels_sha256: str
    """Digest of the labels that the candidates were trained on: scores on other labels would not
    compare."""
    scores: tuple[BranchScore, ...] = ()


def branch_candidates(
    profile: ModelProfile,
    settings: CalibrationSettings,
    *,
    lowest: int = 1,
    having_heads: Collection[int] | None = None,
) -> tuple[int, ...]:
    """Branch layers to try, rising; as many as wanted, evenly spaced, both ends included.

    Args:
        profile: of the model.
        settings: how many to try.
        lowest: first layer that the model allows, at least 1.
        having_heads: layers that an RPN may end with; None for all. Branches that would end it
            elsewhere give way to the nearest that do not.
    """
    depth = rpn_depth(profile, settings)
    highest = profile.num_layers - depth
    allowed = [
        layer
        for layer in range(lowest, highest + 1)
        if having_heads is None or layer + depth - 1 in having_heads
    ]
    count = min(settings.num_branch_candidates, len(allowed))
    places = np.linspace(lowest, highest, count).tolist()
    return tuple(sorted({nearest(allowed, round(place)) for place in places}))


def branches_of(adapter: ModelAdapter, settings: CalibrationSettings) -> tuple[int, ...]:
    """Branch layers to try of a loaded model, which may add image features to its first layers."""
    return branch_candidates(
        adapter.profile,
        settings,
        lowest=max(1, adapter.num_deepstack_layers),
        having_heads=adapter.decoder.attention_layers,
    )


def nearest(layers: Sequence[int], wanted: int) -> int:
    """The layer that is nearest to the wanted one; of two, the lower."""
    return min(layers, key=lambda layer: (abs(layer - wanted), layer))


def rpn_depth(profile: ModelProfile, settings: CalibrationSettings) -> int:
    """R as wanted, or what leaves at least one frozen layer."""
    return min(settings.rpn_depth, profile.num_layers - 1)


def compare_branches(
    adapter: ModelAdapter,
    examples: Sequence[CalibrationExample],
    labels: Sequence[np.ndarray],
    settings: CalibrationSettings,
    *,
    batch_size: int,
    earlier: ComparedBranches | None = None,
    on_branch: Callable[[ComparedBranches], None] | None = None,
) -> list[BranchScore]:
    """Train from every candidate branch layer; the kept one is the lowest that is good enough.

    Args:
        adapter: the frozen model.
        examples: questions.
        labels: (h, w) pseudo-label of each, as label making gives it.
        settings: what to try and how to train.
        batch_size: examples per backward pass.
        earlier: what a comparison that was stopped came to; candidates that it trained on the same
            labels are not trained again.
        on_branch: told about all candidates so far after each one.
    """
    pictures = ((str(example.image_index), example.request.image) for example in examples)
    images = {name: picture for name, picture in pictures if picture is not None}
    training = [
        TrainingExample(
            question_id=f"{index:06d}",
            image_uri=str(example.image_index),
            image_key=str(example.image_index),
            question=example.request.question,
            labels=label,
        )
        for index, (example, label) in enumerate(zip(examples, labels, strict=True))
    ]
    compared = ComparedBranches(labels_sha256=_digest(labels))
    if earlier is not None and earlier.labels_sha256 == compared.labels_sha256:
        compared = earlier
    for branch_layer in branches_of(adapter, settings)[len(compared.scores) :]:
        checkpoint = train_rpn(
            adapter,
            training,
            lambda example: images[example.image_uri],
            settings.branch_training,
            shape=_shape(adapter.profile, branch_layer, settings),
            regions=adapter.profile.regions,
            label_set="calibration",
            micro_batch_size=batch_size,
            cache_bytes=_CACHE_BYTES,
        )
        validation = checkpoint.config.measured
        score = BranchScore(
            branch_layer=branch_layer,
            f1=validation.chosen.f1,
            auc=validation.calibration.auc,
        )
        compared = compared.model_copy(update={"scores": (*compared.scores, score)})
        if on_branch is not None:
            on_branch(compared)
    return _with_choice(compared.scores, settings.branch_tolerance)


def _digest(labels: Sequence[np.ndarray]) -> str:
    total = hashlib.sha256()
    for label in labels:
        total.update(np.ascontiguousarray(label, dtype=np.int8).tobytes())
    return total.hexdigest()


def chosen_shape(
    profile: ModelProfile, scores: Sequence[BranchScore], settings: CalibrationSettings
) -> RpnShape:
    """The profile's shape at the kept branch layer, or as it was if none was tried."""
    kept = [score.branch_layer for score in scores if score.is_kept]
    return _shape(profile, kept[0], settings) if kept else profile.rpn


def _shape(profile: ModelProfile, branch_layer: int, settings: CalibrationSettings) -> RpnShape:
    depth = rpn_depth(profile, settings)
    return profile.rpn.model_copy(update={"branch_layer": branch_layer, "depth": depth})


def _with_choice(scores: Sequence[BranchScore], tolerance: float) -> list[BranchScore]:
    best = max((score.f1 for score in scores), default=0.0)
    kept = next((s.branch_layer for s in scores if s.f1 >= best - tolerance), None)
    return [s.model_copy(update={"is_kept": s.branch_layer == kept}) for s in scores]
