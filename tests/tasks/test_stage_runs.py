"""The stage runner, on every kind of store: what is made, made again, or found."""

import subprocess
import sys
from dataclasses import replace
from threading import Barrier
from uuid import uuid4

import pytest
from polars.testing import assert_frame_equal

from data_contracts.artifact import Recipe
from data_contracts.enums import Stage
from tasks.artifacts.errors import CorruptArtifact
from tasks.artifacts.stage import NotMade, begin_stage, finish_stage, run_shard, run_stage
from tasks.artifacts.store import ArtifactStore
from tests.artifacts import (
    files_recipe,
    keys_of,
    make_file_shard,
    make_source_shard,
    source_frame,
    source_recipe,
    stage_run,
)
from tests.patience import PATIENCE_SECONDS

_FIRST_ARRAY = """
import sys

import polars as pl
from polars import _dependencies

assert "numpy" not in sys.modules
import tasks.artifacts.stage
import numpy as np


def load(name):
    raise AssertionError(f"polars loads {name} only now")


_dependencies.import_module = load
pl.Series(np.zeros(1))
"""


def set_created_at(store: ArtifactStore, recipe: Recipe, created_at: str) -> None:
    manifest = store.manifest(recipe.ref)
    provenance = manifest.provenance.model_copy(update={"created_at": created_at})
    changed = manifest.model_copy(update={"provenance": provenance})
    store.storage.put(f"{recipe.ref.prefix}/manifest.json", changed.model_dump_json().encode())


def answers_and_table(num_files: int = 1) -> tuple[Recipe, Recipe]:
    """Recipes of an evaluation."""
    stage = {"stage": Stage.EVALUATE}
    answers = files_recipe(1, name="answers").model_copy(update=stage)
    table = files_recipe(num_files, name="table")
    return answers, table.model_copy(update={**stage, "inputs": (str(answers.ref),)})


def test_a_committed_stage_is_skipped(store: ArtifactStore) -> None:
    run_stage(stage_run(store), source_recipe(), make_source_shard)
    calls: list[int] = []
    run_stage(stage_run(store), source_recipe(), lambda index: calls.append(index))
    assert calls == []


def test_only_shards_without_a_receipt_are_made(store: ArtifactStore) -> None:
    store.writer(source_recipe()).put_frame(1, source_frame(1))
    calls: list[int] = []

    def make_shard(index: int) -> object:
        calls.append(index)
        return make_source_shard(index)

    ref = run_stage(stage_run(store), source_recipe(), make_shard)
    assert calls == [0, 2]
    assert store.read_frame(ref).height == 12


def test_a_second_writer_gets_the_first_receipt(store: ArtifactStore) -> None:
    first = store.writer(files_recipe(1)).put_bytes(0, "a.txt", b"first")
    second = store.writer(files_recipe(1)).put_bytes(0, "a.txt", b"second")
    assert second == first
    assert store.writer(files_recipe(1)).receipt(0) == first


def test_shards_can_be_run_in_parts_and_any_order(store: ArtifactStore) -> None:
    run, recipe = stage_run(store), source_recipe()
    assert begin_stage(run, recipe) == [0, 1, 2]
    for index in (2, 0, 1, 1):
        run_shard(run, recipe, index, make_source_shard)
    ref = finish_stage(run, recipe)
    assert store.read_frame(ref)["path"].to_list()[0] == "0/0.png"
    assert begin_stage(run, recipe) is None


def test_progress_counts_what_was_there(memory_store: ArtifactStore) -> None:
    memory_store.writer(source_recipe()).put_frame(1, source_frame(1))
    seen: list[tuple[str, int, int]] = []
    run = stage_run(memory_store, on_progress=lambda *event: seen.append(event))
    run_stage(run, source_recipe(), make_source_shard)
    run_stage(run, source_recipe(), make_source_shard)
    assert seen == [("download", done, 3) for done in (1, 2, 3, 3)]


def test_so_many_shards_are_made_at_once_and_no_more(memory_store: ArtifactStore) -> None:
    seen: list[tuple[str, int, int]] = []
    together, at_work, most = Barrier(3, timeout=PATIENCE_SECONDS), list[int](), 0

    def make_shard(index: int) -> object:
        nonlocal most
        at_work.append(index)
        together.wait()
        most = max(most, len(at_work))
        together.wait()
        at_work.remove(index)
        return make_source_shard(index)

    run = stage_run(memory_store, on_progress=lambda *event: seen.append(event))
    ref = run_stage(run, source_recipe(6), make_shard, num_at_once=3)
    assert most == 3
    assert seen == sorted(set(seen)), "never the same twice"
    assert seen[-1] == ("download", 6, 6)
    alone = ArtifactStore(f"memory://{uuid4().hex}")
    run_stage(stage_run(alone), source_recipe(6), make_source_shard)
    assert memory_store.manifest(ref).shards == alone.manifest(ref).shards


def test_shards_made_side_by_side_are_not_the_first_to_show_polars_an_array() -> None:
    """Where several were, one of them now and then failed with a TypeError."""
    subprocess.run([sys.executable, "-c", _FIRST_ARRAY], check=True)


def test_one_that_fails_leaves_what_is_made(memory_store: ArtifactStore) -> None:
    def make_shard(index: int) -> object:
        if index == 1:
            raise ZeroDivisionError
        return make_source_shard(index)

    with pytest.raises(ZeroDivisionError):
        run_stage(stage_run(memory_store), source_recipe(2), make_shard, num_at_once=2)
    assert memory_store.missing(source_recipe(2)) == [1]


def test_a_rerun_gives_the_same_bytes(
    file_store: ArtifactStore, memory_store: ArtifactStore, s3_store: ArtifactStore
) -> None:
    stores = (file_store, memory_store, s3_store)
    refs = [run_stage(stage_run(s), source_recipe(), make_source_shard) for s in stores]
    one, other, third = (s.manifest(ref).shards for s, ref in zip(stores, refs, strict=True))
    assert one == other == third
    assert len(set(refs)) == 1


def test_force_makes_a_committed_artifact_anew(store: ArtifactStore) -> None:
    def make_shard(text: str) -> object:
        return lambda index: make_file_shard(index).__class__("a.txt", text.encode())

    ref = run_stage(stage_run(store), files_recipe(1), make_shard("old"))
    store.writer(files_recipe(1)).save_checkpoint(1, {"a": b"old"})
    assert run_stage(stage_run(store, force=True), files_recipe(1), make_shard("new")) == ref
    assert store.read_file(ref, "a.txt") == b"new"
    assert len(keys_of(store, ref)) == 4


@pytest.mark.parametrize("stage", [Stage.EVALUATE, Stage.EXTRACT_ATTENTION])
def test_a_table_that_is_older_than_its_answers_is_made_anew(
    memory_store: ArtifactStore, stage: Stage
) -> None:
    """A forced evaluation that was stopped kept the old table beside its new answers.

    What an import rejects, in the other stage, is older than its attention on purpose.
    """
    elsewhere = source_recipe(1)
    answers = files_recipe(1, name="answers").model_copy(update={"stage": stage})
    table = files_recipe(1, name="table").model_copy(
        update={"stage": stage, "inputs": (str(answers.ref), str(elsewhere.ref))}
    )
    run = stage_run(memory_store)
    for recipe, make in (
        (answers, make_file_shard),
        (elsewhere, make_source_shard),
        (table, make_file_shard),
    ):
        run_stage(run, recipe, make)
    assert begin_stage(run, table) is None
    set_created_at(memory_store, elsewhere, "2999-01-01T00:00:00+00:00")
    assert begin_stage(run, table) is None  # of another stage, which is forced by itself
    set_created_at(memory_store, answers, "2999-01-01T00:00:00+00:00")
    if stage is not Stage.EVALUATE:
        assert begin_stage(run, table) is None
        memory_store.discard(answers.ref)
        assert begin_stage(run, table) is None
        return
    with pytest.raises(NotMade):
        begin_stage(replace(run, only_looks=True), table)
    assert memory_store.is_committed(table.ref)
    assert begin_stage(run, table) == [0]


@pytest.mark.parametrize("has_note", [True, False])
def test_a_clock_that_was_ahead_once_made_a_table_anew_at_every_run(
    memory_store: ArtifactStore, has_note: bool
) -> None:
    """Its answers were made tomorrow, by another machine's clock. Tables of earlier releases
    have no note of their answers: they are made anew once more."""
    run = stage_run(memory_store)
    answers, table = answers_and_table()
    run_stage(run, answers, make_file_shard)
    set_created_at(memory_store, answers, "2999-01-01T00:00:00+00:00")
    run_stage(run, table, make_file_shard)
    if not has_note:
        memory_store.storage.delete([f"{table.ref.prefix}/inputs.json"])
        assert begin_stage(run, table) == [0]
        run_stage(run, table, make_file_shard)
    assert begin_stage(run, table) is None


def test_a_table_that_was_begun_of_earlier_answers_is_begun_anew(
    memory_store: ArtifactStore,
) -> None:
    """One of its files would have been of them, the other of the new ones."""
    run = stage_run(memory_store)
    answers, table = answers_and_table(num_files=2)
    run_stage(run, answers, make_file_shard)
    assert begin_stage(run, table) == [0, 1]
    run_shard(run, table, 0, make_file_shard)
    assert begin_stage(run, table) == [1]
    run_stage(replace(run, force=True), answers, make_file_shard)
    set_created_at(memory_store, answers, "2999-01-01T00:00:00+00:00")
    assert begin_stage(run, table) == [0, 1]


def test_force_of_what_is_not_there_just_runs(store: ArtifactStore) -> None:
    """Forcing discards first: what is not there must not be missed."""
    ref = run_stage(stage_run(store, force=True), source_recipe(1), make_source_shard)
    assert_frame_equal(store.read_frame(ref), source_frame(0).sort("path"))
    assert store.manifest(ref).statistics == {"files": 4.0, "seconds": 0.5}


@pytest.mark.parametrize("damage", [b"", b'{"manifest_version": 1, "rec'])
def test_damaged_manifest_is_made_again_from_the_receipts(
    store: ArtifactStore, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It counted as committed, so that every later stage failed until it was forced."""
    ref = run_stage(stage_run(store), source_recipe(), make_source_shard)
    whole = store.manifest(ref)
    store.storage.put(f"{ref.prefix}/manifest.json", damage)
    with pytest.raises(CorruptArtifact):
        store.read_frame(ref)

    def make_none(index: int) -> object:
        raise AssertionError(f"shard {index} has its receipt")

    assert run_stage(stage_run(store), source_recipe(), make_none) == ref
    assert store.manifest(ref).shards == whole.shards
    (line,) = caplog.messages
    assert "manifest.json: is not a Manifest" in line
    assert line.endswith("it is made again")


def test_a_stage_tells_of_what_it_makes_and_not_of_what_it_finds(
    memory_store: ArtifactStore,
) -> None:
    started: list[Recipe] = []
    run = stage_run(memory_store, on_start=started.append)
    run_stage(run, source_recipe(), make_source_shard)
    assert started == [source_recipe()]
    run_stage(run, source_recipe(), make_source_shard)
    assert started == [source_recipe()]
