"""The store under failing writes, killed processes, racing writers and weak storage.

The promise: whatever happens, readers see a whole artifact or none, and a rerun ends with the same
shards as an undisturbed run.
"""

import errno
import hashlib
import itertools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import pytest

from data_contracts.artifact import ShardEntry
from tasks.artifacts.checkpoints import load_latest_checkpoint, save_checkpoint
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact
from tasks.artifacts.stage import FileShard, FrameShard, run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.artifacts.writer import ArtifactWriter
from tasks.fetching.transient import is_transient
from tasks.storage.errors import StoreError
from tasks.storage.storage import Storage
from tests.artifacts import files_recipe, make_source_shard, source_recipe, stage_run
from tests.fault_injection.faults import (
    Fault,
    HookedStorage,
    UnconditionalStorage,
    UnlistableStorage,
    failing,
    over,
)
from tests.fault_injection.processes import CONTEXT, write_own_bytes, write_slowly


def run_small(store: ArtifactStore, num_shards: int = 2, **config: object) -> None:
    run_stage(stage_run(store), source_recipe(num_shards, **config), make_source_shard)


def undisturbed(num_shards: int) -> tuple[ShardEntry, ...]:
    """Shards of the small stage when nothing goes wrong."""
    store = ArtifactStore(f"memory://undisturbed-{num_shards}")
    run_small(store, num_shards)
    return store.manifest(source_recipe(num_shards).ref).shards


def finished(writer: ArtifactWriter) -> list[int]:
    return sorted(set(range(writer.recipe.num_shards)) - set(writer.missing()))


def check_promises(store: ArtifactStore, writer: ArtifactWriter) -> bool:
    """Readers see all or nothing, and every receipt has its shard; returns which."""
    for index in finished(writer):
        entry = writer.receipt(index)
        assert entry is not None
        data = store.storage.read(f"{writer.ref.prefix}/{entry.key}")
        assert hashlib.sha256(data).hexdigest() == entry.sha256
    if store.is_committed(writer.ref):
        assert store.read_frame(writer.ref).height == 4 * writer.recipe.num_shards
        return True
    with pytest.raises(ArtifactNotFound):
        store.read_frame(writer.ref)
    return False


class TestFailingWrites:
    @pytest.mark.parametrize("after", [False, True], ids=["lost", "answer lost"])
    def test_every_write_may_fail(self, store: ArtifactStore, after: bool) -> None:
        for fail_at in itertools.count(1):
            recipe = source_recipe(2, fail_at=fail_at)
            broken = failing(store, fail_at, after=after)
            try:
                run_stage(stage_run(broken), recipe, make_source_shard)
                break
            except Fault:
                check_promises(store, store.writer(recipe))
            run_stage(stage_run(store), recipe, make_source_shard)
            assert store.manifest(recipe.ref).shards == undisturbed(2)
        assert fail_at == 8, (
            "the recipe, begun and gone on with, two shards, two receipts, the manifest"
        )

    def test_every_write_may_fail_in_a_row(self, memory_store: ArtifactStore) -> None:
        """Each attempt gets one write further."""
        for fail_at in range(1, 30):
            try:
                run_small(failing(memory_store, fail_at, after=False), 3)
                break
            except Fault:
                continue
        assert memory_store.manifest(source_recipe(3).ref).shards == undisturbed(3)

    def test_every_deletion_of_a_forced_rerun_may_fail(self, store: ArtifactStore) -> None:
        for fail_at in itertools.count(1):
            recipe = source_recipe(2)
            run_stage(stage_run(store), recipe, make_source_shard)
            broken = failing(store, fail_at, after=True)
            try:
                broken.discard(recipe.ref)
                break
            except Fault:
                assert not store.is_committed(recipe.ref)
                check_promises(store, store.writer(recipe))
            run_stage(stage_run(store), recipe, make_source_shard)
            assert store.manifest(recipe.ref).shards == undisturbed(2)
        assert fail_at == 7, "six objects"

    def test_every_write_of_a_checkpoint_may_fail(self, store: ArtifactStore) -> None:
        recipe = files_recipe(1)
        store.writer(recipe).save_checkpoint(1, {"a": b"1", "b": b"1"})
        for fail_at in range(1, 20):
            step = fail_at + 1
            before = store.writer(recipe).latest_checkpoint()
            files = {name: str(step).encode() for name in "ab"}
            try:
                failing(store, fail_at, after=True).writer(recipe).save_checkpoint(step, files)
                break
            except Fault:
                assert store.writer(recipe).latest_checkpoint() in (before, (step, files))
        assert store.writer(recipe).latest_checkpoint() == (step, files)

    @pytest.mark.parametrize(
        ("number", "told"),
        [
            (errno.ENOSPC, "the disk is full .*No space.*; make room and run again"),
            (errno.EFBIG, r"larger than is allowed there .*; raise the limit \(ulimit -f\), or"),
            (errno.EROFS, "read-only .*; mount it for writing and run again, what is finished"),
        ],
    )
    def test_a_disk_that_takes_no_more_is_told_of_in_one_line(
        self, file_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, number: int, told: str
    ) -> None:
        def fail(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            for write in (file_store.storage.put, file_store.storage.create):
                with pytest.raises(StoreError, match=told) as found:
                    write("a/b", b"data")
                assert not is_transient(found.value)
        assert os.listdir(f"{file_store.root}/a") == []

    def test_no_listing_is_needed(self, store: ArtifactStore) -> None:
        """Listings of object stores may lag behind."""
        unlistable = over(store, UnlistableStorage)
        run_small(unlistable)
        assert unlistable.read_frame(source_recipe(2).ref).height == 8
        run_small(unlistable)


class TestKilledProcesses:
    @pytest.mark.parametrize(
        ("store_name", "seed"), [("file_store", 0), ("file_store", 1), ("s3_store", 2)]
    )
    def test_killed_at_random_moments(
        self, request: pytest.FixtureRequest, store_name: str, seed: int
    ) -> None:
        store, num_shards = request.getfixturevalue(store_name), 12
        rng = random.Random(seed)
        writer = store.writer(source_recipe(num_shards))
        num_done, num_kills = 0, 0
        while not store.is_committed(writer.ref):
            process, progress = self.start(store, num_shards)
            if num_kills < 3:  # then let it end
                for _ in range(rng.randint(1, 3)):
                    progress.recv()
                time.sleep(rng.uniform(0, 0.02))
                process.kill()
                num_kills += 1
            process.join()
            check_promises(store, writer)
            assert len(finished(writer)) >= num_done
            num_done = len(finished(writer))
        assert num_kills > 1
        assert store.manifest(writer.ref).shards == undisturbed(num_shards)

    def start(self, store: ArtifactStore, num_shards: int) -> tuple[BaseProcess, Connection]:
        progress, answer = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=write_slowly,
            args=(store.root, store.storage.storage_options, num_shards, answer),
        )
        process.start()
        return process, progress


class TestRacingWriters:
    def test_processes_that_race_end_with_one_artifact(self, shared_store: ArtifactStore) -> None:
        store, num_shards, num_writers = shared_store, 6, 3
        start = CONTEXT.Barrier(num_writers)
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(num_writers)]
        processes = [
            CONTEXT.Process(
                target=write_own_bytes,
                args=(store.root, store.storage.storage_options, num_shards, start, answer),
            )
            for _, answer in pipes
        ]
        for process in processes:
            process.start()
        manifests = [receive.recv() for receive, _ in pipes]
        for process in processes:
            process.join()
        ref = files_recipe(num_shards).ref
        assert [process.exitcode for process in processes] == [0] * num_writers
        assert set(manifests) == {store.manifest(ref).model_dump_json()}
        for index, name in enumerate(store.file_names(ref)):
            assert store.read_file(ref, name).startswith(f"{index} of ".encode())

    @pytest.mark.parametrize("kind", [HookedStorage, UnconditionalStorage])
    def test_another_writer_comes_between_any_two_writes(
        self, memory_store: ArtifactStore, kind: type[HookedStorage]
    ) -> None:
        """Also where conditional puts are ignored: the last manifest is whole, whoever wrote it."""
        for moment in itertools.count(1):
            recipe = files_recipe(2, moment=moment)
            ref = recipe.ref
            others: list[object] = []

            def intrude(number: int, is_done: bool) -> None:
                if number == moment and not is_done and not others:  # noqa: B023
                    run_stage(stage_run(memory_store), recipe, own_shard("other"))  # noqa: B023
                    others.append(memory_store.manifest(ref))  # noqa: B023

            hooked = over(memory_store, kind)
            hooked.storage.hook = intrude
            run_stage(stage_run(hooked), recipe, own_shard("one"))
            if not others:
                break
            names = [memory_store.read_file(ref, name) for name in ("part-0", "part-1")]
            assert {name.split()[1] for name in names} <= {b"one", b"other"}
            if kind is HookedStorage:
                assert memory_store.manifest(ref) == others[0], "a commit is final"
        assert moment >= 7

    def test_readers_of_an_artifact_that_is_forced_see_all_or_fail(
        self, file_store: ArtifactStore
    ) -> None:
        run_small(file_store, 4)
        ref = source_recipe(4).ref
        seen: list[int] = []
        is_running = True

        def read() -> None:
            while is_running:
                try:
                    seen.append(file_store.read_frame(ref).height)
                except (ArtifactNotFound, CorruptArtifact):
                    continue

        reader = Thread(target=read)
        reader.start()
        for _ in range(5):
            run = stage_run(file_store, force=True)
            run_stage(run, source_recipe(4), make_source_shard)
        is_running = False
        reader.join()
        assert set(seen) <= {16}


def own_shard(owner: str) -> object:
    """Files that tell their writer."""
    return lambda index: FileShard(f"part-{index}", f"{index} {owner}".encode())


def test_a_shard_that_fails_leaves_the_others(store: ArtifactStore) -> None:
    def make_shard(index: int) -> FrameShard:
        if index == 1:
            raise Fault
        return make_source_shard(index)

    with pytest.raises(Fault):
        run_stage(stage_run(store), source_recipe(3), make_shard)
    assert store.writer(source_recipe(3)).missing() == [1, 2]
    run_small(store, 3)
    assert store.manifest(source_recipe(3).ref).shards == undisturbed(3)


def test_a_training_that_is_behind_another_one_saves_all_the_same(tmp_path: Path):
    """The one ahead deletes older checkpoints, and half-written files with them."""

    def train() -> None:
        storage = Storage(str(tmp_path))
        for step in range(1, 100):
            save_checkpoint(storage, "train-rpn/1", step, {"weights": bytes(3000), "state": b"{}"})

    with ThreadPoolExecutor(2) as pool:
        for training in [pool.submit(train) for _ in range(2)]:
            training.result()
    found = load_latest_checkpoint(Storage(str(tmp_path)), "train-rpn/1")
    assert found == (99, {"weights": bytes(3000), "state": b"{}"})
