"""The text model of a multimodal LLM, driven layer by layer.

So attention read-out, the RPN branch and prefix reuse need no hooks, no early-exit tricks and no
state on the model.

Shape legend: N batch, L sequence, d hidden size, D head size, K deepstack layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sdrpn_core.attention.capture import ATTENTION_NAME, AttentionRecorder
from sdrpn_core.attention.flash_attention import FLASH, TORCH_FLASH, CausalKeys
from sdrpn_core.attention.kernels import (
    SDPA,
    choose_kernel,
    flash_is_usable,
    torch_flash_is_usable,
)
from sdrpn_core.attention.masks import Masks
from sdrpn_core.attention.patterns import CAUSAL, AttentionPattern, patterns_of
from sdrpn_core.decoding.layer_pass import LayerPass, Rotations
from sdrpn_core.decoding.part_names import final_norm
from sdrpn_core.decoding.recurrent_layers import attention_layers, is_recurrent


class LayerObserver(Protocol):
    """Looks at hidden states while the layers run."""

    def see(self, layer: int, hidden: Tensor) -> None:
        """Told (N, L, d), the input of each decoder layer."""


@dataclass(frozen=True)
class DecoderInput:
    """Columns that go through some layers together."""

    hidden: Tensor
    """(N, L, d) input of the first of these layers; that of layer 0 are embeddings."""
    masks: Masks
    position_ids: Tensor
    """(..., N, L)"""
    deepstack: Tensor | None = None
    """(K, N, L, d); None where no column is an image's, or all layers come after the first K."""
    rotations: Rotations | None = None
    """Of ``position_ids``; None to make them for these layers alone."""


class Decoder:
    """What is done with the text model alone; knows no images and no profile."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        text_positions: Callable[[Tensor], Tensor],
        barred_tokens: Sequence[int],
    ) -> None:
        """Set the recording attention in the model's text part.

        Args:
            model: the whole multimodal model, frozen.
            text_positions: (N, L) text positions -> (..., N, L) rotary positions. A plain function:
                one that is bound to the owner of the decoder would keep both alive.
            barred_tokens: those that are never generated.
        """
        model.set_attn_implementation({"text_config": ATTENTION_NAME})
        self.model = model
        self.text_model: Any = model.get_decoder()
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self.text_positions = text_positions
        # On the device from the start: a step on fixed buffers must wait for nothing.
        self._barred = torch.tensor(sorted(set(barred_tokens)), device=self.device)
        self._text_config = model.config.get_text_config(decoder=True)
        self._multiplier: float | None = getattr(self._text_config, "embedding_multiplier", None)
        """Of what enters layer 0, of words and images alike, in Granite."""
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
        return attention_layers(self._text_config)

    @cached_property
    def patterns(self) -> set[AttentionPattern]:
        """What the layers let columns see: one pattern in most models."""
        return patterns_of(self.layers)

    @property
    def has_recurrent_layers(self) -> bool:
        """Whether some layers hand on a state, from which no column can be taken back."""
        return len(self.attention_layers) < len(self.layers)

    @property
    def norm(self) -> nn.Module:
        """The stock norm behind the last layer."""
        norm: nn.Module = final_norm(self.text_model)
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
        """Name of the kernel that prompts are read with; steps of decoding run sdpa.

        Models with windows run sdpa throughout, however short a prompt is: what a shard records as
        its kernel must not depend on what is in it.
        """
        if self.patterns != {CAUSAL}:
            return SDPA
        head_dim = int(self.layers[self.attention_layers[0]].self_attn.head_dim)
        return choose_kernel(
            self.device,
            self.dtype,
            head_dim,
            has_flash=flash_is_usable(),
            has_torch_flash=self.device.type == "cuda" and torch_flash_is_usable(),
        )

    @property
    def kernel(self) -> str:
        """``attention_kernel`` with device and precision, recorded with every shard."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.attention_kernel}/{self.device.type}/{dtype}"

    def new_cache(self) -> Cache:
        """An empty key-value cache, which keeps all columns: masks cut windows out of them."""
        cache = DynamicCache(config=self._text_config)
        cache.layers = [
            DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer
            for layer in cache.layers
        ]
        return cache

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
        """
        hidden, masks, deepstack = inputs.hidden, inputs.masks, inputs.deepstack
        if self._multiplier is not None and layers.start == 0:
            hidden = hidden * self._multiplier
        extra: dict[str, Any] = {} if recorder is None else {"recorder": recorder}
        if keys := self._flash_keys(masks, kernel or self.attention_kernel):
            extra["flash_keys"] = keys
        rotations = inputs.rotations or Rotations(self.rotary_emb, hidden, inputs.position_ids)
        columns = LayerPass(masks, inputs.position_ids, rotations, cache, extra)
        for index in layers:
            if observer is not None:
                observer.see(index, hidden)
            hidden = columns.through(self.layers[index], hidden)
            if deepstack is not None and index < len(deepstack):
                hidden = hidden + deepstack[index].to(hidden.device)
        if recorder is not None:
            recorder.count()
        return hidden.to(self.device)  # the last layer may be on another

    def _flash_keys(self, masks: Masks, kernel: str) -> CausalKeys | None:
        """What flash attention is told of a pass; None where sdpa runs it.

        Without a mask, sdpa calls torch's flash attention itself, or what is faster still.
        """
        if kernel == FLASH:
            return CausalKeys.from_mask(masks.of(CAUSAL))
        if kernel != TORCH_FLASH or torch.is_grad_enabled() or masks.of(CAUSAL) is None:
            return None
        return CausalKeys.from_mask(masks.of(CAUSAL), TORCH_FLASH)

    @property
    def vocabulary_size(self) -> int:
        """Logits of a column."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def next_token_logits(self, hidden: Tensor) -> Tensor:
        """(N, d) decoder output of one column -> (N, vocabulary) logits, barred tokens at -inf."""
        logits: Tensor = self.model.get_output_embeddings()(self.norm(hidden)).float()
        scale = getattr(self.model, "logit_scale", None)  # Cohere's
        if scale is not None:
            logits = logits * scale
        cap = getattr(self._text_config, "final_logit_softcapping", None)
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits.index_fill_(1, self._barred.to(logits.device), float("-inf"))
