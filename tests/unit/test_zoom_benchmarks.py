"""The zoom benchmarks: with an RPN that was not trained here, and with random weights."""

import re
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import zoom_throughput
from benchmarks.random_llava import SIZES, LlavaSize, PlantedZoom, random_zoom
from benchmarks.timing import paired_parts
from benchmarks.zoom_scenes import probes
from benchmarks.zoom_threshold import Sweep, report_honesty
from benchmarks.zoom_throughput import parts
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.reference.scenes import LAYOUTS
from tasks.rpn_files import save_checkpoint
from tests.rpn_checkpoints import imported_checkpoint
from tests.tiny_models import tiny_llava
from tests.zoom_checks import random_images, random_pipeline


def test_an_imported_rpn_has_no_figures_of_honesty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark broke off after all its answers, before it drew them."""
    checkpoint = imported_checkpoint(tmp_path / "model")
    save_checkpoint(checkpoint, tmp_path / "rpn")
    report_honesty(f"{tmp_path}/store", f"{tmp_path}/rpn")
    assert "was not measured" in capsys.readouterr().out


def test_a_sweep_is_judged_layout_by_layout() -> None:
    """Layouts count alike, however many questions each has."""
    objects, sign, document = LAYOUTS
    layouts = np.array([objects, objects, objects, sign, document])
    right = np.array([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    sweep = Sweep("any", (0.3, 0.4), right, layouts)
    np.testing.assert_allclose(sweep.accuracy, [[1, 0, 0], [1 / 3, 1, 1]])
    assert sweep.best == 1


def test_scenes_of_one_benchmark_are_none_of_another() -> None:
    """The recovered share was measured on the scenes that the RPN's shape was chosen on."""
    earlier, later = probes(2), probes(2, first_scene=2)
    pictures = {probe.image.tobytes() for probe in [*earlier, *later]}
    assert len(pictures) == len(earlier) + len(later) == 4 * len(LAYOUTS)
    assert [probe.layout for probe in later] == [*LAYOUTS, *LAYOUTS]


def test_throughput_of_random_weights_at_several_batch_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size and the device could not be chosen, so nothing larger than medium was measured."""
    small = LlavaSize(6, 8, 64, 96, 3, 4, 64, 96, branch_layer=2)
    monkeypatch.setitem(SIZES, "small", small)
    options = "--random --size small --device cpu --num-scenes 1 --rounds 1 --max-new-tokens 2"
    variants = ["--withdraw", "--whole-boxes"]
    zoom_throughput.main([*options.split(), *variants, "--batch-sizes", "1", "2"])
    printed = capsys.readouterr().out
    for batch_size in (1, 2):
        assert f"in batches of {batch_size}\n" in printed
    # Once for images of their own, once for several questions per image.
    for name in ("one pass", "two stages", "two stages, image withdrawn"):
        assert printed.count(f"| {name} |") == 4
    shown = re.findall(r"two stages, 100% zoomed, a crop is (\d+)% of", printed)
    assert len(shown) == 2
    assert all(40 < int(share) < 90 for share in shown), "half of the box, and a margin"
    assert printed.count("two stages, whole boxes, 100% zoomed, a crop is 100%") == 2
    assert printed.count("| stock generate |") == 2
    assert printed.count("two stages, 100% zoomed") == 2
    assert printed.count("two stages, image withdrawn, 100% zoomed") == 2
    with pytest.raises(SystemExit):
        zoom_throughput.main([*options.split(), "--batch-sizes", "1000"])
    assert "fill no batch of 1000" in capsys.readouterr().err


def test_candidates_take_turns_part_by_part_in_changing_orders() -> None:
    """The speed of a machine changes within a round; what ran before leaves caches warm or cold."""
    ran: list[tuple[str, int]] = []
    ticks = count()
    candidates = {name: partial(_note, ran, name) for name in "abc"}
    totals = paired_parts(candidates, [1, 2], num_rounds=5, clock=lambda: next(ticks))
    assert totals == {name: [2.0] * 5 for name in "abc"}, "one tick in each of two parts"
    assert [part for _, part in ran] == [1] * 18 + [2] * 18, "a warm-up and five rounds of each"
    turns = ["".join(name for name, _ in ran[at : at + 3]) for at in range(0, 36, 3)]
    assert all(sorted(turn) == list("abc") for turn in turns)
    assert len(set(turns)) > 3
    assert turns[:6] != turns[6:]


def _note(ran: list[tuple[str, int]], name: str, part: int) -> None:
    ran.append((name, part))


def test_parts_lose_no_question() -> None:
    images = [Image.new("RGB", (1, 1)) for _ in range(5)]
    found = parts((images, list("abcde")), 2)
    assert [questions for _, questions in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert [image for own, _ in found for image in own] == images


def test_throughput_of_what_the_rpn_was_made_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody had asked for that budget, so the zoom that is used was not measured."""
    monkeypatch.setitem(SIZES, "small", LlavaSize(6, 8, 64, 96, 3, 4, 64, 96, branch_layer=2))

    def cheap(model: ModelAdapter, shown_ratio: float) -> PlantedZoom:
        zoom = random_zoom(model, shown_ratio)
        zoom.regions = zoom.regions.with_changes(crop_tokens=9, withdraw_image=True)
        return zoom

    monkeypatch.setattr(zoom_throughput, "random_zoom", cheap)
    options = "--random --size small --device cpu --num-scenes 1 --rounds 1 --max-new-tokens 2"
    zoom_throughput.main([*options.split(), "--batch-size", "2"])
    names = re.findall(r"\| (two stages[^|]*?) \|", capsys.readouterr().out)
    assert names.count("two stages, 9 crop tokens, image withdrawn") == 2
    assert names.count("two stages") == 2


def test_one_pass_says_what_the_stock_model_says(tmp_path: Path) -> None:
    """Speed is compared with the stock processor and ``generate``: both must do the same work."""
    pipeline = random_pipeline(load_adapter(tiny_llava(tmp_path, seed=3), device="cpu"))
    images = random_images([(60, 40), (30, 50), (45, 45)])
    inputs = (images, ["what is the small red word ?", "it", "red blue ?"])
    stock = zoom_throughput.stock(pipeline, inputs, batch_size=2, max_new_tokens=8)
    ours = zoom_throughput.one_pass(pipeline, inputs, batch_size=2, max_new_tokens=8)
    assert len(set(stock)) > 1, "answers that are all alike would be equal whatever is done"
    assert stock == ours
