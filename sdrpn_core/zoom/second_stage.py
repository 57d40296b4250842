"""The second stage of two-stage answering: run the upper layers, with crops where there are any.

Where the image is withdrawn, what follows it looks at its tokens in layers 0 .. B-1 only, and for
questions with crops they are not run through layers B and up. The text before the image stays in
view of all layers. Visual token withdrawal (arXiv 2405.05803) does so with all image tokens, from a
layer that it chooses by the change of the output; B was chosen for something else, so the accuracy
must be looked at.

Columns of a question with crops, P = longest prefix, T = longest text before the image; each part
is padded on its left::

    all layers, and below B where the image is withdrawn    [prefix | P][crops, question]
    layers B and up where it is                             [text | T][crops, question]

Shape legend: N questions, R rows of one group of them, G prefixes, S suffix columns, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.cache_rows import CachePart, fork, join, take_layers
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.decoding.state import Decoding, LayerSpan
from sdrpn_core.generation.prompt_batch import PromptBatch, last_position, pad_left
from sdrpn_core.generation.repetition import tokens_of_prompts
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt
from sdrpn_core.row_groups import pass_cost_on, similar_lengths
from sdrpn_core.zoom.columns import Columns
from sdrpn_core.zoom.first_stage import FirstStage


@dataclass(frozen=True)
class _Group:
    """Questions that ran together, to the last layer."""

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

    Rows without crops go on from the image alone. Questions whose crops have similarly many tokens
    run together, so that none is padded to much larger ones; all are joined again for decoding.

    Args:
        adapter: the model of the first stage.
        first: left as it is.
        crops: of each question.
        withdraw_image: take the image out of view of layers B and up for questions with crops.
    """
    stage = _SecondStage(adapter, first, crops, withdraw_image)
    groups = stage.run()
    order = torch.cat([group.part.rows for group in groups]).argsort()
    cache, spans = join([group.part for group in groups])
    hidden = torch.cat([group.hidden for group in groups])[order]
    return Decoding(
        logits=adapter.decoder.next_token_logits(hidden),
        cache=cache,
        spans=spans,
        next_position=torch.cat([group.next_position for group in groups])[order],
        held=stage.held,
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
        self.held = None if first.held is None else first.held.clone()
        """(N, vocabulary) as of ``Decoding``."""
        self.withdraw_image = withdraw_image
        self.branch = adapter.profile.rpn.branch_layer
        self.num_layers = adapter.profile.num_layers
        self.has_shared_prefixes = len(first.prefix.hidden) < len(crops)
        self.finished = self._finish_prefixes() if self.has_shared_prefixes else None
        """None where each question has a prefix of its own, or none sees its prefix whole."""

    def run(self) -> list[_Group]:
        """Run all questions."""
        without = [row for row, own in enumerate(self.crops) if not own]
        suffixes = {row: self._suffix(row) for row, own in enumerate(self.crops) if own}
        lengths = {row: len(suffix.embeds) for row, suffix in suffixes.items()}
        groups = [self._without_crops(self._index(without))] if without else []
        for rows in similar_lengths(lengths, pass_cost_on(self.adapter.device.type)):
            batch = pad_left([suffixes.pop(row) for row in rows])  # each has its image in tow
            groups.append(self._with_crops(self._index(rows), batch))
        return groups

    def _suffix(self, row: int) -> Prompt:
        """Crops and question."""
        images = [self.first.features[row], *self.crops[row]]
        prompt = self.adapter.embed_prompt(self.first.questions[row], images)
        # Not those of the image alone: line breaks around two images may be one token.
        held = tokens_of_prompts(self.adapter, [prompt.token_ids])
        if held is not None and self.held is not None:
            self.held[row] = held[0]
        return prompt.suffix

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, device=self.adapter.device)

    def _finish_prefixes(self) -> tuple[Tensor, Cache] | None:
        """Rows of the prefixes that some question sees whole, rising, and their whole cache."""
        prefix = self.first.prefix
        seeing = [row for row, own in enumerate(self.crops) if not (own and self.withdraw_image)]
        if not seeing:
            return None
        prefixes = torch.unique(self.first.prefix_rows[self._index(seeing)])
        cache = fork(prefix.cache, prefixes)
        self._run_above(prefix.of_rows(prefixes), cache)
        return prefixes, cache

    def _prefix_cache(self, rows: Tensor) -> Cache:
        """The whole prefix of each of some questions, to go on from."""
        assert self.finished is not None
        prefixes, cache = self.finished
        return fork(cache, torch.searchsorted(prefixes, self.first.prefix_rows[rows]))

    def _without_crops(self, rows: Tensor) -> _Group:
        """Go on with the first stage's own question columns."""
        question = self.first.question
        cache = fork(question.cache, rows)
        inputs = question.of_rows(rows)
        key_mask = inputs.key_mask
        if self.has_shared_prefixes:
            take_layers(cache, self._prefix_cache(rows), self.branch)
        else:
            inputs = self._prefix_columns(rows).followed_by(inputs)
        return self._group(rows, self._run_above(inputs, cache), cache, key_mask, inputs)

    def _with_crops(self, rows: Tensor, suffix: PromptBatch) -> _Group:
        """Run crops and question through all layers, after the prefix."""
        prefix, prefix_rows = self.first.prefix, self.first.prefix_rows[rows]
        goes_on = self.has_shared_prefixes and not self.withdraw_image
        cache = self._prefix_cache(rows) if goes_on else fork(prefix.cache, prefix_rows)
        key_mask = torch.cat([prefix.key_mask[prefix_rows], suffix.key_mask], dim=1)
        masks = ColumnMasks(suffix.image_numbers, key_mask)
        hidden = self.adapter.decoder.run(
            DecoderInput(suffix.embeds, masks, suffix.position_ids, suffix.deepstack),
            range(self.branch),
            cache=cache,
        )
        inputs = Columns(hidden, key_mask, suffix.position_ids, suffix.image_numbers)
        if self.withdraw_image:
            inputs = self._text_before_image(rows).followed_by(inputs)
        elif not goes_on:
            inputs = self._prefix_columns(rows).followed_by(inputs)
        return self._group(rows, self._run_above(inputs, cache), cache, key_mask, inputs)

    def _prefix_columns(self, rows: Tensor) -> Columns:
        """Columns of the prompts up to the end of the image."""
        return self.first.prefix.of_rows(self.first.prefix_rows[rows])

    def _text_before_image(self, rows: Tensor) -> Columns:
        """Columns of the prompts up to the image, left-padded."""
        prefix = self._prefix_columns(rows)
        hidden, key_mask, position_ids = prefix.hidden, prefix.key_mask, prefix.position_ids
        num_cells = torch.tensor(
            [self.first.features[row].num_tokens for row in rows.tolist()], device=rows.device
        )
        num_columns = int((key_mask.sum(dim=1) - num_cells).max())
        image_starts = hidden.shape[1] - num_cells
        columns = image_starts[:, None] + torch.arange(-num_columns, 0, device=rows.device)
        inside = columns.clamp_min(0)
        return Columns(
            hidden=hidden.gather(1, inside[..., None].expand(-1, -1, hidden.shape[2])),
            key_mask=key_mask.gather(1, inside) & (columns >= 0),
            position_ids=position_ids.gather(-1, inside.expand_as(position_ids[..., :num_columns])),
            image_numbers=torch.zeros_like(inside),
        )

    def _run_above(self, columns: Columns, cache: Cache) -> Tensor:
        """Layers B and up."""
        above = range(self.branch, self.num_layers)
        return self.adapter.decoder.run(columns.as_input(), above, cache=cache)

    def _group(
        self, rows: Tensor, hidden: Tensor, cache: Cache, mask_below: Tensor, above: Columns
    ) -> _Group:
        spans: tuple[LayerSpan, ...] = (LayerSpan(0, self.num_layers, mask_below),)
        if self.withdraw_image:
            spans = (
                LayerSpan(0, self.branch, mask_below),
                LayerSpan(self.branch, self.num_layers, above.key_mask),
            )
        return _Group(
            hidden[:, -1], CachePart(cache, spans, rows), last_position(above.position_ids) + 1
        )
