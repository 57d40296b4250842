"""The first stage of two-stage answering: propose regions with the RPN.

It runs layers 0 .. B-1 over image and question and branches into the RPN. The second stage inserts
the crops' tokens right after the image's. No column sees text or another image that follows it, so
everything up to the end of the image (the prefix) depends on no crops, and on the question only in
templates that put it before the image. Each distinct prefix is computed once, whatever the number
of questions, and the second stage goes on where the first stopped. A question that gets no crop
continues from its own columns as well; nothing is computed twice for it.

Columns, P = longest prefix of the batch::

    [padding][prefix | P][padding][question]

Shape legend: N questions, G prefixes, P prefix columns, S suffix columns, d hidden size, C cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdrpn_core.attention.masks import ColumnMasks
from sdrpn_core.decoding.cache_rows import first_columns, fork
from sdrpn_core.decoding.decoder import DecoderInput
from sdrpn_core.generation.prompt_batch import PromptBatch, embedded, image_columns, pad_left
from sdrpn_core.generation.repetition import tokens_of_prompts
from sdrpn_core.geometry import GridShape
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures, Prompt
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.columns import CachedColumns


@dataclass(frozen=True)
class FirstStage:
    """RoI maps of a batch, and what the second stage takes over."""

    questions: tuple[str, ...]
    features: tuple[ImageFeatures, ...]
    roi_logits: tuple[Tensor, ...]
    """One (h, w) float32 map per question."""
    prefix: CachedColumns
    """One row per prefix (G): the prompt up to the end of the image."""
    question: CachedColumns
    """One row per question (N): the rest of the prompt."""
    prefix_rows: Tensor
    """(N,) prefix of each question."""
    held: Tensor | None
    """(N, vocabulary) tokens that the prompts hold, as of ``Decoding``."""


@torch.inference_mode()
def first_stage(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    features: Sequence[ImageFeatures],
    questions: Sequence[str],
) -> FirstStage:
    """Run the frozen layers below the branch and the RPN over one question per image.

    Args:
        adapter: the frozen model.
        rpn: trained beside it.
        features: one per question; the same object for questions about the same image.
        questions: question texts.
    """
    prompts = embedded(adapter, questions, features)
    owners = _prefix_owners(prompts, features)
    distinct = sorted(set(owners))
    rows = torch.tensor([distinct.index(owner) for owner in owners], device=adapter.device)
    lengths = {(prompt.prefix_length, len(prompt.embeds)) for prompt in prompts}
    needs_no_padding = len(distinct) == len(prompts) and len(lengths) == 1
    if needs_no_padding and not adapter.decoder.has_recurrent_layers:
        prefix, question, logits = _run_together(adapter, rpn, prompts)
    else:
        heads = [prompts[owner] for owner in distinct]
        prefix, question, logits = _run_apart(adapter, rpn, heads, prompts, rows)
    maps = zip(logits.float().cpu(), prompts, strict=True)  # one wait for the device
    return FirstStage(
        questions=tuple(questions),
        features=tuple(features),
        roi_logits=tuple(_as_map(row, prompt.image_grids[0]) for row, prompt in maps),
        prefix=prefix,
        question=question,
        prefix_rows=rows,
        held=tokens_of_prompts(adapter, [prompt.token_ids for prompt in prompts]),
    )


def _prefix_owners(prompts: Sequence[Prompt], features: Sequence[ImageFeatures]) -> list[int]:
    """For each prompt, the first one with the same prefix: the same tokens, then the same image.

    The same image is not enough: in some templates the question comes before it.
    """
    first_rows: dict[tuple[tuple[int, ...], int], int] = {}
    return [
        first_rows.setdefault((prompt.first_ids, id(image)), row)
        for row, (prompt, image) in enumerate(zip(prompts, features, strict=True))
    ]


def _run_together(
    adapter: ModelAdapter, rpn: RegionProposalNetwork, prompts: Sequence[Prompt]
) -> tuple[CachedColumns, CachedColumns, Tensor]:
    """Prefixes, questions and (N, C) RoI logits of prompts that need no padding.

    Each has a prefix of its own, all of them are of one length, and so are the questions; images
    may start elsewhere. Half as many passes as apart. Not for layers that hand on a state: theirs
    after the prefix would be lost.
    """
    whole = _run_below(adapter, pad_left(prompts), None)
    columns = image_columns(prompts, [0] * len(prompts))
    num_rows, num_columns, _ = whole.hidden.shape
    logits: Tensor = rpn(
        whole.hidden,
        masks=ColumnMasks(whole.image_numbers),
        position_ids=whole.position_ids,
        query_columns=torch.full((num_rows,), num_columns - 1, device=columns.device),
        image_columns=columns,
    )
    length = prompts[0].prefix_length
    prefix = CachedColumns(
        whole.hidden[:, :length],
        whole.key_mask[:, :length],
        whole.position_ids[..., :length],
        whole.image_numbers[:, :length],
        first_columns(whole.cache, length),
    )
    question = CachedColumns(
        whole.hidden[:, length:],
        whole.key_mask,
        whole.position_ids[..., length:],
        whole.image_numbers[:, length:],
        whole.cache,
    )
    return prefix, question, logits


def _run_apart(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    heads: Sequence[Prompt],
    prompts: Sequence[Prompt],
    rows: Tensor,
) -> tuple[CachedColumns, CachedColumns, Tensor]:
    """Prefixes (G), questions (N) and (N, C) RoI logits of any prompts.

    Args:
        adapter: the frozen model.
        rpn: trained beside it.
        heads: prompts that have the distinct prefixes.
        prompts: one per question.
        rows: (N,) prefix of each question.
    """
    prefixes = pad_left([prompt.prefix for prompt in heads])
    suffixes = pad_left([prompt.suffix for prompt in prompts])
    prefix = _run_below(adapter, prefixes, None)
    question = _run_below(adapter, suffixes, (prefix, rows))
    cells = image_columns(heads, prefixes.offsets)
    return prefix, question, _score(adapter, rpn, prefix, question, rows, cells)


def _run_below(
    adapter: ModelAdapter, batch: PromptBatch, before: tuple[CachedColumns, Tensor] | None
) -> CachedColumns:
    """Run layers 0 .. B-1 over columns that follow chosen rows of others, or nothing."""
    key_mask, masks, cache = batch.key_mask, batch.masks, adapter.decoder.new_cache()
    if before is not None:
        earlier, rows = before
        key_mask = torch.cat([earlier.key_mask[rows], key_mask], dim=1)
        masks = ColumnMasks(batch.image_numbers, key_mask)
        cache = fork(earlier.cache, rows)
    inputs = DecoderInput(batch.embeds, masks, batch.position_ids, batch.deepstack)
    below = range(adapter.profile.rpn.branch_layer)
    hidden = adapter.decoder.run(inputs, below, cache=cache)
    return CachedColumns(hidden, key_mask, batch.position_ids, batch.image_numbers, cache)


def _score(
    adapter: ModelAdapter,
    rpn: RegionProposalNetwork,
    prefix: CachedColumns,
    question: CachedColumns,
    rows: Tensor,
    cells: Tensor,
) -> Tensor:
    """(N, C) RoI logits; image cells go through the RPN once per prefix."""
    cache = adapter.decoder.new_cache()
    encoded = rpn.encode(
        prefix.hidden,
        masks=prefix.masks,
        position_ids=prefix.position_ids,
        cache=cache,
    )
    keys = rpn.cell_keys(encoded, prefix.position_ids, cells)
    asked = rpn.encode(
        question.hidden,
        masks=question.masks,
        position_ids=question.position_ids,
        cache=fork(cache, rows),
    )
    last = torch.full((len(rows),), question.hidden.shape[1] - 1, device=rows.device)
    return rpn.score(asked, question.position_ids, last, keys[rows.to(keys.device)])


def _as_map(logits: Tensor, grid: GridShape) -> Tensor:
    return logits[: grid.num_cells].reshape(grid)
