"""Stage ``windows``: teach the vision tower to read, on small windows with separate heads.

The tower sees 36 cells at the positions of a random 6 x 6 part of its grid. The heads are thrown
away; the tower goes on to stage ``tower``.
"""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sdrpn_core.reference.model import TOWER_WIDTH, new_model
from sdrpn_core.reference.training_log import TrainingLog
from sdrpn_core.reference.training_tower import normalise_pixels
from sdrpn_core.reference.views import GRID
from sdrpn_core.reference.windows import LABEL_SIZES, WINDOW_GRID, render_windows

_LABEL_NAMES: Final = ("colour", "kind", "letter", "digit", "object_letter", "object_digit")
_WINDOWS_PER_SHARD: Final = 16_000


def train_windows(
    out: Path, *, seed: int, num_steps: int, batch_size: int, peak_rate: float
) -> None:
    """Train the tower on freshly rendered windows; writes ``tower.pt`` and a log into ``out``."""
    shards = [render_windows(_WINDOWS_PER_SHARD, shard) for shard in (1, 2)]
    pixels, labels = (np.concatenate(parts) for parts in zip(*shards, strict=True))
    model, rng = new_model(seed), np.random.default_rng([seed, 4])
    model.set_attn_implementation("eager")
    tower, head = model.model.vision_tower, torch.nn.Linear(TOWER_WIDTH, sum(LABEL_SIZES))
    initialise_for_windows(tower)
    trained = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.02)
    log = TrainingLog(out / "training_log.jsonl", "windows")
    parts = torch.nn.ModuleList([tower, model.model.multi_modal_projector])
    for step in range(num_steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, step / 100) * (0.05 + 0.95 * decay)
        rows = rng.integers(len(pixels), size=batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(_window_hidden(tower, normalise_pixels(pixels[rows]), rng)).float()
        loss, figures = _label_loss(logits, torch.from_numpy(labels[rows]).long())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        log.add(step, loss=loss.item(), **figures)
        if step % 200 == 199 or step == num_steps - 1:
            torch.save(parts.state_dict(), out / "tower.pt")


def initialise_for_windows(tower: torch.nn.Module) -> None:
    """Weights an order of magnitude above the stock ones: small ones start far too slowly."""
    for module in tower.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.trunc_normal_(module.weight, std=0.05)
    embeddings: Any = tower.embeddings
    torch.nn.init.normal_(embeddings.patch_embedding.weight, std=0.05)
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.1)


def _window_hidden(tower: Any, pixels_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Last hidden states (B, 36, width) of windows placed at random on the grid."""
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(pixels_BCHW).flatten(2).transpose(1, 2)
    top, left = rng.integers(0, GRID.height - WINDOW_GRID.height + 1, size=2)
    cells = torch.arange(GRID.num_cells).view(*GRID)
    shown = cells[top : top + WINDOW_GRID.height, left : left + WINDOW_GRID.width].flatten()
    positions = torch.cat([torch.zeros(1, dtype=torch.long), shown + 1])
    summary = embeddings.class_embedding.expand(len(patches), 1, -1)
    hidden = torch.cat([summary, patches], dim=1) + embeddings.position_embedding(positions)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
    cells_hidden: Tensor = hidden[:, 1:]
    return cells_hidden


def _label_loss(logits_BPC: Tensor, labels_BAP: Tensor) -> tuple[Tensor, dict[str, float | None]]:
    """Sum of the groups' cross entropies over labelled cells, and their accuracies."""
    loss = logits_BPC.new_zeros(())
    figures: dict[str, float | None] = {}
    groups = torch.split(logits_BPC, list(LABEL_SIZES), dim=-1)
    for column, (name, logits) in enumerate(zip(_LABEL_NAMES, groups, strict=True)):
        mask = labels_BAP[:, column] >= 0
        wanted = labels_BAP[:, column][mask]
        loss = loss + F.cross_entropy(logits[mask], wanted)
        figures[name] = float((logits[mask].argmax(-1) == wanted).float().mean())
    return loss, figures
