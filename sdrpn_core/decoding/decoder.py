"""The text model of a multimodal LLM, driven layer by layer.

So attention read-out, the RPN branch and prefix reuse need no hooks, no early-exit tricks and no
state on the model.

Shape legend: N batch, L sequence, d hidden size, D head size, K deepstack layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from data_contracts.errors import SdrpnError
from sdrpn_core.attention.capture import ATTENTION_NAME, AttentionRecorder
from sdrpn_core.attention.kernels import FLASH, CausalKeys, choose_kernel, flash_is_usable
from sdrpn_core.attention.masks import attention_mask
from sdrpn_core.decoding.layer_pass import LayerPass, Rotation
from sdrpn_core.decoding.recurrent_layers import attention_layers, is_recurrent


class PromptTooLong(SdrpnError, ValueError):
    """There are more tokens than a layer looks back at."""


class LayerObserver(Protocol):
    """Looks at hidden states while the layers run."""

    def see(self, layer: int, hidden: Tensor) -> None:
        """Told (N, L, d), the input of each decoder layer."""


@dataclass(frozen=True)
class DecoderInput:
    """Columns that go through some layers together."""

    hidden: Tensor
    """(N, L, d) input of the first of these layers."""
    mask: Tensor | None
    """As made by ``masks.attention_mask``."""
    position_ids: Tensor
    """(..., N, L)"""
    deepstack: Tensor | None = None
    """(K, N, L, d); None where no column is an image's, or all layers come after the first K."""
    rotation: Rotation | None = None
    """Of ``position_ids``; None to make it for these layers alone."""
    tokens: Tensor | None = None
    """(N, L) bool, True where a column holds a token; None if all do. What a mask cannot tell
    layers that hand on a state."""

    @classmethod
    def from_key_mask(
        cls,
        hidden: Tensor,
        key_mask: Tensor,
        position_ids: Tensor,
        deepstack: Tensor | None = None,
    ) -> Self:
        """Causal over the columns that hold tokens; may wait for the device.

        Args:
            hidden: (N, L, d), the last L columns.
            key_mask: (N, S) bool, with the columns before them; True where a column holds a token.
            position_ids: (..., N, L).
            deepstack: (K, N, L, d).
        """
        num_columns = hidden.shape[1]
        return cls(
            hidden,
            attention_mask(key_mask, num_columns),
            position_ids,
            deepstack,
            tokens=key_mask[:, -num_columns:],
        )


class Decoder:
    """What is done with the text model alone; knows no images and no profile."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        text_positions: Callable[[Tensor], Tensor],
        image_token_id: int,
    ) -> None:
        """Set the recording attention in the model's text part.

        Args:
            model: the whole multimodal model, frozen.
            text_positions: (N, L) text positions -> (..., N, L) rotary positions. A plain function:
                one that is bound to the owner of the decoder would keep both alive.
            image_token_id: the token that is never generated.
        """
        model.set_attn_implementation({"text_config": ATTENTION_NAME})
        self.model = model
        self.text_model: Any = model.get_decoder()
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self.text_positions = text_positions
        self._image_token_id = image_token_id
        self._window = _window(model.config.get_text_config(decoder=True))
        known = {index for index, layer in enumerate(self.layers) if not is_recurrent(layer)}
        if unknown := sorted(known ^ set(self.attention_layers)):
            raise ValueError(f"what layer {unknown[0]} keeps of earlier columns is not known")

    @property
    def layers(self) -> Any:
        """The stock layers, in order."""
        return self.text_model.layers

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers that have attention heads: all, but for models of mixed layers."""
        return attention_layers(self.model.config.get_text_config(decoder=True))

    @property
    def has_recurrent_layers(self) -> bool:
        """Whether some layers hand on a state, from which no column can be taken back."""
        return len(self.attention_layers) < len(self.layers)

    @property
    def norm(self) -> nn.Module:
        """The stock norm behind the last layer."""
        norm: nn.Module = self.text_model.norm
        return norm

    @property
    def rotary_emb(self) -> Any:
        """The stock module that makes rotary embeddings of positions."""
        return self.text_model.rotary_emb

    @property
    def device(self) -> torch.device:
        """Where hidden states enter and leave; layers in between may lie elsewhere."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the hidden states."""
        return self.embedding.weight.dtype

    @cached_property
    def attention_kernel(self) -> str:
        """Name of the kernel that prompts are read with; steps of decoding run sdpa."""
        head_dim = int(self.layers[self.attention_layers[0]].self_attn.head_dim)
        return choose_kernel(self.device, self.dtype, head_dim, has_flash=flash_is_usable())

    @property
    def kernel(self) -> str:
        """``attention_kernel`` with device and precision, recorded with every shard."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.attention_kernel}/{self.device.type}/{dtype}"

    def new_cache(self) -> Cache:
        """An empty key-value cache."""
        return DynamicCache(config=self.model.config.get_text_config(decoder=True))

    def run(
        self,
        inputs: DecoderInput,
        layers: range,
        *,
        cache: Cache | None = None,
        recorder: AttentionRecorder | None = None,
        observer: LayerObserver | None = None,
        kernel: str | None = None,
    ) -> Tensor:
        """Run some layers over columns.

        Args:
            inputs: of the first of the layers.
            layers: indices of neighbouring layers, rising.
            cache: keys and values of earlier columns; extended in place.
            recorder: collects attention rows of the layers it asks for.
            observer: shown the input of every layer.
            kernel: attention kernel; None for ``attention_kernel``.

        Returns:
            (N, L, d) output of the last of the layers, before the final norm, on ``device``.

        Raises:
            PromptTooLong: if some of the model's layers would not look at all columns.
        """
        self._check_length(inputs, layers, cache)
        hidden, mask, deepstack = inputs.hidden, inputs.mask, inputs.deepstack
        extra: dict[str, Any] = {} if recorder is None else {"recorder": recorder}
        if (kernel or self.attention_kernel) == FLASH:
            extra["flash_keys"] = CausalKeys.from_mask(mask)
        rotation = inputs.rotation
        if rotation is None:
            rotation = self.rotary_emb(hidden, inputs.position_ids)
        columns = LayerPass(mask, inputs.position_ids, rotation, inputs.tokens, cache, extra)
        for index in layers:
            if observer is not None:
                observer.see(index, hidden)
            hidden = columns.through(self.layers[index], hidden)
            if deepstack is not None and index < len(deepstack):
                hidden = hidden + deepstack[index].to(hidden.device)
        if recorder is not None:
            recorder.count()
        return hidden.to(self.device)  # the last layer may be on another

    def _check_length(self, inputs: DecoderInput, layers: range, cache: Cache | None) -> None:
        """No window is cut out of masks and caches here: all columns must be within it."""
        if self._window is None:
            return
        # Not the length that the cache counts: rows are put together, and columns taken away.
        first = next((index for index in layers if index in self.attention_layers), None)
        earlier = None if cache is None or first is None else cache.layers[first]
        num_earlier = earlier.keys.shape[2] if earlier and earlier.is_initialized else 0
        num_columns = num_earlier + inputs.hidden.shape[1]
        if num_columns >= self._window:  # the cache keeps one less
            raise PromptTooLong(
                f"layers of this model look back at {self._window} tokens, and there are "
                f"{num_columns}: set images of fewer cells or crop_tokens, or ask for less"
            )

    @property
    def vocabulary_size(self) -> int:
        """Logits of a column."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """(N, d) decoder output of one column -> (N, vocabulary) logits, image token barred."""
        logits: Tensor = self.model.get_output_embeddings()(self.norm(hidden)).float()
        logits[:, self._image_token_id] = float("-inf")
        return logits


def _window(config: PreTrainedConfig) -> int | None:
    """Columns that layers of a text model look back at; None if all look at all."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)
