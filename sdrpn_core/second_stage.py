"""The second stage of two-stage answering: run the upper layers, with crops where there are any.

Where the image is withdrawn, what follows it looks at its tokens in layers 0 .. B-1 only: by then
the decoder has taken from them what it needs, and the crop shows the rest. The image's tokens are
then not run through layers B and up for questions with crops. (Visual token withdrawal, arXiv
2405.05803, withdraws all image tokens about there without loss.) The text before the image stays in
view of all layers.

Columns of a question with crops, P = longest prefix, T = longest text before the image::

    all layers, and below B where the image is withdrawn    [prefix | P][crops, question]
    layers B and up where it is                             [text | T][crops, question]

Rows of a batch are padded on the left and, where a prefix is shorter than another, after it.

Shape legend: N questions, R rows of one group of them, G prefixes, S suffix columns, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from sdrpn_core.cache_rows import CachePart, fork, join, take_layers
from sdrpn_core.first_stage import Columns, FirstStage
from sdrpn_core.generation import Decoding, LayerSpan, last_position, pad_left
from sdrpn_core.masks import attention_mask
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures


@dataclass(frozen=True)
class _Group:
    """Questions with equally many crops, run to the last layer."""

    hidden: Tensor
    """(R, d) of the last column."""
    part: CachePart
    next_position: Tensor
    """(R,)"""


@torch.inference_mode()
def second_stage_prefill(
    adapter: ModelAdapter,
    first: FirstStage,
    crops: Sequence[Sequence[ImageFeatures]],
    *,
    withdraw_image: bool = False,
) -> Decoding:
    """Everything of the second stage before the first new token.

    Rows without crops go on from the image alone. Questions with equally many crops run together,
    so that none is padded to another's crops; all are joined again for decoding.

    Args:
        adapter: the model of the first stage.
        first: left as it is.
        crops: of each question.
        withdraw_image: take the image out of view of layers B and up for questions with crops.
    """
    stage = _SecondStage(adapter, first, crops, withdraw_image)
    groups = [stage.run(number) for number in sorted({len(row) for row in crops})]
    order = torch.cat([group.part.rows for group in groups]).argsort()
    cache, spans = join([group.part for group in groups])
    return Decoding(
        logits=adapter.next_token_logits(torch.cat([group.hidden for group in groups])[order]),
        cache=cache,
        spans=spans,
        next_position=torch.cat([group.next_position for group in groups])[order],
    )


class _SecondStage:
    """One batch on its way from layer B to the first new token."""

    def __init__(
        self,
        adapter: ModelAdapter,
        first: FirstStage,
        crops: Sequence[Sequence[ImageFeatures]],
        withdraw_image: bool,
    ) -> None:
        self.adapter = adapter
        self.first = first
        self.crops = crops
        self.withdraw_image = withdraw_image
        self.branch = adapter.profile.rpn.branch_layer
        self.num_layers = adapter.profile.num_layers
        sees_image = [not (withdraw_image and row) for row in crops]
        needed = first.prefix_rows[torch.tensor(sees_image, device=adapter.device)]
        self.prefixes = torch.unique(needed)
        """Rows of those that are run through all layers, rising."""
        self.whole = self._run_prefixes() if len(self.prefixes) else None

    def run(self, num_crops: int) -> _Group:
        """Run the questions with so many crops."""
        rows = [row for row, own in enumerate(self.crops) if len(own) == num_crops]
        index = torch.tensor(rows, device=self.adapter.device)
        if num_crops == 0:
            return self._without_crops(index)
        return self._with_crops(index)

    def _run_prefixes(self) -> Cache:
        """Every layer's keys and values of the prefixes that are needed whole."""
        prefix = self.first.prefix
        rows, cache = self.prefixes, fork(prefix.cache, self.prefixes)
        self._run_above(
            prefix.hidden[rows], prefix.key_mask[rows], prefix.position_ids[..., rows, :], cache
        )
        return cache

    def _prefix_cache(self, rows: Tensor) -> Cache:
        """The whole prefix of each of some questions, to go on from."""
        assert self.whole is not None
        places = torch.searchsorted(self.prefixes, self.first.prefix_rows[rows])
        return fork(self.whole, places)

    def _without_crops(self, rows: Tensor) -> _Group:
        """Go on with the first stage's own question columns."""
        question = self.first.question
        cache = fork(question.cache, rows)
        take_layers(cache, self._prefix_cache(rows), self.branch)
        key_mask, position_ids = question.key_mask[rows], question.position_ids[..., rows, :]
        hidden = self._run_above(question.hidden[rows], key_mask, position_ids, cache)
        return self._group(rows, hidden, cache, (key_mask, key_mask), position_ids)

    def _with_crops(self, rows: Tensor) -> _Group:
        """Run crops and question through all layers, after the prefix."""
        first, prefix = self.first, self.first.prefix
        prompts = [
            self.adapter.embed_prompt(first.questions[row], [first.features[row], *self.crops[row]])
            for row in rows.tolist()
        ]
        suffix = pad_left([prompt.suffix for prompt in prompts])
        prefix_rows = first.prefix_rows[rows]
        below_only = self.withdraw_image
        cache = fork(prefix.cache, prefix_rows) if below_only else self._prefix_cache(rows)
        key_mask = torch.cat([prefix.key_mask[prefix_rows], suffix.key_mask], dim=1)
        hidden = self.adapter.forward_layers(
            suffix.embeds,
            0,
            self.branch,
            mask=attention_mask(key_mask, suffix.embeds.shape[1]),
            position_ids=suffix.position_ids,
            deepstack=suffix.deepstack,
            cache=cache,
        )
        above, upper_mask = Columns(cache, hidden, suffix.key_mask, suffix.position_ids), key_mask
        if self.withdraw_image:
            above = _after(self._text_before_image(rows), above)
            upper_mask = above.key_mask
        hidden = self._run_above(above.hidden, upper_mask, above.position_ids, cache)
        return self._group(rows, hidden, cache, (key_mask, upper_mask), suffix.position_ids)

    def _text_before_image(self, rows: Tensor) -> Columns:
        """Columns of the prompts up to the image, left-padded."""
        prefix, prefix_rows = self.first.prefix, self.first.prefix_rows[rows]
        num_cells = [self.first.features[row].grid.num_cells for row in rows.tolist()]
        ends = prefix.hidden.shape[1] - torch.tensor(num_cells, device=rows.device)
        key_mask, hidden = prefix.key_mask[prefix_rows], prefix.hidden[prefix_rows]
        position_ids = prefix.position_ids[..., prefix_rows, :]
        lengths = key_mask.sum(dim=1) - torch.tensor(num_cells, device=rows.device)
        num_columns = int(lengths.max())
        columns = ends[:, None] + torch.arange(-num_columns, 0, device=rows.device)
        inside = columns.clamp_min(0)
        return Columns(
            cache=prefix.cache,
            hidden=hidden.gather(1, inside[..., None].expand(-1, -1, hidden.shape[2])),
            key_mask=key_mask.gather(1, inside) & (columns >= 0),
            position_ids=position_ids.gather(
                -1, inside.expand(*position_ids.shape[:-1], num_columns)
            ),
        )

    def _run_above(
        self, hidden: Tensor, key_mask: Tensor, position_ids: Tensor, cache: Cache
    ) -> Tensor:
        """Layers B and up."""
        return self.adapter.forward_layers(
            hidden,
            self.branch,
            self.num_layers,
            mask=attention_mask(key_mask, hidden.shape[1]),
            position_ids=position_ids,
            deepstack=None,  # the adapter refuses a branch before the last deepstack layer
            cache=cache,
        )

    def _group(
        self,
        rows: Tensor,
        hidden: Tensor,
        cache: Cache,
        key_masks: tuple[Tensor, Tensor],
        position_ids: Tensor,
    ) -> _Group:
        spans: tuple[LayerSpan, ...] = (LayerSpan(0, self.num_layers, key_masks[0]),)
        if self.withdraw_image:
            below, above = key_masks
            spans = (
                LayerSpan(0, self.branch, below),
                LayerSpan(self.branch, self.num_layers, above),
            )
        return _Group(hidden[:, -1], CachePart(cache, spans, rows), last_position(position_ids) + 1)


def _after(earlier: Columns, later: Columns) -> Columns:
    """Columns side by side, as rows of their own: the later ones' keys are not in a cache."""
    return Columns(
        cache=later.cache,
        hidden=torch.cat([earlier.hidden, later.hidden], dim=1),
        key_mask=torch.cat([earlier.key_mask, later.key_mask], dim=1),
        position_ids=torch.cat([earlier.position_ids, later.position_ids], dim=-1),
    )
