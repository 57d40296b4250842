"""Stage ``joint``: tower and decoder together, on rendered scenes.

Samples are whole views (readable and small print) and pairs of a whole view and a crop (tight,
loose or anywhere). The code is scored only where it is readable in one of the views; the echo is
always scored, so looking the object up is practised on small print too. To save time a random part
of the cells is shown to the decoder, at true positions; the last part of the run shows all cells.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from sdrpn_core.reference.lean_attention import use_lean_attention
from sdrpn_core.reference.model import NUM_IMAGE_TOKENS, new_model, word_embeddings
from sdrpn_core.reference.training_decoder import (
    AnswerBatch,
    Lookup,
    answer_loss,
    collate,
    question_ids,
)
from sdrpn_core.reference.training_log import TrainingLog
from sdrpn_core.reference.training_tower import (
    READABLE_FROM,
    image_features,
    normalise_pixels,
    tower_loss,
)
from sdrpn_core.reference.view_cache import SceneViews, load_shards
from sdrpn_core.reference.vocabulary import TOKEN_IDS, all_tokens

_TOKENS: Final = all_tokens()
_TOWER_LOSS_SHARE: Final = 0.5
_PAIR_SHARE: Final = 0.2
_READABLE_SHARE: Final = 0.7


@dataclass(frozen=True, kw_only=True)
class JointSample:
    """One question: scene row, views shown, object asked about, whether its code is readable."""

    row: int
    views: tuple[int, ...]
    target: int
    is_known: bool


def draw_sample(views: SceneViews, rng: np.random.Generator) -> JointSample:
    """A random question about a random scene of the cache."""
    row = int(rng.integers(len(views.pixels)))
    is_pair = rng.random() < _PAIR_SHARE
    # Single small-print views score the echo only: a few are enough.
    wants_readable = not is_pair and rng.random() < _READABLE_SHARE
    while wants_readable and views.print_heights[row, 0].max() < READABLE_FROM + 0.5:
        row = int(rng.integers(len(views.pixels)))
    num_objects = int((views.attributes[row, :, 0] > 0).sum())
    shown: tuple[int, ...] = (0,)
    target = int(rng.integers(num_objects))
    if is_pair:
        crop = int(rng.choice(3, p=(0.4, 0.45, 0.15))) + 1
        shown = (0, crop)
        readable = np.flatnonzero(views.print_heights[row, crop] >= READABLE_FROM)
        if len(readable) and rng.random() < 0.8:
            target = int(rng.choice(readable))
    height = views.print_heights[row, list(shown), target].max()
    return JointSample(row=row, views=shown, target=target, is_known=bool(height >= READABLE_FROM))


def joint_batch(
    model: Any,
    views: SceneViews,
    samples: list[JointSample],
    words: torch.Tensor,
    rng: np.random.Generator,
    cells_shown: int,
) -> tuple[AnswerBatch, torch.Tensor]:
    """Decoder inputs of the samples, and the tower's own loss on the views shown."""
    rows = np.array([s.row for s in samples for _ in s.views])
    which = np.array([view for s in samples for view in s.views])
    cells = views.cells[rows, which].reshape(len(rows), -1)
    features = image_features(model, normalise_pixels(views.pixels[rows, which]))
    dense_loss, _ = tower_loss(
        features,
        torch.from_numpy(cells.astype(np.int64)),
        torch.from_numpy(views.print_heights[rows, which]),
        torch.from_numpy(views.attributes[rows]),
        words,
    )
    lookups, image = [], 0
    for sample in samples:
        images, places, is_target = [], [], []
        for _ in sample.views:
            kept = _kept_cells(cells[image], sample.target, cells_shown, rng)
            images.append(features[image, torch.from_numpy(kept)].float())
            places.append(kept)
            is_target.append(cells[image, kept] == sample.target)
            image += 1
        names = views.attributes[sample.row, sample.target]
        colour, kind = (_TOKENS[int(token)] for token in names[:2])
        lookups.append(
            Lookup(
                images=images,
                cells=places,
                is_target=is_target,
                question=question_ids(colour, kind, int(rng.integers(3))),
                answer=[*map(int, names), TOKEN_IDS["</s>"]],
                is_known=sample.is_known,
            )
        )
    return collate(lookups, words), dense_loss


def _kept_cells(
    cells: NDArray[np.int8], target: int, cells_shown: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    if cells_shown >= NUM_IMAGE_TOKENS:
        return np.arange(NUM_IMAGE_TOKENS)
    order = rng.random(NUM_IMAGE_TOKENS)
    # A few cells of the target always stay; the rest is a fair draw.
    own = np.flatnonzero(cells == target)
    order[own[: cells_shown // 8]] -= 1.0
    return np.sort(np.argsort(order)[:cells_shown]).astype(np.int64)


def train_joint(
    cache: Path,
    out: Path,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    peak_rate: float,
    cells_shown: int,
) -> None:
    """Train everything but the word embeddings; starts from the other stages' checkpoints.

    Writes ``joint.pt`` (which a later call resumes from) and a log into ``out``.
    """
    views, rng = load_shards(cache), np.random.default_rng([seed, 3])
    model, words = new_model(seed), word_embeddings()
    use_lean_attention(model)
    load_stages(model, out)
    model.get_input_embeddings().weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.02)
    log = TrainingLog(out / "training_log.jsonl", "joint")
    for step in range(num_steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * decay)
        samples = [draw_sample(views, rng) for _ in range(batch_size)]
        with torch.autocast("cpu", torch.bfloat16):
            batch, dense_loss = joint_batch(model, views, samples, words, rng, cells_shown)
            loss, figures = answer_loss(model, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss + _TOWER_LOSS_SHARE * dense_loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        figures |= {"loss": loss.item(), "dense_loss": dense_loss.item()}
        log.add(step, **figures)
        if step % 100 == 99 or step == num_steps - 1:
            torch.save(model.state_dict(), out / "joint.pt")


def load_stages(model: Any, out: Path) -> None:
    """Load ``joint.pt``, or else ``tower.pt`` and ``decoder.pt``."""
    if (out / "joint.pt").exists():
        model.load_state_dict(torch.load(out / "joint.pt", weights_only=True))
        return
    parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    parts.load_state_dict(torch.load(out / "tower.pt", weights_only=True))
    model.model.language_model.load_state_dict(torch.load(out / "decoder.pt", weights_only=True))
