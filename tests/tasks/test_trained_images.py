"""Whether anybody is told that a model is evaluated on what its RPN was trained on."""

from pathlib import Path

import pytest

from data_contracts.configs import RecordsConfig
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import build_jsonl
from tasks.download import download
from tasks.trained_images import warn_of_trained_images
from tests.artifacts import stage_run
from tests.mixes import write_small_mix


def test_images_that_are_evaluated_and_trained_on_are_told(
    memory_store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Only parts of one source were kept apart; the same source under two names was not."""
    settings, run = RecordsConfig(max_failure_rate=1, rows_per_shard=2), stage_run(memory_store)
    sources = {
        "mix": write_small_mix(tmp_path / "mix", 4),
        "others": write_small_mix(tmp_path / "others", 4, first_seed=1000),
    }
    made = {
        name: build_jsonl(run, download(run, source), source, settings)
        for name, source in sources.items()
    }
    caplog.clear()
    warn_of_trained_images(memory_store, {"held_out": made["others"]}, {"mix": made["mix"]})
    assert not caplog.records
    evaluated = {"held_out": made["others"], "again": made["mix"]}
    warn_of_trained_images(memory_store, evaluated, made)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(
        "4 of the 4 images of source 'again', which is evaluated, are also those of source 'mix', "
    )
    assert told[1].startswith("4 of the 4 images of source 'held_out', which is evaluated, are als")
