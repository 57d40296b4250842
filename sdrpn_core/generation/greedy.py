"""Batched greedy decoding over the adapter, with attention read-out of the response.

Shape legend: N batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdrpn_core.attention.capture import AttentionRecorder
from sdrpn_core.decoding.decoder import LayerObserver
from sdrpn_core.decoding.state import Decoding, LayerSpan
from sdrpn_core.generation.prompt_batch import PromptBatch, last_position, pad_left
from sdrpn_core.generation.repetition import TokenChooser, tokens_of_prompts
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.prompts import ImageFeatures


@dataclass(frozen=True)
class Response:
    """One generated answer."""

    tokens: tuple[int, ...]
    """Without the end token."""
    text: str
    is_finished: bool
    """The end token came within the allowed length."""


def prefill(
    adapter: ModelAdapter,
    batch: PromptBatch,
    recorder: AttentionRecorder | None = None,
    observer: LayerObserver | None = None,
) -> Decoding:
    """Run the whole decoder over padded prompts."""
    decoder = adapter.decoder
    cache = decoder.new_cache()
    hidden = decoder.run(
        batch.as_input(),
        range(adapter.profile.num_layers),
        cache=cache,
        recorder=recorder,
        observer=observer,
    )
    return Decoding(
        logits=decoder.next_token_logits(hidden[:, -1]),
        cache=cache,
        spans=(LayerSpan(0, adapter.profile.num_layers, batch.key_mask),),
        next_position=last_position(batch.position_ids) + 1,
        held=tokens_of_prompts(adapter, batch.token_ids),
    )


def greedy_decode(
    adapter: ModelAdapter,
    start: Decoding,
    max_new_tokens: int,
    recorder: AttentionRecorder | None = None,
) -> list[Response]:
    """Generate greedily until every row has ended or ``max_new_tokens`` is reached.

    Args:
        adapter: the model.
        start: state after the prompt.
        max_new_tokens: most tokens per answer, the end token included.
        recorder: gets one query per generated token that is fed back; the end token and rows
            that have ended have weight 0. Not for a start whose layers see different columns.
    """
    return make_responses(adapter, decode_steps(adapter, start, max_new_tokens, recorder))


def decode_steps(
    adapter: ModelAdapter,
    start: Decoding,
    max_new_tokens: int,
    recorder: AttentionRecorder | None = None,
) -> Iterator[Tensor]:
    """The (N,) tokens of each step of ``greedy_decode``; rows that have ended go on as they will.

    The model runs when the next step is asked for.
    """
    if recorder is not None and len(start.spans) > 1:
        raise ValueError("a recorder counts forward passes: it needs all layers in one span")
    num_rows = start.logits.shape[0]
    eos = torch.tensor(sorted(adapter.eos_ids), device=start.logits.device)
    row_zero = torch.zeros(num_rows, 1, dtype=torch.long, device=start.logits.device)
    chooser = TokenChooser(start.held, adapter.repetition_penalty, start.logits.device)
    tokens = chooser.choose(start.logits)
    is_finished = torch.isin(tokens, eos)
    yield tokens
    num_more = max_new_tokens - 1
    if num_more == 0 or bool(is_finished.all()):
        return
    with adapter.step_pool.step(start, num_more, recorder) as step:
        for _ in range(num_more):
            if recorder is not None:
                recorder.aim(row_zero, (~is_finished)[:, None].float())
            tokens = chooser.choose(step.next_logits(tokens))
            is_finished = is_finished | torch.isin(tokens, eos)
            yield tokens
            if bool(is_finished.all()):
                return


@torch.inference_mode()
def answer_plain(
    adapter: ModelAdapter,
    questions: Sequence[str],
    images: Sequence[Sequence[ImageFeatures]],
    *,
    max_new_tokens: int,
) -> list[Response]:
    """Answer from scratch: each question with its image and any crops, nothing reused."""
    prompts = [
        adapter.embed_prompt(question, row) for question, row in zip(questions, images, strict=True)
    ]
    start = adapter.step_pool.with_room(lambda: prefill(adapter, pad_left(prompts)))
    return greedy_decode(adapter, start, max_new_tokens)


def make_responses(adapter: ModelAdapter, steps: Iterable[Tensor]) -> list[Response]:
    """The answer of every row, of the steps of ``decode_steps``."""
    return [make_response(adapter, row) for row in torch.stack(list(steps), dim=1).tolist()]


def make_response(adapter: ModelAdapter, tokens: Sequence[int]) -> Response:
    """The answer in a row's tokens, up to its end token."""
    end = next((i for i, token in enumerate(tokens) if token in adapter.eos_ids), None)
    kept = tokens[:end]
    return Response(
        tokens=tuple(kept), text=adapter.decode_tokens(kept), is_finished=end is not None
    )
