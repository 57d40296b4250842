"""Attention maps -> pseudo-labels: denoising, foreground, box, background, ambiguity, rejection.

One batched implementation serves every setting, the reference's two variants included. Shapes:
N samples, h x w grid cells. Boxes are half-open grid boxes (x0, y0, x1, y1).

The rule, per sample, with g the grounding map after sinks and padding are set to 0:

* foreground: g > foreground_ratio_threshold * max(g); if so set, only what is connected to the
  maximum (8 neighbours);
* box: the foreground's bounding box, plus a margin;
* background: outside the box and g < background_ratio_threshold * max(g), plus masked padding;
* everything else is ambiguous and ignored; a rejected sample is ignored as a whole.

The first of these is ``sdrpn_core/denoising.py``'s. Comparisons are made in float64: a float32
product of threshold and maximum rounds, and decides differently from the reference on cells that
lie on a threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_contracts.enums import LabelStatus, RoiLabel
from data_contracts.label_settings import LabelSettings
from sdrpn_core.denoising import DenoisedMaps, denoise
from sdrpn_core.filters import Array

STAGE_VERSION = 2
"""Raise when the same maps and settings give other labels."""

_STATUSES = (
    LabelStatus.OK,
    LabelStatus.NO_ATTENTION,
    LabelStatus.NO_FOREGROUND,
    LabelStatus.WEAK_ATTENTION,
    LabelStatus.BOX_TOO_LARGE,
    LabelStatus.AMBIGUOUS,
)


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Labels of a batch of N samples on one h x w grid."""

    labels: NDArray[np.int8]
    """(N, h, w) of ``RoiLabel``: 1 foreground, 0 background, -100 ignore."""
    status: tuple[LabelStatus, ...]
    """Per sample; anything but ``OK`` is ignored as a whole. The first that applies of:
    NO_ATTENTION (the map is zero or not finite), NO_FOREGROUND (nothing is left after denoising),
    WEAK_ATTENTION (maximum below ``min_max_attention``), BOX_TOO_LARGE, AMBIGUOUS (another region
    within ``max_rival_ratio`` of the strongest)."""
    boxes: NDArray[np.int32]
    """(N, 4) half-open grid box of the foreground, margin included; -1 four times if there is no
    foreground. Samples rejected as weak or too large keep theirs, to show why."""
    num_foreground: NDArray[np.int32]
    """(N,) cells; the three counts sum to h * w."""
    num_background: NDArray[np.int32]
    num_ignore: NDArray[np.int32]
    max_attention: NDArray[np.float32]
    """(N,) strongest cell after denoising; 0 for maps that are not finite."""
    sink_mask: NDArray[np.bool_]
    """(N, h, w) cells taken for attention sinks."""
    content_mask: NDArray[np.bool_]
    """(N, h, w) cells that show the image; all of them where padding is not masked."""


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """What would be trained if denoising stopped after this step; masks are (N, h, w)."""

    name: str
    """``threshold``, ``padding``, ``sinks``, ``region``, ``ambiguity`` or ``rivals``; each includes
    the ones before."""
    foreground: NDArray[np.bool_]
    background: NDArray[np.bool_]
    """All that is not foreground before the last step; afterwards only the unambiguous cells."""


def make_pseudo_labels(
    grounding: Array,
    sink: Array | None,
    settings: LabelSettings,
    image_sizes: Array | None = None,
) -> PseudoLabels:
    """Turn a batch of grounding maps into pseudo-labels.

    Args:
        grounding: (N, h, w) attention of the response to the image tokens, not negative.
        sink: (N, h, w) sink signal; None if the model has none for this kind of question. A cell
            whose signal is not a number counts as a sink.
        settings: thresholds; see ``LabelSettings.preset``.
        image_sizes: (N, 2) ints, (width, height) of images that were padded to a square before they
            were laid on the grid; or (N, 4), ``Letterbox.placement`` of each; None where nothing
            was padded (the image fills its grid).

    Returns:
        Labels, boxes and counts, in NumPy; a batch gives what its samples would one by one.

    Raises:
        ValueError: on shapes that do not fit together or sizes that are not positive.
    """
    denoised = denoise(grounding, sink, settings, image_sizes)
    attention, peak, content = denoised.attention, denoised.peak, denoised.content_mask
    boxes = _bounding_boxes(denoised.foreground_mask, settings.box_margin_cells)

    background = ~_inside(boxes, attention)
    background &= attention < settings.background_ratio_threshold * peak
    background = (
        background | ~content if settings.padding_label == "background" else background & content
    )
    status = _status(denoised, boxes, settings)
    is_accepted = (status == 0)[:, None, None]
    labels = torch.full_like(attention, int(RoiLabel.IGNORE), dtype=torch.int8)
    labels[background & is_accepted] = int(RoiLabel.BACKGROUND)
    labels[denoised.foreground_mask & is_accepted] = int(RoiLabel.FOREGROUND)
    return PseudoLabels(
        labels=labels.cpu().numpy(),
        status=tuple(_STATUSES[code] for code in status.tolist()),
        boxes=boxes.cpu().numpy().astype(np.int32),
        num_foreground=_count(labels, RoiLabel.FOREGROUND),
        num_background=_count(labels, RoiLabel.BACKGROUND),
        num_ignore=_count(labels, RoiLabel.IGNORE),
        max_attention=peak.flatten().float().cpu().numpy(),
        sink_mask=denoised.sink_mask.cpu().numpy(),
        content_mask=content.cpu().numpy(),
    )


def denoising_steps(
    grounding: Array,
    sink: Array | None,
    settings: LabelSettings,
    image_sizes: Array | None = None,
) -> Iterator[DenoisingStep]:
    """What each step of label making contributes, for measuring it against true boxes.

    Yields ``threshold`` (the raw map), then, where the settings ask for them, ``padding`` (masked
    too), ``sinks`` (masked too) and ``region`` (only the strongest), then ``ambiguity`` (box,
    background threshold and the rejections that always apply), and ``rivals`` (samples with a rival
    region rejected) where the settings ask for it. The last is what ``make_pseudo_labels`` returns.
    Before ``ambiguity`` no sample is rejected and every cell is foreground or background.

    Args: as of ``make_pseudo_labels``.
    """
    for name, step in _cumulative_settings(settings):
        foreground = foreground_cells(grounding, sink, step, image_sizes)
        yield DenoisingStep(name, foreground, ~foreground)
    for name, step in _rejecting_settings(settings):
        labels = make_pseudo_labels(grounding, sink, step, image_sizes).labels
        yield DenoisingStep(name, labels == RoiLabel.FOREGROUND, labels == RoiLabel.BACKGROUND)


def _cumulative_settings(settings: LabelSettings) -> Iterator[tuple[str, LabelSettings]]:
    """Settings with one rule after the other switched on; rules that are off are passed over."""
    rules: dict[str, dict[str, object]] = {
        "padding": {"mask_padding": False},
        "sinks": {"sink_threshold": None, "border_cells": 0},
        "region": {"strongest_region_only": False},
    }
    step = settings.model_copy(update={k: v for off in rules.values() for k, v in off.items()})
    yield "threshold", step
    for name, off in rules.items():
        wanted = {field: getattr(settings, field) for field in off}
        if wanted != off:
            step = step.model_copy(update=wanted)
            yield name, step


def _rejecting_settings(settings: LabelSettings) -> Iterator[tuple[str, LabelSettings]]:
    """Settings without and, where they ask for it, with the rejection of rivalled samples."""
    yield "ambiguity", settings.model_copy(update={"max_rival_ratio": None})
    if settings.max_rival_ratio is not None:
        yield "rivals", settings


def foreground_cells(
    grounding: Array,
    sink: Array | None,
    settings: LabelSettings,
    image_sizes: Array | None = None,
) -> NDArray[np.bool_]:
    """Foreground before any sample is rejected, (N, h, w).

    Args: as of ``make_pseudo_labels``.
    """
    denoised = denoise(grounding, sink, settings, image_sizes)
    result: NDArray[np.bool_] = denoised.foreground_mask.cpu().numpy()
    return result


def _bounding_boxes(mask: torch.Tensor, margin: int) -> torch.Tensor:
    """Half-open boxes (N, 4) of the set cells, grown by ``margin``; -1 where none is set."""
    x0, x1 = _extent(mask.any(dim=1), margin)
    y0, y1 = _extent(mask.any(dim=2), margin)
    is_empty = ~mask.flatten(1).any(dim=1)
    return torch.stack([x0, y0, x1, y1], dim=1).masked_fill(is_empty[:, None], -1)


def _extent(occupied: torch.Tensor, margin: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First set position and one past the last along the second axis of (N, length)."""
    length = occupied.shape[1]
    first = occupied.int().argmax(dim=1)
    last = length - 1 - occupied.flip(1).int().argmax(dim=1)
    return (first - margin).clamp(min=0), (last + 1 + margin).clamp(max=length)


def _inside(boxes: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cells inside the boxes (N, 4), as a mask of the shape of ``like``, (N, h, w)."""
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
    columns = torch.arange(like.shape[2], device=like.device)
    rows = torch.arange(like.shape[1], device=like.device)
    in_columns = (columns >= x0) & (columns < x1)
    in_rows = (rows >= y0) & (rows < y1)
    return in_rows[:, :, None] & in_columns[:, None, :]


def _status(denoised: DenoisedMaps, boxes: torch.Tensor, settings: LabelSettings) -> torch.Tensor:
    """Index into ``_STATUSES`` per sample, (N,)."""
    content, peak = denoised.content_mask, denoised.peak.flatten()
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    num_cells = content.flatten(1).sum(dim=1)
    if settings.reference_geometry:
        num_cells = torch.full_like(num_cells, content.shape[1:].numel())
    is_too_large = box_area >= settings.max_box_area_ratio * num_cells.double()
    status = torch.zeros_like(box_area)
    # Later lines win: the first cause in the order of PseudoLabels.status is written last.
    if settings.max_rival_ratio is not None:
        is_rivalled = denoised.rival >= settings.max_rival_ratio * peak
        status[is_rivalled] = _STATUSES.index(LabelStatus.AMBIGUOUS)
    status[is_too_large] = _STATUSES.index(LabelStatus.BOX_TOO_LARGE)
    status[peak < settings.min_max_attention] = _STATUSES.index(LabelStatus.WEAK_ATTENTION)
    status[boxes[:, 0] < 0] = _STATUSES.index(LabelStatus.NO_FOREGROUND)
    status[~denoised.has_attention] = _STATUSES.index(LabelStatus.NO_ATTENTION)
    return status


def _count(labels: torch.Tensor, value: RoiLabel) -> NDArray[Any]:
    counts: NDArray[Any] = (labels == int(value)).flatten(1).sum(dim=1).int().cpu().numpy()
    return counts
