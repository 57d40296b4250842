"""Stage ``decoder``: teach the decoder to look codes up among synthetic image tokens.

Image tokens here are what the tower learns to produce: sums of word embeddings plus noise, at a
sample of grid positions. Batches mix readable images, images whose codes are unreadable, and pairs
of an unreadable image with a crop that shows the target, the target among others, or something
else (then the code is not scored). Only the echoing answer is scored.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sdrpn_core.reference.grounding import GroundingLoss
from sdrpn_core.reference.lean_attention import use_lean_attention
from sdrpn_core.reference.model import NUM_IMAGE_TOKENS, new_model, word_embeddings
from sdrpn_core.reference.training_log import TrainingLog
from sdrpn_core.reference.vocabulary import (
    COLOURS,
    DIGITS,
    KINDS,
    LETTERS,
    SHORT_ANSWER_SUFFIX,
    TOKEN_IDS,
    question_about,
)

IGNORED: Final = -100
PREFIX: Final = tuple(TOKEN_IDS[word] for word in ("<s>", "user", ":"))
_COLOURS, _KINDS = tuple(COLOURS), KINDS
_SAMPLED_CELLS: Final = (28, 16)
_GROUNDING_SHARE: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class AnswerBatch:
    """Embedded sequences.

    embeddings (B, S, D); targets (B, S) token to predict at the next place, or ``IGNORED``;
    positions (B, S); shows_target (B, S) columns that show the object asked about; looks_up (B, S)
    the last prompt token and the answer's words, without the end. Padded on the right, which causal
    attention never sees.
    """

    embeddings: Tensor
    targets: Tensor
    positions: Tensor
    shows_target: Tensor
    looks_up: Tensor


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """One question: image tokens (n, D), cell numbers (n,) and target flags (n,) of each image."""

    images: list[Tensor]
    cells: list[NDArray[np.int64]]
    is_target: list[NDArray[np.bool_]]
    question: list[int]
    answer: list[int]
    """Colour, kind, letter, digit, ``</s>``."""
    is_known: bool
    """The code can be read somewhere."""


def text_ids(text: str) -> list[int]:
    """Token ids of lower-cased text; equals the tokenizer's without ``<s>``."""
    spaced = text.lower()
    for mark in "?:.,":
        spaced = spaced.replace(mark, f" {mark} ")
    return [TOKEN_IDS[word] for word in spaced.split()]


def question_ids(colour: str, kind: str, template_index: int) -> list[int]:
    """Ids of everything between the image tokens and the answer."""
    question = question_about(colour, kind, template_index)
    return text_ids(f"{question}{SHORT_ANSWER_SUFFIX} ASSISTANT:")


def collate(lookups: list[Lookup], words: Tensor) -> AnswerBatch:
    """Join image tokens, questions and answers into one padded batch.

    Args:
        lookups: the samples.
        words: word embeddings (vocabulary, D).
    """
    embeddings, targets, positions, shown, looking = [], [], [], [], []
    for lookup in lookups:
        start = len(PREFIX)
        place = [np.arange(start)]
        for image_cells in lookup.cells:
            place.append(start + image_cells)
            start += NUM_IMAGE_TOKENS
        answer = lookup.answer
        num_words = len(lookup.question) + len(answer)
        place.append(np.arange(start, start + num_words))
        spoken = words[[*lookup.question, *answer]]
        embeddings.append(torch.cat([words[list(PREFIX)], *lookup.images, spoken]).contiguous())
        length = len(embeddings[-1])
        scored = answer if lookup.is_known else [*answer[:2], IGNORED, IGNORED, *answer[4:]]
        num_before = length - len(answer) - 1
        targets.append(torch.tensor([*[IGNORED] * num_before, *scored, IGNORED]))
        positions.append(torch.from_numpy(np.concatenate(place)))
        before, after = (np.zeros(num, dtype=np.bool_) for num in (len(PREFIX), num_words))
        shown.append(torch.from_numpy(np.concatenate([before, *lookup.is_target, after])))
        columns = torch.arange(length)
        # The token that starts the answer, and all that is said of the object, refer to it: colour,
        # kind, letter, digit; not the end.
        looking.append((columns >= length - 6) & (columns <= length - 2))
    pad = torch.nn.utils.rnn.pad_sequence
    return AnswerBatch(
        embeddings=pad(embeddings, batch_first=True),
        targets=pad(targets, batch_first=True, padding_value=IGNORED),
        positions=pad(positions, batch_first=True),
        shows_target=pad(shown, batch_first=True),
        looks_up=pad(looking, batch_first=True),
    )


def answer_loss(model: Any, batch: AnswerBatch) -> tuple[Tensor, dict[str, float | None]]:
    """Cross entropy of the scored tokens plus grounding; accuracy of echo and code.

    A code is right if all its tokens are.
    """
    grounding = GroundingLoss(batch.looks_up, batch.shows_target)
    # Without a mask, transformers takes gaps in the positions for borders of packed sequences.
    hidden = model.model.language_model(
        inputs_embeds=batch.embeddings,
        position_ids=batch.positions,
        attention_mask=torch.ones_like(batch.positions),
        use_cache=False,
        grounding=grounding,
    ).last_hidden_state
    scored = batch.targets != IGNORED
    logits, wanted = model.lm_head(hidden[scored]).float(), batch.targets[scored]
    loss = F.cross_entropy(logits, wanted)
    right = torch.zeros_like(scored)
    right[scored] = logits.argmax(-1) == wanted
    is_code = torch.isin(batch.targets, torch.tensor(_CODE_IDS))
    has_code = is_code.any(1)
    echo = (right & ~is_code).sum() / (scored & ~is_code).sum()
    code_right = (right | ~is_code).all(1)[has_code].float()
    astray = grounding.mean()
    figures: dict[str, float | None] = {
        "echo": float(echo),
        "code": float(code_right.mean()),
        "grounding": astray.item(),
    }
    return loss + _GROUNDING_SHARE * astray, figures


_CODE_IDS: Final = [TOKEN_IDS[name.lower()] for name in (*LETTERS, *DIGITS)]


def synthetic_batch(batch_size: int, words: Tensor, rng: np.random.Generator) -> AnswerBatch:
    """Look-ups among made-up image tokens."""
    return collate([_synthetic_sample(words, rng) for _ in range(batch_size)], words)


def _synthetic_sample(words: Tensor, rng: np.random.Generator) -> Lookup:
    names = _confusable_names(rng)
    codes = [(LETTERS[rng.integers(8)].lower(), DIGITS[rng.integers(8)]) for _ in names]
    ids = np.array(
        [[TOKEN_IDS[w] for w in (*name, *code)] for name, code in zip(names, codes, strict=True)]
    )
    target, mode = int(rng.integers(len(names))), rng.random()
    has_crop, is_known = mode < 0.5, True
    shown = list(range(len(names)))
    is_readable = np.full(len(names), not has_crop)
    if not has_crop:
        is_readable &= rng.random(len(names)) > 0.15
        is_known = bool(is_readable[target])
    pictures = [_made_up_image(shown, ids, is_readable, words, rng, 0)]
    if has_crop:
        others = [int(i) for i in rng.permutation(len(names)) if i != target]
        if mode < 0.12:
            crop_shown, is_known = others[:1], False
        else:
            crop_shown = [target, *others[: int(rng.integers(0, 2))]]
        pictures.append(_made_up_image(crop_shown, ids, np.full(len(names), True), words, rng, 1))
    colour, kind = names[target]
    question = question_ids(colour, kind, int(rng.integers(3)))
    return Lookup(
        images=[tokens for tokens, _, _ in pictures],
        cells=[cells for _, cells, _ in pictures],
        is_target=[owner == target for _, _, owner in pictures],
        question=question,
        answer=[*map(int, ids[target]), TOKEN_IDS["</s>"]],
        is_known=is_known,
    )


def _confusable_names(rng: np.random.Generator) -> list[tuple[str, str]]:
    colours, kinds = rng.permutation(8)[:4], rng.permutation(len(_KINDS))[:4]
    if rng.random() < 0.2:
        colours, kinds = rng.permutation(8), rng.permutation(len(_KINDS))[:1]
    names = [(_COLOURS[c], _KINDS[k]) for c in colours for k in kinds]
    order = rng.permutation(len(names))[: int(rng.integers(1, 9))]
    return [names[index] for index in order]


def _made_up_image(
    shown: list[int],
    ids: NDArray[np.int64],
    is_readable: NDArray[np.bool_],
    words: Tensor,
    rng: np.random.Generator,
    image_index: int,
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Tokens (n, D) of sampled cells, the cells' numbers (n,) and objects (n,), -1 for none."""
    num_cells = _SAMPLED_CELLS[image_index]
    cells = np.sort(rng.choice(NUM_IMAGE_TOKENS, num_cells, replace=False))
    owner = rng.choice([-1, *shown], size=num_cells)
    owner[: len(shown)] = shown
    owner = rng.permutation(owner)
    tokens = torch.from_numpy(rng.normal(0, rng.uniform(0.01, 0.06), (num_cells, words.shape[1])))
    tokens = tokens.float()
    for cell, index in enumerate(owner):
        if index < 0:
            continue
        strength = float(rng.uniform(0.7, 1.1))
        tokens[cell] += strength * words[ids[index, :2]].sum(0)
        if is_readable[index]:
            tokens[cell] += float(rng.uniform(0.5, 1.1)) * words[ids[index, 2:]].sum(0)
    return tokens, cells, owner


def train_decoder(
    out: Path, *, seed: int, num_steps: int, batch_size: int, peak_rate: float
) -> None:
    """Train the decoder on synthetic tokens; writes ``decoder.pt`` and a log into ``out``."""
    model, words, rng = new_model(seed), word_embeddings(), np.random.default_rng([seed, 2])
    use_lean_attention(model)
    decoder = model.model.language_model
    decoder.embed_tokens.weight.requires_grad_(False)
    if (out / "decoder.pt").exists():
        decoder.load_state_dict(torch.load(out / "decoder.pt", weights_only=True))
    trained = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01)
    log = TrainingLog(out / "training_log.jsonl", "decoder")
    for step in range(num_steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, (step + 1) / 100) * (0.1 + 0.9 * decay)
        batch = synthetic_batch(batch_size, words, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss, accuracies = answer_loss(model, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        log.add(step, loss=loss.item(), **accuracies)
        if step % 200 == 199 or step == num_steps - 1:
            torch.save(decoder.state_dict(), out / "decoder.pt")
