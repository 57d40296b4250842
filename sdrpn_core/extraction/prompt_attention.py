"""Where a prompt's last token looks in its image, and how much its answer depends on that.

Shape legend: N batch, H heads, S sequence, D head size, C image cells, L padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.generation.prompt_batch import embedded, image_columns, pad_left
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt

FloatMap = NDArray[np.float32]

R = TypeVar("R", bound=AttentionRecorder)


@torch.inference_mode()
def prompt_attention(
    adapter: ModelAdapter,
    questions: Sequence[str],
    features: Sequence[ImageFeatures],
    layers: Sequence[int],
) -> list[FloatMap]:
    """Attention of each prompt's last token to its image, one layer, mean over heads.

    Args:
        adapter: the model; runs up to the deepest layer asked for.
        questions: one per image.
        features: the encoded images.
        layers: the layer to read for each question.

    Returns:
        One (h, w) map per question.
    """
    prompts = embedded(adapter, questions, features)
    recorder = _record(AttentionRecorder, adapter, prompts, layers, max(layers) + 1)[0]
    maps = {layer: rows.mean(dim=1) for layer, rows in recorder.mean().items()}
    return _as_maps([maps[layer][row] for row, layer in enumerate(layers)], features)


@torch.inference_mode(False)
@torch.enable_grad()
def attention_gradient(
    adapter: ModelAdapter,
    questions: Sequence[str],
    features: Sequence[ImageFeatures],
    layers: Sequence[int],
) -> list[FloatMap]:
    """Attention times the positive part of its gradient, mean over heads.

    The gradient is that of the log-probability of the likeliest first token, with respect to the
    last row of the layer's attention. No attention matrix is formed for it: an entry's gradient is
    that of the attention output, times the value of the entry's column.

    Args and returns as of ``prompt_attention``; the model runs to its end.
    """
    prompts = embedded(adapter, questions, features)
    recorder, hidden = _record(
        GradientRecorder, adapter, prompts, layers, adapter.profile.num_layers
    )
    certainty = first_token_certainty(adapter, hidden[:, -1])
    weighted = recorder.weighted_rows(certainty.sum())
    maps = {layer: rows.mean(dim=1) for layer, rows in weighted.items()}
    return _as_maps([maps[layer][row] for row, layer in enumerate(layers)], features)


@torch.inference_mode(False)
@torch.enable_grad()
def pixel_gradient(
    adapter: ModelAdapter, question: str, pixels: Tensor, features: ImageFeatures
) -> FloatMap:
    """Length over the colours of the gradient of the first token's log-probability.

    Args:
        adapter: the model.
        question: the question.
        pixels: (1, 3, H, W) of ``encode_with_gradient``.
        features: made of them.

    Returns:
        (H, W)
    """
    batch = pad_left([adapter.embed_prompt(question, [features])])
    hidden = adapter.decoder.run(batch.as_input(), range(adapter.profile.num_layers))
    certainty = first_token_certainty(adapter, hidden[:, -1])
    (gradient,) = torch.autograd.grad(certainty.sum(), pixels, retain_graph=True)
    length: FloatMap = gradient[0].float().norm(dim=0).cpu().numpy()
    return length


def first_token_certainty(adapter: ModelAdapter, hidden: Tensor) -> Tensor:
    """(N, d) decoder output of the last column -> (N,) log-probability of the likeliest token."""
    return adapter.decoder.next_token_logits(hidden).log_softmax(dim=-1).amax(dim=-1)


@dataclass
class GradientRecorder(AttentionRecorder):
    """Keeps the last row of each layer asked for, and a handle on what the row contributes."""

    rows: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> (N, H, C) last row at the image's columns."""
    values: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> (N, Hkv, C, D) values there."""
    handles: dict[int, Tensor] = field(default_factory=dict)
    """Layer -> (N, H, D) zeros added to the attention output of the last column."""

    def record(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float
    ) -> None:
        """Keep this layer's rows; does nothing for layers that were not asked for."""
        if layer in self.heads:
            rows = self._image_rows(layer, query, key, mask, scaling, self.rows_NQ)
            self.rows[layer] = rows[:, :, -1].detach()

    def adjust(self, layer: int, output: Tensor, value: Tensor) -> Tensor:
        """Add the handle where the last column's attention output is."""
        if layer not in self.heads:
            return output
        columns = self.columns_NC.to(value.device)[:, None, :, None]
        index = columns.expand(-1, value.shape[1], -1, value.shape[3])
        self.values[layer] = value.detach().gather(2, index)
        handle = torch.zeros_like(output[:, -1], requires_grad=True)
        self.handles[layer] = handle
        return torch.cat([output[:, :-1], (output[:, -1] + handle)[:, None]], dim=1)

    def weighted_rows(self, target: Tensor) -> dict[int, Tensor]:
        """Layer -> (N, H, C) rows times the positive part of the target's gradient."""
        layers = list(self.handles)
        gradients = torch.autograd.grad(target, [self.handles[layer] for layer in layers])
        found = {}
        for layer, gradient in zip(layers, gradients, strict=True):
            value = self.values[layer].float()
            group_size = gradient.shape[1] // value.shape[1]
            by_column = torch.einsum(
                "nhd,nhcd->nhc", gradient.float(), value.repeat_interleave(group_size, dim=1)
            )
            found[layer] = self.rows[layer] * by_column.clamp_min(0)
        return found


def _record(
    kind: type[R],
    adapter: ModelAdapter,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    num_layers: int,
) -> tuple[R, Tensor]:
    """Run the first layers with a recorder on the last row; returns it and the hidden states."""
    batch = pad_left(prompts)
    columns = image_columns(prompts, batch.offsets)
    recorder = kind.of_last_row(dict.fromkeys(layers), columns, batch.embeds.shape[1])
    hidden = adapter.decoder.run(batch.as_input(), range(num_layers), recorder=recorder)
    return recorder, hidden


def _as_maps(rows: Sequence[Tensor], features: Sequence[ImageFeatures]) -> list[FloatMap]:
    return [
        row[: image.grid.num_cells].detach().float().reshape(image.grid).cpu().numpy()
        for row, image in zip(rows, features, strict=True)
    ]
