"""Getting maps into torch, and the one smoothing filter that regions need."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Array = NDArray[Any] | torch.Tensor


def as_float_tensor(values: Array) -> torch.Tensor:
    """NumPy or torch -> torch, in its own precision where that is float32 or float64, else float32.

    NumPy input is copied: arrays read from Parquet are read-only, flipped views have strides that
    torch refuses.
    """
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.array(values, order="C"))
    is_native = values.dtype in (torch.float32, torch.float64)
    return values.detach() if is_native else values.detach().float()


def gaussian_blur_3x3(maps: Array, sigma: float) -> torch.Tensor:
    """Blur with a normalised 3x3 Gaussian, mirrored at the border (the edge cell not repeated).

    An axis of a single cell has nothing to mirror and is repeated instead.

    Args:
        maps: (..., h, w) floating point; half precision is computed and returned as float32.
        sigma: standard deviation in cells, above 0.

    Returns:
        (..., h, w) in float32 or float64, on the device of ``maps``.
    """
    padded = as_float_tensor(maps)
    weights = _gaussian_weights(sigma, padded.dtype)
    kernel = torch.tensor(weights, dtype=padded.dtype, device=padded.device)[None, None]
    height, width = padded.shape[-2:]
    batch = padded.reshape(-1, 1, height, width)
    batch = functional.pad(batch, (1, 1, 0, 0), mode="reflect" if width > 1 else "replicate")
    batch = functional.pad(batch, (0, 0, 1, 1), mode="reflect" if height > 1 else "replicate")
    return functional.conv2d(batch, kernel).reshape(padded.shape)


@lru_cache(maxsize=16)
def _gaussian_weights(sigma: float, dtype: torch.dtype) -> list[list[float]]:
    """3x3 weights that sum to 1, of that precision.

    Numbers, because a kept tensor would belong to the mode and the stream that it was made in.
    """
    offsets = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    return torch.outer(weights, weights).tolist()
