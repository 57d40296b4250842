"""Sink dimensions of an unknown model: where few image tokens take values far above all others.

Known ones (Llama-2-7B: 2533 and 1415) are the same in every layer and for every input, so a few
pictures show them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdrpn_core.attention.sinks import rms_normalised
from sdrpn_core.extraction.generated_answers import (
    Request,
    encoded_for_labels,
    extraction_prompts,
)
from sdrpn_core.generation.greedy import prefill
from sdrpn_core.generation.prompt_batch import image_columns, pad_left
from sdrpn_core.models.base import ModelAdapter


@torch.inference_mode()
def find_sink_dimensions(
    adapter: ModelAdapter, requests: Sequence[Request], count: int
) -> tuple[int, ...]:
    """The dimensions whose largest value stands out most from the image's usual one, rising.

    Args:
        adapter: the frozen model.
        requests: a few questions; one forward pass with all of them.
        count: how many dimensions to name; of a smaller model, all.
    """
    if not count:
        return ()
    images = encoded_for_labels(adapter, [request.image for request in requests])
    prompts = extraction_prompts(adapter, requests, images)
    batch = pad_left(prompts)
    excess = _Excess(image_columns(prompts, batch.offsets))
    prefill(adapter, batch, observer=excess)
    assert excess.largest is not None, "a decoder has layers"
    found = excess.largest.topk(min(count, len(excess.largest)))
    return tuple(sorted(found.indices.tolist()))


class _Excess:
    """Largest excess of each dimension over the layers, mean over images."""

    def __init__(self, columns_NC: Tensor) -> None:
        self._columns_NC = columns_NC
        self.largest: Tensor | None = None
        """(d,)"""

    def see(self, layer: int, hidden: Tensor) -> None:
        """Take the (N, S, d) input of a layer."""
        del layer
        index = self._columns_NC[:, :, None].expand(-1, -1, hidden.shape[2])
        values = rms_normalised(hidden.gather(1, index).float()).abs()
        excess = (values.amax(dim=1) - values.median(dim=1).values).mean(dim=0)
        self.largest = excess if self.largest is None else torch.maximum(self.largest, excess)
