"""The first half of label making: attention maps without sinks and padding, and their foreground.

Shapes: N samples, h x w grid cells. All comparisons are made in float64 (see
``sdrpn_core/pseudo_labels.py``) but that of the sink signal, which is compared in its own
precision, as the reference does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from data_contracts.label_settings import LabelSettings
from sdrpn_core.filters import Array, as_float_tensor
from sdrpn_core.geometry import GridShape, Letterbox

_NEIGHBOURS_IN_MAP = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
"""Of a cell of a batch (N, h, w): no cell of another sample."""


@dataclass(frozen=True, eq=False)
class DenoisedMaps:
    """Attention with sinks and padding set to 0, and what is foreground in it."""

    attention: Tensor
    """(N, h, w) float64; zero throughout where a sample's map is not finite."""
    peak: Tensor
    """(N, 1, 1) maximum of each map."""
    foreground_mask: Tensor
    """(N, h, w) bool."""
    rival: Tensor
    """(N,) strongest cell above the foreground threshold that is not connected to the maximum, to
    one of them where several cells share it; 0 where there is none, or no rule asks for it."""
    sink_mask: Tensor
    """(N, h, w) bool, cells taken for attention sinks."""
    content_mask: Tensor
    """(N, h, w) bool, cells that show the image; all of them where padding is not masked."""
    has_attention: Tensor
    """(N,) bool, whether the map, before anything was taken out, is finite and not zero."""


def denoise(
    grounding: Array, sink: Array | None, settings: LabelSettings, image_sizes: Array | None
) -> DenoisedMaps:
    """Take sinks and padding out of a batch of maps and find the foreground of what is left.

    Args: as of ``sdrpn_core.pseudo_labels.make_pseudo_labels``.

    Raises:
        ValueError: on shapes that do not fit together or sizes that are not positive.
    """
    attention, is_finite = _finite_attention(grounding)
    sink_mask = _sink_mask(sink, settings.sink_threshold, attention)
    sink_mask |= _border(settings.border_cells, attention)
    content_mask = _content_masks(image_sizes, settings, attention)
    denoised = attention.masked_fill(sink_mask | ~content_mask, 0.0)
    peak = denoised.amax(dim=(1, 2), keepdim=True)
    strong = (denoised > settings.foreground_ratio_threshold * peak) & (denoised > 0)
    foreground, rival = strong, torch.zeros_like(peak.flatten())
    if settings.strongest_region_only:
        foreground = _connected(strong & (denoised == peak), strong)
    if settings.max_rival_ratio is not None:
        rival = _rival(denoised, strong)
    return DenoisedMaps(
        attention=denoised,
        peak=peak,
        foreground_mask=foreground,
        rival=rival,
        sink_mask=sink_mask,
        content_mask=content_mask,
        has_attention=is_finite & (attention.amax(dim=(1, 2)) > 0),
    )


def _rival(attention: Tensor, strong: Tensor) -> Tensor:
    """(N,) strongest of the strong cells (N, h, w) outside the region of one maximum."""
    places = attention.flatten(1).argmax(dim=1, keepdim=True)
    seeds = torch.zeros_like(strong).flatten(1).scatter_(1, places, value=True).view_as(strong)
    others = strong & ~_connected(seeds & strong, strong)
    return attention.masked_fill(~others, 0.0).amax(dim=(1, 2))


def _connected(seeds: Tensor, mask: Tensor) -> Tensor:
    """Cells of the mask (N, h, w) that 8-connected paths inside it join to a seed of it."""
    labelled, num_components = ndimage.label(mask.cpu().numpy(), structure=_NEIGHBOURS_IN_MAP)
    has_seed = np.zeros(num_components + 1, dtype=np.bool_)
    has_seed[labelled[seeds.cpu().numpy()]] = True
    return torch.from_numpy(has_seed[labelled]).to(mask.device)


def _finite_attention(grounding: Array) -> tuple[Tensor, Tensor]:
    """(N, h, w) float64 with samples that are not finite zeroed, and which (N,) are finite."""
    attention = as_float_tensor(grounding).double()
    if attention.ndim != 3 or 0 in attention.shape[1:]:
        raise ValueError(f"grounding must be (N, h, w), got {tuple(attention.shape)}")
    is_finite = attention.isfinite().all(dim=2).all(dim=1)
    return attention.masked_fill(~is_finite[:, None, None], 0.0), is_finite


def _sink_mask(sink: Array | None, threshold: float | None, attention: Tensor) -> Tensor:
    """Cells at or above the sink threshold, (N, h, w)."""
    if sink is None or threshold is None:
        return torch.zeros_like(attention, dtype=torch.bool)
    signal = as_float_tensor(sink).to(attention.device)
    if signal.shape != attention.shape:
        raise ValueError(
            f"sink must have the shape of grounding, {tuple(attention.shape)}, "
            f"got {tuple(signal.shape)}"
        )
    return ~(signal < torch.tensor(threshold, dtype=signal.dtype, device=signal.device))


def _border(num_cells: int, attention: Tensor) -> Tensor:
    """(h, w) cells that are among the outermost ``num_cells`` of their row or column."""
    height, width = attention.shape[1:]
    border = torch.ones((height, width), dtype=torch.bool, device=attention.device)
    border[num_cells : max(height - num_cells, 0), num_cells : max(width - num_cells, 0)] = False
    return border


def _content_masks(image_sizes: Array | None, settings: LabelSettings, attention: Tensor) -> Tensor:
    """Cells that show the image, (N, h, w); all of them where padding is unknown or kept."""
    if image_sizes is None or not settings.mask_padding:
        return torch.ones_like(attention, dtype=torch.bool)
    num_samples, *shape = attention.shape
    sizes = np.asarray(image_sizes)
    if sizes.shape not in ((num_samples, 2), (num_samples, 4)) or (sizes <= 0).any():
        raise ValueError(
            f"image_sizes must be ({num_samples}, 2) positive (width, height), or with those of "
            f"canvases ({num_samples}, 4), got {sizes.shape}"
        )
    if sizes.shape[1] == 2:
        sides = sizes.max(axis=1, keepdims=True)
        sizes = np.concatenate([sizes, sides, sides], axis=1)
    grid = GridShape(*shape)
    distinct, sample_to_distinct = np.unique(sizes, axis=0, return_inverse=True)
    content_mask = _reference_content_mask if settings.reference_geometry else _exact_content_mask
    masks = [content_mask(tuple(own[:2]), tuple(own[2:]), grid) for own in distinct.tolist()]
    stacked = np.array(masks, dtype=np.bool_).reshape(-1, *shape)
    return torch.from_numpy(stacked[sample_to_distinct.reshape(-1)]).to(attention.device)


def _exact_content_mask(
    image_size: tuple[int, int], canvas_size: tuple[int, int], grid: GridShape
) -> NDArray[np.bool_]:
    return Letterbox.centred(image_size, canvas_size).content_mask(grid)


def _reference_content_mask(
    image_size: tuple[int, int], canvas_size: tuple[int, int], grid: GridShape
) -> NDArray[np.bool_]:
    """The reference's content of a padded canvas: whole cells, rounded down, at least one.

    An odd remainder leaves the smaller half of it as padding on both sides.
    """
    mask = np.zeros(grid, dtype=np.bool_)
    slices = []
    for length, side, num_cells in zip(image_size[::-1], canvas_size[::-1], grid, strict=True):
        num_content = max(int(length / side * num_cells), 1)
        start = (num_cells - num_content) // 2
        slices.append(slice(start, num_cells - start))
    mask[tuple(slices)] = True
    return mask
