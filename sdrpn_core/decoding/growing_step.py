"""One decoding step on a cache that grows: runs anywhere, and can record attention.

``FixedStep`` gives the same logits from buffers of fixed size, faster on a CUDA device.
"""

import torch
from torch import Tensor

from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.attention.kernels import SDPA
from sdrpn_core.decoding.cache_layers import with_room
from sdrpn_core.decoding.decoder import Decoder, DecoderInput
from sdrpn_core.decoding.state import Decoding


class GrowingStep:
    """Keys and values grow into room made for them, one column a step."""

    @torch.inference_mode()
    def __init__(
        self,
        decoder: Decoder,
        start: Decoding,
        num_steps: int,
        recorder: AttentionRecorder | None = None,
    ) -> None:
        self._decoder = decoder
        self._cache = start.cache
        self._spans = start.spans
        self._position = start.next_position
        self._recorder = recorder
        layers = self._cache.layers
        for index, layer in enumerate(layers):  # one by one: two whole caches may be too large
            layers[index] = with_room(layer, num_steps)

    @torch.inference_mode()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """As of ``Step``."""
        decoder = self._decoder
        self._spans = tuple(span.with_token() for span in self._spans)
        positions = decoder.text_positions(self._position[:, None])
        hidden = decoder.embedding(tokens)[:, None]
        for span in self._spans:
            hidden = decoder.run(
                DecoderInput.from_key_mask(hidden, span.key_mask, positions),
                range(span.first, span.last),
                cache=self._cache,
                recorder=self._recorder,
                kernel=SDPA,  # flash-attn would copy all keys of a padded batch, at every layer
            )
        self._position = self._position + 1
        return decoder.next_token_logits(hidden[:, -1])
