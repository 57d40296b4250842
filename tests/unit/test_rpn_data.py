"""Split by image and order of examples."""

from collections import Counter

import numpy as np
import pytest

from data_contracts.enums import RoiLabel
from data_contracts.training import TrainingConfig
from sdrpn_core.rpn.data import (
    TrainingError,
    TrainingExample,
    epoch_batch,
    examples_digest,
    num_batches_per_epoch,
    split_examples,
)

CONFIG = TrainingConfig(validation_ratio=0.2)


def example(question: int, image: int, label: int = 1) -> TrainingExample:
    labels = np.full((2, 3), label, dtype=np.int8)
    return TrainingExample(f"q{question:03}", f"uri{image}", f"image{image}", "what ?", labels)


def examples() -> list[TrainingExample]:
    return [example(number, number // 4) for number in range(200)]


def test_questions_about_one_image_never_part() -> None:
    split = split_examples(examples(), CONFIG)
    train, validation = ({e.image_key for e in part} for part in (split.train, split.validation))
    assert not train & validation
    assert (len(train), len(validation)) == (40, 10)
    assert split.sizes.num_train == len(split.train) == 160
    assert split.sizes.num_validation == 40


def test_stored_examples_are_a_sequence_of_what_was_given() -> None:
    given = {e.question_id: e for e in examples()}
    train = split_examples(given.values(), CONFIG).train
    for place, found in enumerate(train):
        expected = given[found.question_id]
        assert (found.image_uri, found.image_key) == (expected.image_uri, expected.image_key)
        assert found.labels.dtype == np.int8
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert train[place].question_id == train[place - len(train)].question_id
        assert train[place].question_id == found.question_id
    ids = [e.question_id for e in train]
    assert ids == sorted(ids)
    assert [e.question_id for e in train[150:170:3]] == ids[150:170:3]
    with pytest.raises(IndexError):
        train[len(train)]


def test_a_large_data_set_holds_out_no_more_than_a_threshold_needs() -> None:
    """A tenth of 152,000 questions was validated three times, and never trained on."""
    config = TrainingConfig()
    shares = {0: 0, 1: 0, 2: 1, 5: 1, 300: 30, 20_000: 2000, 152_000: 2000}
    assert {number: config.num_held_out(number) for number in shares} == shares
    assert config.about_num_steps(152_000) == 150_000 // config.batch_size


def test_split_depends_on_neither_order_nor_other_images() -> None:
    first = split_examples(examples(), CONFIG)
    turned = split_examples(examples()[::-1], CONFIG)
    for part, other in ((first.train, turned.train), (first.validation, turned.validation)):
        assert [e.question_id for e in part] == [e.question_id for e in other]
    fewer = split_examples([e for e in examples() if e.image_key != "image7"], CONFIG)
    kept = {e.image_key for e in first.validation} & {e.image_key for e in fewer.validation}
    assert len(kept) >= 9


def test_split_depends_on_the_seed() -> None:
    keys = [
        {e.image_key for e in split_examples(examples(), config).validation}
        for config in (CONFIG, CONFIG.model_copy(update={"seed": 1}))
    ]
    assert keys[0] != keys[1]


def test_examples_without_labels_are_counted_not_run() -> None:
    ignored = [example(900 + i, 900 + i, int(RoiLabel.IGNORE)) for i in range(5)]
    split = split_examples(examples() + ignored, CONFIG)
    assert split.sizes.num_without_labels == 5
    assert split.sizes.num_examples == 205
    assert not {e.question_id for e in ignored} & {
        e.question_id for e in (*split.train, *split.validation)
    }


def test_two_images_are_enough_and_one_is_a_clear_error() -> None:
    split = split_examples([example(0, 0), example(1, 1)], CONFIG)
    assert len(split.train) == len(split.validation) == 1
    with pytest.raises(TrainingError, match="1 of the images have labels"):
        split_examples([example(0, 0), example(1, 0)], CONFIG)


def test_validation_without_foreground_is_a_clear_error() -> None:
    with pytest.raises(TrainingError, match="no foreground in the 4 validation examples"):
        split_examples([example(i, i, 0) for i in range(20)], CONFIG)


def epoch_batches(num_examples: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """All batches of an epoch."""
    places = range(num_batches_per_epoch(num_examples, size))
    return [epoch_batch(num_examples, size, seed, epoch, place) for place in places]


def test_every_epoch_is_another_order_of_all_examples() -> None:
    epochs = [epoch_batches(12, 4, seed=3, epoch=epoch) for epoch in range(3)]
    for batches in epochs:
        assert Counter(index for batch in batches for index in batch) == Counter(range(12))
    assert len({str(batches) for batches in epochs}) == 3
    assert epoch_batches(12, 4, seed=3, epoch=1) == epochs[1]
    assert epoch_batches(12, 4, seed=4, epoch=1) != epochs[1]


def test_batches_have_one_size_and_leftovers_differ() -> None:
    left_over = set()
    for epoch in range(6):
        batches = epoch_batches(11, 4, seed=0, epoch=epoch)
        assert [len(batch) for batch in batches] == [4, 4]
        left_over.add(frozenset(range(11)) - {index for batch in batches for index in batch})
    assert len(left_over) > 1


def test_fewer_examples_than_a_batch_make_one_batch() -> None:
    assert [sorted(batch) for batch in epoch_batches(3, 8, seed=0, epoch=0)] == [[0, 1, 2]]


def test_digest_sees_labels_and_questions() -> None:
    base = examples_digest([example(0, 0), example(1, 1)])
    assert examples_digest([example(0, 0), example(1, 1)]) == base
    assert examples_digest([example(0, 0), example(1, 1, 0)]) != base
    assert examples_digest([example(0, 0), example(2, 1)]) != base
