"""RPN training on a tiny model: it learns, and how the work is cut up changes nothing."""

import logging
from pathlib import Path
from queue import Queue
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from data_contracts.label_settings import RegionSettings
from data_contracts.profiles import RpnShape
from data_contracts.training import FocalLoss, TrainingConfig
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.checkpoint_files import CARD, CONFIG, METRICS, WEIGHTS
from sdrpn_core.rpn.data import TrainingError, TrainingExample, split_examples
from sdrpn_core.rpn.features import FrozenPrefix
from sdrpn_core.rpn.resume import PARAMETERS
from sdrpn_core.rpn.training import _Trainer, learning_rate, train_rpn
from tests.patience import PATIENCE_SECONDS
from tests.rpn_scenes import bright_patch_examples, curve, loader
from tests.tiny_models import tiny_llava
from tests.waits import Waits

QUICK = TrainingConfig(
    num_epochs=3, batch_size=8, learning_rate=1e-3, validation_ratio=0.25, checkpoint_every=2
)
GIB = 2**30


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny_llava")


@pytest.fixture(scope="module")
def adapter(directory: Path) -> ModelAdapter:
    return load_adapter(tiny_llava(directory), device="cpu")


@pytest.fixture(scope="module")
def dataset() -> tuple[list[TrainingExample], dict[str, Image.Image]]:
    return bright_patch_examples(28, questions_per_image=2)


def train(
    adapter: ModelAdapter,
    dataset: tuple[list[TrainingExample], dict[str, Image.Image]],
    config: TrainingConfig = QUICK,
    **changed: Any,
) -> RpnCheckpoint:
    arguments: dict[str, Any] = {
        "shape": adapter.profile.rpn,
        "regions": RegionSettings.preset("default"),
        "label_set": "merge-labels/0123456789abcdef0123",
        "micro_batch_size": 8,
        "cache_bytes": GIB,
    }
    examples, images = dataset
    return train_rpn(adapter, examples, loader(images), config, **arguments | changed)


def test_learns_to_find_the_bright_patch(adapter: ModelAdapter) -> None:
    config = QUICK.model_copy(update={"num_epochs": 12, "learning_rate": 3e-3})
    checkpoint = train(adapter, bright_patch_examples(96), config)
    validation = [entry for entry in checkpoint.metrics if entry["kind"] == "validation"]
    assert [entry["epoch"] for entry in validation] == list(range(13))
    assert validation[0]["auc"] < 0.8
    assert validation[-1]["auc"] > 0.95
    chosen = checkpoint.config.validation.chosen
    assert chosen.f1 > 0.7
    assert chosen.f1 == max(point.f1 for point in checkpoint.config.validation.sweep)
    assert chosen.threshold == checkpoint.config.threshold


@pytest.mark.parametrize("shape", [RpnShape(branch_layer=3, depth=1, rotary_scores=True), None])
def test_cached_features_change_no_bit(
    adapter: ModelAdapter, dataset: Any, shape: RpnShape | None
) -> None:
    changed = {} if shape is None else {"shape": shape}
    cached = train(adapter, dataset, **changed).to_files()
    assert train(adapter, dataset, cache_bytes=0, **changed).to_files() == cached
    assert train(adapter, dataset, cache_bytes=100_000, **changed).to_files() == cached


def test_cache_stays_within_its_budget(adapter: ModelAdapter, dataset: Any) -> None:
    examples, images = dataset
    loaded: list[str] = []

    def load(example: TrainingExample) -> Image.Image:
        loaded.append(example.image_uri)
        return images[example.image_uri]

    unbounded = FrozenPrefix(adapter, load, branch_layer=2, cache_bytes=GIB)
    ((_, (one,)),) = unbounded.of_parts([examples[:1]])
    budget = one.num_bytes * 3
    prefix = FrozenPrefix(adapter, load, branch_layer=2, cache_bytes=budget)
    same_length = [examples[0]] + [e for e in examples[1:] if e.question == examples[0].question]
    loaded.clear()
    for _ in range(2):
        list(prefix.of_parts([same_length[:2], same_length[2:5]]))
    assert len(loaded) == 5 + 2

    shared = FrozenPrefix(adapter, load, branch_layer=2, cache_bytes=budget)
    loaded.clear()
    for _ in range(2):  # an example of two parts takes the room of one
        list(shared.of_parts([same_length[:1], same_length[:1], same_length[1:3]]))
    assert len(loaded) == 2 + 2


def test_pictures_of_the_next_part_are_read_while_one_is_worked_on(
    adapter: ModelAdapter, dataset: Any
) -> None:
    """On a GPU, it waited while every picture was prepared."""
    examples, images = dataset
    parts = [examples[start : start + 2] for start in (0, 2, 4)]
    assert len({example.image_uri for part in parts for example in part}) == 3
    is_read = {part[0].image_uri: Event() for part in parts}

    def load(example: TrainingExample) -> Image.Image:
        is_read[example.image_uri].set()
        return images[example.image_uri]

    prefix = FrozenPrefix(adapter, load, branch_layer=2, cache_bytes=0)
    for number, (part, features) in enumerate(prefix.of_parts(parts)):
        assert part is parts[number]
        assert len(features) == 2
        if number < 2:
            assert is_read[parts[number + 1][0].image_uri].wait(60), "only read when asked for"


def test_a_picture_that_is_gone_stops_training_in_its_turn(
    adapter: ModelAdapter, dataset: Any
) -> None:
    examples, images = dataset
    gone = examples[2].image_uri
    prefix = FrozenPrefix(
        adapter,
        loader({uri: image for uri, image in images.items() if uri != gone}),
        branch_layer=2,
        cache_bytes=0,
    )
    found = prefix.of_parts([examples[:2], examples[2:4], examples[4:6]])
    assert next(found)[0] == examples[:2]
    with pytest.raises(KeyError, match=gone):
        next(found)


def test_training_that_is_left_waits_for_no_picture(adapter: ModelAdapter, dataset: Any) -> None:
    """A Ctrl-C was followed only once the server of the pictures had answered, or was given up."""
    examples, images = dataset
    has_left = Event()
    answers: Queue[bool] = Queue()

    def load(example: TrainingExample) -> Image.Image:
        if example is examples[1]:
            answers.put(has_left.wait(PATIENCE_SECONDS / 4))
        return images[example.image_uri]

    prefix = FrozenPrefix(adapter, load, branch_layer=2, cache_bytes=0)
    found = prefix.of_parts([examples[:1], examples[1:2]])
    next(found)
    found.close()
    has_left.set()
    assert answers.get(timeout=PATIENCE_SECONDS), "left only after the picture had come"


def test_order_of_examples_does_not_matter(adapter: ModelAdapter, dataset: Any) -> None:
    examples, images = dataset
    expected = train(adapter, dataset).to_files()
    assert train(adapter, (examples[::-1], images)).to_files() == expected


@pytest.mark.parametrize("loss", [QUICK.loss, FocalLoss()], ids=lambda loss: loss.type)
def test_micro_batches_give_the_same_loss_as_whole_batches(
    adapter: ModelAdapter, dataset: Any, loss: Any
) -> None:
    config = QUICK.model_copy(update={"loss": loss, "num_epochs": 1})
    whole = train(adapter, dataset, config)
    for size in (1, 3):
        cut = train(adapter, dataset, config, micro_batch_size=size)
        np.testing.assert_allclose(curve(cut.metrics), curve(whole.metrics), rtol=1e-4)


def test_parts_of_a_batch_are_not_waited_for(
    adapter: ModelAdapter, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU stood still after each part, until the host had its loss, and in each, until it knew
    which cells count."""
    found: list[list[str]] = []
    optimize = _Trainer._optimize

    def watch(trainer: _Trainer, batch: Any) -> Any:
        with Waits() as waits:
            entry = optimize(trainer, batch)
        # Which cells count is found on the host, which nobody waits for.
        found.append([name for name in waits.names if name != "nonzero"])
        return entry

    monkeypatch.setattr(_Trainer, "_optimize", watch)
    config = QUICK.model_copy(update={"num_epochs": 1})
    for size in (2, 8):
        train(adapter, dataset, config, micro_batch_size=size)
    num_steps = len(found) // 2
    assert found[:num_steps] == found[num_steps:]


def test_examples_without_labels_change_nothing(adapter: ModelAdapter, dataset: Any) -> None:
    examples, images = dataset
    blank, blank_images = bright_patch_examples(3, seed=9)
    blank = [
        TrainingExample(f"blank{i}", e.image_uri, f"blank{i}", e.question, e.labels * 0 - 100)
        for i, e in enumerate(blank)
    ]
    more = train(adapter, (examples + blank, blank_images | images))
    files, expected = more.to_files(), train(adapter, dataset).to_files()
    assert files[WEIGHTS] == expected[WEIGHTS]
    assert files[METRICS] == expected[METRICS]
    assert more.config.data.num_without_labels == 3


@pytest.mark.parametrize("cache_bytes", [0, GIB])
def test_features_know_the_padding(adapter: ModelAdapter, cache_bytes: int) -> None:
    """The threshold is chosen in the image alone, and each example has its own."""
    images = {"wide": Image.new("RGB", (50, 10), "red"), "square": Image.new("RGB", (20, 20))}
    labels = np.zeros((5, 5), dtype=np.int8)
    examples = [TrainingExample(uri, uri, uri, "what is it ?", labels) for uri in images]
    prefix = FrozenPrefix(adapter, loader(images), branch_layer=2, cache_bytes=cache_bytes)
    for _ in range(2):  # computed, then perhaps out of the cache
        ((_, (wide, square)),) = prefix.of_parts([examples])
        assert square.content.all()
        assert wide.content.all(dim=1).tolist() == [False, False, True, False, False]
        assert int(wide.content.sum()) == 5


@pytest.mark.parametrize("cache_bytes", [0, GIB])
def test_features_of_equal_ids_are_their_own(adapter: ModelAdapter, cache_bytes: int) -> None:
    """Two imported mixes may both number from 0: one was trained on the other's pictures."""
    images = {"red": Image.new("RGB", (20, 20), "red"), "blue": Image.new("RGB", (20, 20), "blue")}
    labels = np.zeros((5, 5), dtype=np.int8)
    examples = [TrainingExample("0", uri, uri, "what is it ?", labels) for uri in images]
    alone = FrozenPrefix(adapter, loader(images), branch_layer=2, cache_bytes=0)
    expected = [of[0].hidden for _, of in alone.of_parts([[one] for one in examples])]
    assert not torch.equal(*expected)
    for parts in ([examples], [[one] for one in examples]):
        prefix = FrozenPrefix(adapter, loader(images), branch_layer=2, cache_bytes=cache_bytes)
        found = [item.hidden for _, of in prefix.of_parts(parts) for item in of]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_validation_images_are_never_trained_on(adapter: ModelAdapter, dataset: Any) -> None:
    """Turning every validation label over changes the threshold's figures but not one weight."""
    examples, images = dataset
    held_out = {e.question_id for e in split_examples(examples, QUICK).validation}
    turned = [
        TrainingExample(
            e.question_id,
            e.image_uri,
            e.image_key,
            e.question,
            np.where(e.labels >= 0, 1 - e.labels, e.labels)
            if e.question_id in held_out
            else e.labels,
        )
        for e in examples
    ]
    honest, spoilt = train(adapter, dataset), train(adapter, (turned, images))
    assert honest.to_files()[WEIGHTS] == spoilt.to_files()[WEIGHTS]
    assert honest.config.validation != spoilt.config.validation


def test_frozen_model_is_unchanged(adapter: ModelAdapter, dataset: Any) -> None:
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    train(adapter, dataset)
    assert all(torch.equal(v, before[n]) for n, v in adapter.model.state_dict().items())
    assert all(parameter.grad is None for parameter in adapter.model.parameters())


def test_resume_in_process_is_bit_exact(adapter: ModelAdapter, dataset: Any) -> None:
    saved: dict[int, dict[str, bytes]] = {}
    whole = train(adapter, dataset, save_checkpoint=saved.__setitem__)
    assert sorted(saved) == [2, 4, 6, 8, 10, 12, 14]
    for step in (2, 10, 14):
        emitted: list[dict[str, Any]] = []
        resumed = train(adapter, dataset, resume=saved[step], on_metrics=emitted.append)
        assert resumed.to_files() == whole.to_files()
        assert [e["step"] for e in emitted if e["kind"] == "step"] == list(range(step + 1, 16))


def test_a_resumed_training_says_where_it_goes_on(
    adapter: ModelAdapter, dataset: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log began in the middle, without a word."""
    saved: dict[int, dict[str, bytes]] = {}
    train(adapter, dataset, save_checkpoint=saved.__setitem__)
    assert "goes on" not in caplog.text
    with caplog.at_level(logging.INFO):
        train(adapter, dataset, resume=saved[10])
    assert "training goes on from step 10 of 15" in caplog.text


def test_resume_refuses_another_run(adapter: ModelAdapter, dataset: Any) -> None:
    saved: dict[int, dict[str, bytes]] = {}
    train(adapter, dataset, save_checkpoint=saved.__setitem__)
    other = QUICK.model_copy(update={"learning_rate": 2e-3})
    with pytest.raises(TrainingError, match="resume point at step 4 was made with other settings"):
        train(adapter, dataset, other, resume=saved[4])
    examples, images = dataset
    with pytest.raises(TrainingError, match="remove it to start afresh"):
        train(adapter, (examples[2:], images), resume=saved[4])


def test_how_often_progress_is_kept_changes_neither_resuming_nor_the_files(
    adapter: ModelAdapter, dataset: Any
) -> None:
    """``checkpoint_every`` was part of the resume identity, so changing it lost the progress."""
    saved: dict[int, dict[str, bytes]] = {}
    whole = train(adapter, dataset, save_checkpoint=saved.__setitem__).to_files()
    rarely = QUICK.model_copy(update={"checkpoint_every": 7})
    assert train(adapter, dataset, rarely, resume=saved[4]).to_files() == whole
    assert b"checkpoint_every" not in whole[CONFIG]


def test_half_precision_model_trains_in_float32_and_saves_its_own_precision(
    directory: Path, dataset: Any
) -> None:
    half = load_adapter(tiny_llava(directory), device="cpu", dtype="bfloat16")
    saved: dict[int, dict[str, bytes]] = {}
    config = QUICK.model_copy(update={"learning_rate": 1e-5})
    checkpoint = train(half, dataset, config, save_checkpoint=saved.__setitem__)
    assert {value.dtype for value in checkpoint.state.values()} == {torch.bfloat16}
    assert checkpoint.config.dtype == "bfloat16"
    assert checkpoint.build(half).dtype == torch.bfloat16
    # Steps of 1e-5 vanish in bfloat16 weights near 1; float32 master weights keep them.
    norms = {
        name: value
        for name, value in load(saved[8][PARAMETERS]).items()
        if name.endswith("norm.weight")
    }
    assert all((value != value.bfloat16()).any() for value in norms.values())
    assert len(norms) == 6
    assert train(half, dataset, config, resume=saved[8]).to_files() == checkpoint.to_files()


def test_labels_of_another_grid_are_a_clear_error(adapter: ModelAdapter, dataset: Any) -> None:
    examples, images = dataset
    wrong = [
        TrainingExample(e.question_id, e.image_uri, e.image_key, e.question, e.labels[:4])
        for e in examples
    ]
    with pytest.raises(TrainingError, match=r"labels are \(4, 5\), the model's grid is \(5, 5\)"):
        train(adapter, (wrong, images))


def test_diverging_run_stops_with_a_clear_error(adapter: ModelAdapter, dataset: Any) -> None:
    config = QUICK.model_copy(update={"learning_rate": 1e30, "max_grad_norm": None})
    with pytest.raises(TrainingError, match=r"not finite: lower training\.learning_rate"):
        train(adapter, dataset, config)


def test_schedule_warms_up_then_follows_a_cosine_to_zero() -> None:
    config = TrainingConfig(learning_rate=2.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 40, config) for step in range(41)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[4] == 2.0
    assert rates[22] == pytest.approx(1.0)
    assert rates[40] == pytest.approx(0.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_no_warm_up_starts_at_the_top() -> None:
    assert learning_rate(0, 5, TrainingConfig(learning_rate=2.0, warmup_ratio=0)) == 2.0


def test_files_name_no_place_or_time(adapter: ModelAdapter, dataset: Any, directory: Path) -> None:
    files = train(adapter, dataset).to_files()
    assert set(files) == {WEIGHTS, CONFIG, CARD, METRICS}
    assert str(directory).encode() not in files[WEIGHTS] + files[METRICS]
    assert files == train(adapter, dataset).to_files()
