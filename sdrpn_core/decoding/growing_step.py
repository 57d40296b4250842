"""One decoding step on a cache that grows: runs anywhere, and can record attention.

``FixedStep`` gives the same logits from buffers of fixed size, faster on a CUDA device.

Shape legend: N batch, S columns so far.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.attention.kernels import SDPA
from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.cache_layers import with_room
from sdrpn_core.decoding.decoder import Decoder, DecoderInput
from sdrpn_core.decoding.layer_pass import Rotations
from sdrpn_core.decoding.state import Decoding, LayerSpan


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
        self._spans = [_GrowingSpan(span) for span in start.spans]
        self._position = start.next_position
        self._recorder = recorder
        layers = self._cache.layers
        for index, layer in enumerate(layers):  # one by one: two whole caches may be too large
            layers[index] = with_room(layer, num_steps)

    @torch.inference_mode()
    def next_logits(self, tokens: Tensor) -> Tensor:
        """As of ``Step``."""
        decoder = self._decoder
        positions = decoder.text_positions(self._position[:, None])
        hidden = decoder.embedding(tokens)[:, None]
        rotations = Rotations(decoder.rotary_emb, hidden, positions)
        for span in self._spans:
            span.add_token()
            hidden = decoder.run(
                DecoderInput(hidden, span.masks(), positions, rotations=rotations),
                span.layers,
                cache=self._cache,
                recorder=self._recorder,
                kernel=SDPA,  # flash-attn would copy all keys of a padded batch, at every layer
            )
        self._position = self._position + 1
        return decoder.next_token_logits(hidden[:, -1])


class _GrowingSpan:
    """Some layers, and the columns that they see; the device is asked once about padding."""

    def __init__(self, span: LayerSpan) -> None:
        self.layers = range(span.first, span.last)
        self._key_mask = span.key_mask
        self._is_full = bool(span.key_mask.all())
        self._no_image = torch.zeros_like(span.key_mask[:, :1], dtype=torch.int32)

    def add_token(self) -> None:
        """One more column, of a token in every row."""
        self._key_mask = functional.pad(self._key_mask, (0, 1), value=True)

    def masks(self) -> ColumnMasks:
        """What the new column sees."""
        return _TokenMasks(self._no_image, self._key_mask, is_full=self._is_full)


class _TokenMasks(ColumnMasks):
    """Masks of one column that holds a token in every row, whatever those before it hold."""

    @property
    def tokens(self) -> None:
        """As of ``Masks``."""
        return None
