"""The store, on a folder, in memory and on real object stores."""

import pickle
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts.artifact import Recipe
from data_contracts.registry import ContractError
from tasks.artifacts.errors import ArtifactNotFound, CorruptArtifact, RecipeMismatch
from tasks.artifacts.provenance import code_version
from tasks.artifacts.stage import run_stage
from tasks.artifacts.store import ArtifactStore
from tasks.storage.errors import StoreError
from tests.architecture.source_tree import CHECKOUT
from tests.artifacts import (
    files_recipe,
    keys_of,
    make_source_shard,
    source_frame,
    source_recipe,
    stage_run,
)


class TestWritingAndReading:
    def test_a_stage_commits_what_its_shards_return(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(), make_source_shard)
        manifest = store.manifest(ref)
        assert manifest.num_rows == 12
        assert manifest.statistics == {"files": 12.0, "seconds": 1.5}
        assert manifest.recipe == source_recipe()
        expected = pl.concat([source_frame(index).sort("path") for index in range(3)])
        assert_frame_equal(store.read_frame(ref), expected)
        assert_frame_equal(store.read_frame(ref, ["uri"]), expected.select("uri"))
        made = store.manifest(ref)
        assert_frame_equal(store.read_shard_frame(made, 1), expected[4:8])
        assert_frame_equal(store.read_shard_frame(made, 1, ["uri"]), expected[4:8].select("uri"))

    def test_all_rows_take_one_look_at_the_manifest(
        self, memory_store: ArtifactStore, reads: Counter[str]
    ) -> None:
        """It is as long as shards are many, and was read twice."""
        ref = run_stage(stage_run(memory_store), source_recipe(), make_source_shard)
        reads.clear()
        memory_store.read_frame(ref)
        assert reads[f"{ref.prefix}/manifest.json"] == 1

    def test_layout_is_the_documented_one(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        shards = [shard.key for shard in store.manifest(ref).shards]
        first, second = (shard.sha256[:12] for shard in store.manifest(ref).shards)
        assert shards == [
            f"shards/00000-of-00002-{first}.parquet",
            f"shards/00001-of-00002-{second}.parquet",
        ]
        receipts = ["receipts/00000.json", "receipts/00001.json"]
        assert sorted(keys_of(store, ref)) == ["manifest.json", *receipts, "recipe.json", *shards]

    def test_records_are_stored_as_json_lines(self, store: ArtifactStore) -> None:
        recipe = source_recipe(1).model_copy(update={"schema_id": "qa_record.v1"})
        row = {
            "question_id": "0" * 20,
            "dataset": "gqa",
            "source_id": "1",
            "turn": 0,
            "kind": "natural",
            "image_uri": "a.png",
            "image_sha256": None,
            "question": "what?",
            "answers": ["a"],
            "status": "ok",
            "reason": "",
        }
        writer = store.writer(recipe)
        assert writer.put_frame(0, pl.DataFrame([row])).key.endswith(".jsonl")
        writer.commit()
        assert store.read_frame(writer.ref).to_dicts() == [row]

    def test_rows_in_parts_are_stored_as_rows_at_once_are(self, store: ArtifactStore) -> None:
        """Row groups, and with them the bytes, do not depend on how the parts are cut."""
        frame = source_frame(0, num_rows=2500).sort("path")
        one, cut = source_recipe(1, parts="one"), source_recipe(1, parts="many")
        whole = store.writer(one).put_frame(0, frame)
        writer = store.writer(cut)
        parts = [frame.slice(start, 700) for start in range(0, 2500, 700)]
        streamed = writer.put_frames(0, iter(parts), {"files": 2500})
        assert (streamed.sha256, streamed.num_bytes) == (whole.sha256, whole.num_bytes)
        assert streamed.num_rows == 2500
        assert writer.put_frames(0, iter(()), {}) == streamed, "the first receipt counts"
        assert writer.commit().statistics == {"files": 2500}
        assert_frame_equal(store.read_frame(writer.ref), frame)

    def test_row_groups_are_the_rows_a_few_at_a_time(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(2))
        for index in range(2):
            writer.put_frame(index, source_frame(index, num_rows=2500))
        writer.commit()
        columns = ["sha256", "num_bytes"]
        groups = list(store.row_groups(writer.ref, columns))
        assert len(groups) > 4
        assert max(group.height for group in groups) < 2000
        assert_frame_equal(pl.concat(groups), store.read_frame(writer.ref, columns))

    def test_a_part_that_breaks_the_contract_stores_nothing(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        wrong = source_frame(1).with_columns(num_bytes=pl.lit(-1))
        with pytest.raises(ContractError, match="num_bytes"):
            writer.put_frames(0, iter([source_frame(0), wrong]), {})
        assert writer.missing() == [0]
        assert keys_of(store, writer.ref) == ["recipe.json"]

    def test_files_are_found_by_name(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(2))
        writer.put_bytes(0, "metrics.json", b'{"loss": 0.5}')
        writer.put_bytes(1, "pictures/a.png", b"png")
        writer.commit()
        assert store.file_names(writer.ref) == ["metrics.json", "pictures/a.png"]
        assert store.read_file(writer.ref, "metrics.json") == b'{"loss": 0.5}'
        assert store.read_file(writer.ref, "pictures/a.png") == b"png"
        assert store.read_uri(store.file_uri(writer.ref, "pictures/a.png")) == b"png"
        with pytest.raises(ArtifactNotFound, match=r"no file 'b.png', only metrics.json"):
            store.read_file(writer.ref, "b.png")

    def test_blobs_are_read_by_their_relative_uri(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        uri = writer.put_blob(b"image", ".png")
        assert uri == writer.put_blob(b"image", ".png")
        assert uri.startswith(f"{writer.ref}/blobs/")
        assert store.read_uri(uri) == b"image"

    def test_no_shards_is_an_empty_table(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(0), make_source_shard)
        assert store.is_committed(ref)
        assert store.read_frame(ref).shape == (0, 4)

    def test_a_shard_without_rows_is_stored(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        assert writer.put_frame(0, source_frame(0, num_rows=0)).num_rows == 0
        writer.commit()
        assert store.read_frame(writer.ref).height == 0

    def test_provenance_says_who_and_when(self, memory_store: ArtifactStore) -> None:
        ref = run_stage(stage_run(memory_store), source_recipe(0), make_source_shard)
        provenance = memory_store.manifest(ref).provenance
        age = datetime.now(UTC) - datetime.fromisoformat(provenance.created_at)
        assert timedelta(0) <= age < timedelta(minutes=1)
        assert provenance.code_version[0].isdigit()
        assert provenance.packages["pyarrow"] == sys.modules["pyarrow"].__version__

    @pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="an installed copy has no commit")
    def test_provenance_names_the_commit_of_a_checkout(self) -> None:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True).stdout
        assert f"+g{commit.strip()}" in code_version()

    def test_names_cannot_leave_the_artifact(self, file_store: ArtifactStore) -> None:
        writer = file_store.writer(files_recipe(1))
        for name in ("../x", "a/../../x", "a//b", ""):
            with pytest.raises(StoreError, match="not a path below"):
                writer.put_bytes(0, name, b"")

    def test_a_name_can_be_used_once(self, memory_store: ArtifactStore) -> None:
        writer = memory_store.writer(files_recipe(2))
        writer.put_bytes(0, "a.txt", b"0")
        writer.put_bytes(1, "a.txt", b"1")
        with pytest.raises(ValueError, match=r"two files .* 'a.txt'"):
            writer.commit()

    def test_rows_that_break_their_contract_are_not_stored(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        with pytest.raises(ContractError, match="num_bytes"):
            writer.put_frame(0, source_frame(0).with_columns(num_bytes=-1))
        assert keys_of(store, writer.ref) == ["recipe.json"]

    def test_rows_go_by_put_frame_only(self, memory_store: ArtifactStore) -> None:
        with pytest.raises(ValueError, match="put_frame"):
            memory_store.writer(source_recipe(1)).put_bytes(0, "a", b"")

    def test_a_shard_outside_the_plan_is_refused(self, memory_store: ArtifactStore) -> None:
        with pytest.raises(ValueError, match="shard 1 of 1"):
            memory_store.writer(source_recipe(1)).put_frame(1, source_frame(0))

    def test_a_store_can_be_sent_to_another_process(self, store: ArtifactStore) -> None:
        ref = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        assert pickle.loads(pickle.dumps(store)).read_frame(ref).height == 4  # noqa: S301


class TestVisibility:
    def test_nothing_is_visible_before_the_commit(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(2))
        writer.put_frame(0, source_frame(0))
        writer.put_frame(1, source_frame(1))
        assert not store.is_committed(writer.ref)
        for read in (store.read_frame, store.manifest, store.file_names):
            with pytest.raises(ArtifactNotFound, match=r"not committed.*sdrpn stage download"):
                read(writer.ref)
        writer.commit()
        assert store.read_frame(writer.ref).height == 8

    def test_commit_needs_every_shard(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(3))
        writer.put_frame(1, source_frame(1))
        with pytest.raises(StoreError, match=r"2 of 3 shards are missing \(0, 2\)"):
            writer.commit()
        assert not store.is_committed(writer.ref)

    def test_commit_again_returns_the_first_manifest(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        writer.put_frame(0, source_frame(0))
        first = writer.commit()
        assert store.writer(source_recipe(1)).commit() == first

    def test_ids_that_share_letters_do_not_mix(self, store: ArtifactStore) -> None:
        """Listing ``a/b`` as a prefix would also find ``a/bc``."""
        ref = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        store.storage.put(f"{ref.prefix}0/shards/x", b"a neighbour")
        store.discard(ref)
        assert store.storage.read(f"{ref.prefix}0/shards/x") == b"a neighbour"
        assert keys_of(store, ref) == []


class TestCheckpoints:
    def test_the_latest_two_are_kept(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        assert writer.latest_checkpoint() is None
        for step in (50, 100, 1000):
            writer.save_checkpoint(step, {"rpn.safetensors": b"%d" % step, "state.json": b"{}"})
        assert writer.latest_checkpoint() == (
            1000,
            {"rpn.safetensors": b"1000", "state.json": b"{}"},
        )
        steps = {key.split("/")[1] for key in keys_of(store, writer.ref) if "/" in key}
        assert steps == {"step-00000100", "step-00001000"}

    def test_a_damaged_one_falls_back_to_the_one_before(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        writer.save_checkpoint(1, {"a": b"one"})
        writer.save_checkpoint(2, {"a": b"two"})
        [key] = [o.key for o in store.storage.find(writer.ref.prefix) if o.key.endswith("/a")][1:]
        store.storage.put(key, b"twO")
        assert writer.latest_checkpoint() == (1, {"a": b"one"})

    def test_one_without_its_manifest_does_not_exist(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        writer.save_checkpoint(1, {"a": b"one"})
        store.storage.put(f"{writer.ref.prefix}/checkpoints/step-00000002/x/a", b"two")
        assert writer.latest_checkpoint() == (1, {"a": b"one"})

    def test_saving_a_step_again_replaces_it(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(1))
        writer.save_checkpoint(1, {"a": b"one", "b": b"old"})
        writer.save_checkpoint(1, {"a": b"ONE"})
        assert writer.latest_checkpoint() == (1, {"a": b"ONE"})


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda data: data[:-1], "has .* bytes, committed with"),
            (lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:], "does not have the digest"),
            (lambda data: b"", "has 0 bytes"),
            (None, "is missing"),
        ],
    )
    def test_damaged_bytes_are_never_returned(
        self, store: ArtifactStore, change: object, problem: str
    ) -> None:
        ref = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        key = f"{ref.prefix}/{store.manifest(ref).shards[1].key}"
        if change is None:
            store.storage.delete([key])
        else:
            store.storage.put(key, change(store.storage.read(key)))
        with pytest.raises(CorruptArtifact, match=rf"{key}: {problem}.*--force") as caught:
            store.read_frame(ref)
        assert "\n" not in str(caught.value)
        with pytest.raises(CorruptArtifact, match=rf"{key}: {problem}.*--force"):
            list(store.row_groups(ref, ["path"]))
        assert store.read_shard_frame(store.manifest(ref), 0).height == 4
        run_stage(stage_run(store, force=True), source_recipe(2), make_source_shard)
        assert store.read_frame(ref).height == 8

    def test_commit_checks_that_shards_are_whole(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        entry = writer.put_frame(0, source_frame(0))
        store.storage.put(f"{writer.ref.prefix}/{entry.key}", b"short")
        with pytest.raises(CorruptArtifact, match="has 5 bytes, its receipt says"):
            writer.commit()

    @pytest.mark.parametrize("text", [b"", b"{", b"{}", b'{"manifest_version": 2}'])
    def test_a_damaged_manifest_is_named(self, memory_store: ArtifactStore, text: bytes) -> None:
        ref = run_stage(stage_run(memory_store), source_recipe(1), make_source_shard)
        memory_store.storage.put(f"{ref.prefix}/manifest.json", text)
        with pytest.raises(CorruptArtifact, match=r"manifest.json: is not a Manifest"):
            memory_store.read_frame(ref)

    def test_a_manifest_of_another_artifact_is_refused(self, memory_store: ArtifactStore) -> None:
        one = run_stage(stage_run(memory_store), source_recipe(1), make_source_shard)
        other = run_stage(stage_run(memory_store), source_recipe(1, a=1), make_source_shard)
        data = memory_store.storage.read(f"{other.prefix}/manifest.json")
        memory_store.storage.put(f"{one.prefix}/manifest.json", data)
        with pytest.raises(CorruptArtifact, match=f"is the manifest of {other}"):
            memory_store.read_frame(one)

    @pytest.mark.parametrize("content", ["another", "garbage"])
    def test_another_recipe_at_the_address_is_refused(
        self, store: ArtifactStore, content: str
    ) -> None:
        another = source_recipe(1, a=1).model_dump_json().encode()
        key = f"{source_recipe(1).ref.prefix}/recipe.json"
        store.storage.put(key, another if content == "another" else b"\xff")
        with pytest.raises(RecipeMismatch, match=rf"{key}.*--force"):
            run_stage(stage_run(store), source_recipe(1), make_source_shard)
        run_stage(stage_run(store, force=True), source_recipe(1), make_source_shard)


def test_recipe_ids_do_not_depend_on_the_store(
    file_store: ArtifactStore, s3_store: ArtifactStore
) -> None:
    """Moving a store must not orphan its artifacts."""
    recipe: Recipe = source_recipe(1, a=1)
    assert file_store.writer(recipe).ref == s3_store.writer(recipe).ref == recipe.ref
