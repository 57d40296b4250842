"""Stage ``tower``: teach vision tower and projector to say, in word embeddings, what a cell shows.

Target of a cell that shows an object: the sum of the embeddings of its colour, kind and, when the
print is readable in the view, letter and digit; zero on background. Loss: squared error to that sum
plus cross entropy within each attribute group.
"""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sdrpn_core.reference.glyph_pages import make_glyph_page
from sdrpn_core.reference.lean_attention import use_lean_attention
from sdrpn_core.reference.model import new_model, word_embeddings
from sdrpn_core.reference.training_log import TrainingLog
from sdrpn_core.reference.view_cache import SceneViews, load_shards
from sdrpn_core.reference.views import PIXEL_MEAN, PIXEL_STD
from sdrpn_core.reference.vocabulary import COLOURS, DIGITS, KINDS, LETTERS, TOKEN_IDS

GROUPS: Final = {
    "colour": tuple(TOKEN_IDS[name] for name in COLOURS),
    "kind": tuple(TOKEN_IDS[name] for name in KINDS),
    "letter": tuple(TOKEN_IDS[name.lower()] for name in LETTERS),
    "digit": tuple(TOKEN_IDS[name] for name in DIGITS),
}
# Telling kinds apart in a few cells is the slowest to learn, and selection rests on it.
_GROUP_WEIGHTS: Final = {"colour": 1.0, "kind": 2.0, "letter": 1.0, "digit": 1.0}
READABLE_FROM: Final = 4.5
UNREADABLE_TO: Final = 3.5
_VIEW_SHARES: Final = (0.6, 0.12, 0.23, 0.05)


def normalise_pixels(pixels: np.ndarray) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32, as the processor does."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
    values = (values - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return values.movedim(-1, -3)


def image_features(model: Any, pixels_BCHW: Tensor) -> Tensor:
    """Projected image tokens (B, cells, width)."""
    hidden = model.model.vision_tower(pixels_BCHW, output_hidden_states=True).hidden_states[-1]
    features: Tensor = model.model.multi_modal_projector(hidden[:, 1:])
    return features


def tower_loss(
    features_BPD: Tensor,
    cells_BP: Tensor,
    heights_BK: Tensor,
    attributes_BKA: Tensor,
    words: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and accuracy by attribute.

    Args:
        features_BPD: projected image tokens.
        cells_BP: object index of each cell, negative for none.
        heights_BK: print height of each object in the view, 0 where not in view.
        attributes_BKA: token ids of colour, kind, letter, digit.
        words: word embeddings (vocabulary, D).
    """
    features = features_BPD.float()
    owner = cells_BP.clamp(min=0)
    has_object = cells_BP >= 0
    names = attributes_BKA.gather(1, owner[..., None].expand(-1, -1, 4))
    height = heights_BK.gather(1, owner)
    readable = has_object & (height >= READABLE_FROM)
    certain = (cells_BP != -2) & ~(has_object & (height > UNREADABLE_TO) & ~readable)
    num_cells = F.one_hot(owner, heights_BK.shape[1]).mul(has_object[..., None]).sum(1)
    weight = num_cells.gather(1, owner).clamp(min=1).float().rsqrt()
    target = torch.zeros_like(features)
    loss, accuracies = features.new_zeros(()), {}
    for column, (group, token_ids) in enumerate(GROUPS.items()):
        mask = has_object if column < 2 else readable
        group_words = words[list(token_ids)]
        logits = 10.0 * features[mask] @ group_words.T
        lookup = torch.full((len(words),), -1)
        lookup[list(token_ids)] = torch.arange(len(token_ids))
        wanted = lookup[names[..., column][mask]]
        share = weight[mask] / weight[mask].sum().clamp(min=1e-6)
        entropy = (F.cross_entropy(logits, wanted, reduction="none") * share).sum()
        loss = loss + _GROUP_WEIGHTS[group] * entropy
        accuracies[group] = float(((logits.argmax(-1) == wanted).float() * share).sum())
        target[mask] += group_words[wanted]
    error = (features - target).square().sum(-1)
    return loss + 3.0 * (error * certain).sum() / certain.sum(), accuracies


def sample_views(
    views: SceneViews, batch_size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random views: pixels (B,3,H,W), cells (B,P), print heights (B,K), attributes (B,K,4)."""
    rows = rng.integers(len(views.pixels), size=batch_size)
    which = rng.choice(len(_VIEW_SHARES), size=batch_size, p=_VIEW_SHARES)
    cells = views.cells[rows, which].reshape(batch_size, -1).astype(np.int64)
    return (
        normalise_pixels(views.pixels[rows, which]),
        torch.from_numpy(cells),
        torch.from_numpy(views.print_heights[rows, which]),
        torch.from_numpy(views.attributes[rows]),
    )


def glyph_loss(
    features_BPD: Tensor, names_B2P: Tensor, words: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of letter and digit on the cells that show them, and its accuracies.

    Args:
        features_BPD: projected image tokens of glyph pages.
        names_B2P: index of the letter and of the digit on each cell, -1 for none.
        words: word embeddings (vocabulary, D).
    """
    loss, figures = features_BPD.new_zeros((), dtype=torch.float32), {}
    for column, group in enumerate(("letter", "digit")):
        wanted = names_B2P[:, column]
        mask = wanted >= 0
        logits = 10.0 * features_BPD.float()[mask] @ words[list(GROUPS[group])].T
        loss = loss + F.cross_entropy(logits, wanted[mask])
        figures[f"page_{group}"] = float((logits.argmax(-1) == wanted[mask]).float().mean())
    return loss, figures


class PagePool:
    """Glyph pages that are drawn from many times and renewed a few at a time."""

    def __init__(self, num_pages: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pages = [make_glyph_page(rng) for _ in range(num_pages)]

    def sample(self, num_pages: int, num_renewed: int = 6) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) and names (B, 2, P) of random pages."""
        for index in self._rng.integers(len(self._pages), size=num_renewed):
            self._pages[index] = make_glyph_page(self._rng)
        chosen = [self._pages[i] for i in self._rng.integers(len(self._pages), size=num_pages)]
        names = np.stack([np.stack([page.letters, page.digits]) for page in chosen])
        return (
            normalise_pixels(np.stack([page.pixels for page in chosen])),
            torch.from_numpy(names.reshape(num_pages, 2, -1)),
        )


def train_tower(
    cache: Path,
    out: Path,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    peak_rate: float,
    page_share: float,
) -> None:
    """Train the tower on a cache of views; writes ``tower.pt`` and a log into ``out``."""
    views, rng = load_shards(cache), np.random.default_rng([seed, 1])
    model, words = new_model(seed), word_embeddings()
    use_lean_attention(model)
    parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])
    if (out / "tower.pt").exists():
        parts.load_state_dict(torch.load(out / "tower.pt", weights_only=True))
    optimizer = torch.optim.AdamW(parts.parameters(), betas=(0.9, 0.98), weight_decay=0.02)
    pool = PagePool(1000, rng)
    log = TrainingLog(out / "training_log.jsonl", "tower")
    for step in range(num_steps):
        rate = peak_rate * min(1.0, (step + 1) / 100) * (0.03 + 0.97 * _cosine(step, num_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        num_pages = round(batch_size * page_share)
        pixels, cells, heights, names = sample_views(views, batch_size - num_pages, rng)
        pages, glyphs = pool.sample(num_pages)
        with torch.autocast("cpu", torch.bfloat16):
            features = image_features(model, torch.cat([pixels, pages]))
        loss, accuracies = tower_loss(features[: len(pixels)], cells, heights, names, words)
        page_loss, page_accuracies = glyph_loss(features[len(pixels) :], glyphs, words)
        loss, accuracies = loss + page_loss, accuracies | page_accuracies
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        log.add(step, loss=loss.item(), **accuracies)
        if step % 200 == 199 or step == num_steps - 1:
            torch.save(parts.state_dict(), out / "tower.pt")


def _cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))
