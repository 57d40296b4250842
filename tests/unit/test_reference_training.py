"""Losses and batches that the reference model is trained with."""

import numpy as np
import torch

from sdrpn_core.reference.glyph_pages import make_glyph_page
from sdrpn_core.reference.lean_attention import use_lean_attention
from sdrpn_core.reference.model import new_model, word_embeddings
from sdrpn_core.reference.training_decoder import IGNORED, answer_loss, synthetic_batch
from sdrpn_core.reference.training_tower import tower_loss
from sdrpn_core.reference.vocabulary import LETTERS, TOKEN_IDS
from sdrpn_core.reference.windows import LABEL_SIZES, render_windows

WORDS = word_embeddings()
NAMES = [TOKEN_IDS[name] for name in ("red", "circle", "c", "3")]


def _tower_case(readable: bool) -> tuple[torch.Tensor, ...]:
    cells = torch.tensor([[0, 0, -1, -2]])
    heights = torch.tensor([[9.0 if readable else 1.0]])
    return cells, heights, torch.tensor([[NAMES]])


def test_tower_loss_is_least_for_the_sum_of_the_words() -> None:
    cells, heights, names = _tower_case(readable=True)
    features = torch.zeros(1, 4, WORDS.shape[1])
    features[0, :2] = WORDS[NAMES].sum(0)
    loss, accuracies = tower_loss(features, cells, heights, names, WORDS)
    assert set(accuracies.values()) == {1.0}
    worse, _ = tower_loss(torch.zeros_like(features), cells, heights, names, WORDS)
    assert loss < 0.1 * worse


def test_unreadable_print_is_not_asked_for() -> None:
    cells, heights, names = _tower_case(readable=False)
    features = torch.zeros(1, 4, WORDS.shape[1])
    features[0, :2] = WORDS[NAMES[:2]].sum(0)
    silent, _ = tower_loss(features, cells, heights, names, WORDS)
    features[0, :2] += WORDS[NAMES[2:]].sum(0)
    guessing, _ = tower_loss(features, cells, heights, names, WORDS)
    assert silent < guessing


def test_undecided_cells_do_not_count() -> None:
    cells, heights, names = _tower_case(readable=True)
    features = torch.zeros(1, 4, WORDS.shape[1])
    other = features.clone()
    other[0, 3] = 5.0
    first, second = (tower_loss(f, cells, heights, names, WORDS)[0] for f in (features, other))
    assert first == second


def test_targets_are_the_next_words() -> None:
    batch = synthetic_batch(16, WORDS, np.random.default_rng(0))
    for row, column in torch.nonzero(batch.targets != IGNORED).tolist():
        spoken = batch.embeddings[row, column + 1]
        assert int((WORDS @ spoken).argmax()) == batch.targets[row, column]
        assert batch.positions[row, column + 1] == batch.positions[row, column] + 1


def test_gaps_in_positions_do_not_hide_the_image_from_the_answer() -> None:
    """transformers takes gaps for borders of packed sequences when it is given no mask."""
    model = new_model(0).eval()
    use_lean_attention(model)
    batch = synthetic_batch(4, WORDS, np.random.default_rng(0))
    embeddings = batch.embeddings.clone().requires_grad_()
    changed = type(batch)(**(vars(batch) | {"embeddings": embeddings}))
    torch.autograd.backward(answer_loss(model, changed)[0])
    assert embeddings.grad is not None
    first_image_token = embeddings.grad[:, 3].abs().amax(-1)
    assert (first_image_token > 0).all()


def test_glyph_pages_name_some_letter_and_digit_cells() -> None:
    pages = [make_glyph_page(np.random.default_rng(seed)) for seed in range(4)]
    letters = np.concatenate([page.letters.ravel() for page in pages])
    assert pages[0].pixels.shape == (96, 96, 3)
    assert set(letters.tolist()) == set(range(-1, len(LETTERS)))
    again = make_glyph_page(np.random.default_rng(0))
    assert (again.pixels == pages[0].pixels).all()


def test_windows_show_the_print_inside_the_object() -> None:
    pixels, labels = render_windows(40, 0)
    assert pixels.shape == (40, 48, 48, 3)
    for row in range(len(LABEL_SIZES)):
        assert (labels[:, row] < LABEL_SIZES[row]).all()
    printed, owned = labels[:, 2] >= 0, labels[:, 4] >= 0
    # The smallest print may straddle cells so that none holds a quarter of a letter.
    assert printed.any(axis=1).mean() > 0.8
    assert (labels[:, 2][printed & owned] == labels[:, 4][printed & owned]).all()
