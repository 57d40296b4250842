"""The store and the stage runner, on a folder, in memory and on a real S3 server."""

import os
import pickle
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts.artifact import ArtifactRef, Recipe
from data_contracts.enums import Stage
from data_contracts.registry import ContractError
from tasks.artifact_admin import collect_garbage, describe, list_artifacts
from tasks.artifact_store import (
    ArtifactNotFound,
    ArtifactStore,
    CorruptArtifact,
    RecipeMismatch,
)
from tasks.stage import begin_stage, finish_stage, run_shard, run_stage
from tasks.storage import Storage, StoreError
from tests.artifacts import (
    files_recipe,
    make_file_shard,
    make_source_shard,
    source_frame,
    source_recipe,
    stage_run,
)
from tests.object_server import ObjectServer


def keys_of(store: ArtifactStore, ref: ArtifactRef) -> list[str]:
    """Every object of an artifact, below its prefix."""
    return [o.key.removeprefix(f"{ref.prefix}/") for o in store.storage.find(ref.prefix)]


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
        assert_frame_equal(pl.concat(store.iter_frames(ref)), expected)
        assert_frame_equal(store.read_shard_frame(ref, 1), expected[4:8])

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

    def test_files_are_found_by_name(self, store: ArtifactStore) -> None:
        writer = store.writer(files_recipe(2))
        writer.put_bytes(0, "metrics.json", b'{"loss": 0.5}')
        writer.put_bytes(1, "pictures/a.png", b"png", num_rows=3)
        writer.commit()
        assert store.file_names(writer.ref) == ["metrics.json", "pictures/a.png"]
        assert store.read_json(writer.ref, "metrics.json") == {"loss": 0.5}
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


class TestResuming:
    def test_a_committed_stage_is_skipped(self, store: ArtifactStore) -> None:
        run_stage(stage_run(store), source_recipe(), make_source_shard)
        calls: list[int] = []
        run_stage(stage_run(store), source_recipe(), lambda index: calls.append(index))
        assert calls == []

    def test_only_shards_without_a_receipt_are_made(self, store: ArtifactStore) -> None:
        store.writer(source_recipe()).put_frame(1, source_frame(1))
        calls: list[int] = []

        def make_shard(index: int) -> object:
            calls.append(index)
            return make_source_shard(index)

        ref = run_stage(stage_run(store), source_recipe(), make_shard)
        assert calls == [0, 2]
        assert store.read_frame(ref).height == 12

    def test_a_second_writer_gets_the_first_receipt(self, store: ArtifactStore) -> None:
        first = store.writer(files_recipe(1)).put_bytes(0, "a.txt", b"first")
        second = store.writer(files_recipe(1)).put_bytes(0, "a.txt", b"second")
        assert second == first
        assert store.writer(files_recipe(1)).receipt(0) == first

    def test_shards_can_be_run_in_parts_and_any_order(self, store: ArtifactStore) -> None:
        run, recipe = stage_run(store), source_recipe()
        assert begin_stage(run, recipe) == [0, 1, 2]
        for index in (2, 0, 1, 1):
            run_shard(run, recipe, index, make_source_shard)
        ref = finish_stage(run, recipe)
        assert store.read_frame(ref)["path"].to_list()[0] == "0/0.png"
        assert begin_stage(run, recipe) is None

    def test_progress_counts_what_was_there(self, memory_store: ArtifactStore) -> None:
        memory_store.writer(source_recipe()).put_frame(1, source_frame(1))
        seen: list[tuple[str, int, int]] = []
        run = stage_run(memory_store, on_progress=lambda *event: seen.append(event))
        run_stage(run, source_recipe(), make_source_shard)
        run_stage(run, source_recipe(), make_source_shard)
        assert seen == [("download", done, 3) for done in (1, 2, 3, 3)]

    def test_a_rerun_gives_the_same_bytes(
        self, file_store: ArtifactStore, memory_store: ArtifactStore, s3_store: ArtifactStore
    ) -> None:
        stores = (file_store, memory_store, s3_store)
        refs = [run_stage(stage_run(s), source_recipe(), make_source_shard) for s in stores]
        one, other, third = (s.manifest(ref).shards for s, ref in zip(stores, refs, strict=True))
        assert one == other == third
        assert len(set(refs)) == 1

    def test_force_makes_a_committed_artifact_anew(self, store: ArtifactStore) -> None:
        def make_shard(text: str) -> object:
            return lambda index: make_file_shard(index).__class__("a.txt", text.encode())

        ref = run_stage(stage_run(store), files_recipe(1), make_shard("old"))
        store.writer(files_recipe(1)).save_checkpoint(1, {"a": b"old"})
        assert run_stage(stage_run(store, force=True), files_recipe(1), make_shard("new")) == ref
        assert store.read_file(ref, "a.txt") == b"new"
        assert len(keys_of(store, ref)) == 4

    def test_force_of_what_is_not_there_just_runs(self, store: ArtifactStore) -> None:
        run_stage(stage_run(store, force=True), source_recipe(1), make_source_shard)


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
        assert store.read_shard_frame(ref, 0).height == 4
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


NO_SUCH_BUCKET = b"<Error><Code>NoSuchBucket</Code><Message>no bucket</Message></Error>"


class CannedHandler(BaseHTTPRequestHandler):
    """Answers /{status}/... with that status."""

    def do_GET(self) -> None:
        body = NO_SUCH_BUCKET
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_HEAD = do_PUT = do_GET

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def canned_server() -> Iterator[str]:
    """Endpoint of an HTTP server for errors that SeaweedFS does not give."""
    with ThreadingHTTPServer(("127.0.0.1", 0), CannedHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestAddresses:
    def test_read_uri_takes_relative_and_absolute(
        self, store: ArtifactStore, tmp_path: Path
    ) -> None:
        store.storage.put("images/a.png", b"relative")
        (tmp_path / "b.png").write_bytes(b"absolute")
        assert store.read_uri("images/a.png") == b"relative"
        assert store.read_uri(f"{store.root}/images/a.png") == b"relative"
        assert store.read_uri(str(tmp_path / "b.png")) == b"absolute"
        assert store.read_uri(f"file://{tmp_path}/b.png") == b"absolute"

    def test_read_uri_says_what_is_not_there(self, store: ArtifactStore, tmp_path: Path) -> None:
        for uri in ("images/a.png", f"{store.root}/a.png", f"{tmp_path}/a.png"):
            with pytest.raises(FileNotFoundError):
                store.read_uri(uri)
        with pytest.raises(StoreError, match="not a path below"):
            store.read_uri("../a.png")
        with pytest.raises(StoreError, match=r"nowhere://a: .*s3://"):
            store.read_uri("nowhere://a")

    def test_read_uri_over_http(self, memory_store: ArtifactStore, canned_server: str) -> None:
        assert memory_store.read_uri(f"{canned_server}/200/a.png") == NO_SUCH_BUCKET
        with pytest.raises(FileNotFoundError):
            memory_store.read_uri(f"{canned_server}/404/a.png")
        with pytest.raises(StoreError, match=r"/403/a.png: cannot be read .*403"):
            memory_store.read_uri(f"{canned_server}/403/a.png")

    def test_a_relative_root_stays_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = ArtifactStore("artifacts")
        ref = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        monkeypatch.chdir("/")
        assert store.root == str(tmp_path / "artifacts")
        assert store.read_frame(ref).height == 4

    def test_a_writable_root_is_made_and_left_clean(self, store: ArtifactStore) -> None:
        store.check_writable()
        assert store.storage.folders("download") == []
        if os.path.isabs(store.root):
            assert os.listdir(store.root) == []

    @pytest.mark.parametrize(
        ("root", "problem"),
        [
            ("nowhere://a/b", "nowhere"),
            ("s3:/bucket/a", "lacks '://'"),
            ("s3:bucket", "lacks '://'"),
            ("", "empty"),
            ("file://", "empty"),
            ("{tmp}/file", "is not a folder"),
            ("{tmp}/file/below/it", "is not a folder"),
            ("/proc/sdrpn", "choose a folder that you may read"),
        ],
    )
    def test_an_unusable_root_is_explained_in_one_line(
        self, tmp_path: Path, root: str, problem: str
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        root = root.format(tmp=tmp_path)
        with pytest.raises(StoreError, match=problem) as caught:
            ArtifactStore(root).check_writable()
        assert root in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_driver_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("s3fs", "gcsfs"):
            monkeypatch.setitem(sys.modules, name, None)
        for scheme in ("s3", "gs"):
            loaded = sys.modules["fsspec.registry"]._registry
            monkeypatch.delitem(loaded, scheme, raising=False)
        for scheme, extra in (("s3", "s3"), ("gs", "gcs")):
            with pytest.raises(StoreError, match=rf"{scheme}://b/a: .*'sdrpn\[{extra}\]'"):
                ArtifactStore(f"{scheme}://b/a").check_writable()

    @pytest.mark.parametrize(
        ("root", "options", "problem"),
        [
            ("s3://sdrpn-test/a", {"secret": "wrong"}, "credentials"),
            ("s3://sdrpn-test/a", {"key": "wrong"}, "credentials"),
            ("s3://sdrpn-test/a", {"endpoint_url": "http://127.0.0.1:9"}, "cannot be reached"),
            ("s3://404/a", {"endpoint_url": "canned"}, "no such bucket"),
        ],
    )
    def test_an_unusable_bucket_is_explained_in_one_line(
        self,
        s3_server: ObjectServer,
        canned_server: str,
        root: str,
        options: dict[str, str],
        problem: str,
    ) -> None:
        if options.get("endpoint_url") == "canned":  # SeaweedFS makes buckets that are missing
            options = {"endpoint_url": canned_server}
        with pytest.raises(StoreError, match=f"{root}: .*{problem}") as caught:
            ArtifactStore(root, s3_server.options | options).check_writable()
        assert "\n" not in str(caught.value)


class TestStorage:
    def test_create_keeps_what_is_there(self, store: ArtifactStore) -> None:
        assert store.storage.create("a/b", b"first")
        assert not store.storage.create("a/b", b"second")
        assert store.storage.read("a/b") == b"first"

    def test_create_reports_a_race_lost_after_the_check(
        self, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SeaweedFS answers OSError here and not FileExistsError."""
        store.storage.put("a/b", b"first")
        monkeypatch.setattr(Storage, "size", lambda self, key: None)
        assert not store.storage.create("a/b", b"second")
        assert store.storage.read("a/b") == b"first"

    def test_create_without_hard_links(
        self, file_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*names: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        assert file_store.storage.create("a/b", b"first")
        assert not file_store.storage.create("a/b", b"second")
        assert [o.key for o in file_store.storage.find("a")] == ["a/b"]

    def test_put_replaces(self, store: ArtifactStore) -> None:
        store.storage.put("a/b", b"first")
        store.storage.put("a/b", b"second")
        assert store.storage.read("a/b") == b"second"

    def test_deleting_what_is_gone_is_fine(self, store: ArtifactStore) -> None:
        store.storage.put("a/b", b"")
        store.storage.delete(["a/b", "a/b", "a/c"])
        assert store.storage.find("a") == []

    def test_folders_that_do_not_exist_are_empty(self, store: ArtifactStore) -> None:
        assert store.storage.folders("nothing") == []
        assert store.storage.find("nothing") == []
        assert store.storage.size("nothing/here") is None


NEVER = timedelta(days=1)
AT_ONCE = timedelta(seconds=-5)  # S3 gives whole seconds


class TestListing:
    def test_lists_in_stage_order_with_progress(self, store: ArtifactStore) -> None:
        report = run_stage(stage_run(store), files_recipe(1), make_file_shard)
        source = run_stage(stage_run(store), source_recipe(2), make_source_shard)
        store.writer(source_recipe(3)).put_frame(0, source_frame(0))
        store.storage.put("download/notes/readme.txt", b"not an artifact")
        done, open_, files = list_artifacts(store)
        assert (done.ref, files.ref) == (source, report)
        assert (done.is_committed, done.num_done, done.num_shards, done.num_rows) == (True, 2, 2, 8)
        assert (open_.is_committed, open_.num_done, open_.num_rows) == (False, 1, 4)
        assert done.num_bytes == sum(shard.num_bytes for shard in store.manifest(source).shards)
        assert (files.schema_id, files.stage_version) == ("files", 1)
        assert abs(datetime.now(UTC) - open_.created_at) < timedelta(minutes=1)
        assert list_artifacts(store, Stage.REPORT) == [files]

    def test_an_empty_store_lists_nothing(self, store: ArtifactStore) -> None:
        assert list_artifacts(store) == []

    def test_describe(self, memory_store: ArtifactStore) -> None:
        writer = memory_store.writer(source_recipe(2, seed=3))
        writer.put_frame(1, source_frame(1))
        facts = describe(memory_store, writer.ref)
        assert (facts["is_committed"], facts["missing_shards"]) == (False, [0])
        run_stage(stage_run(memory_store), source_recipe(2, seed=3), make_source_shard)
        facts = describe(memory_store, writer.ref)
        assert (facts["is_committed"], facts["num_rows"]) == (True, 8)
        assert facts["recipe"]["config"] == {"seed": 3}
        with pytest.raises(ArtifactNotFound):
            describe(memory_store, source_recipe(9).ref)


class TestGarbage:
    def chain(self, store: ArtifactStore) -> tuple[ArtifactRef, ArtifactRef, ArtifactRef]:
        """A source, a report made from it, and a source that nothing uses."""
        used = run_stage(stage_run(store), source_recipe(1), make_source_shard)
        recipe = files_recipe(1).model_copy(update={"inputs": (str(used),)})
        report = run_stage(stage_run(store), recipe, make_file_shard)
        unused = run_stage(stage_run(store), source_recipe(1, a=1), make_source_shard)
        return used, report, unused

    def test_committed_artifacts_stay_unless_asked(self, store: ArtifactStore) -> None:
        refs = self.chain(store)
        assert collect_garbage(store, older_than=AT_ONCE, dry_run=False) == []
        assert all(store.is_committed(ref) for ref in refs)

    def test_keep_spares_inputs_and_deletes_the_rest(self, store: ArtifactStore) -> None:
        used, report, unused = self.chain(store)
        [planned] = collect_garbage(store, keep=[report], older_than=AT_ONCE)
        assert (planned.ref, planned.is_whole_artifact) == (unused, True)
        assert store.is_committed(unused), "a dry run deletes nothing"
        collect_garbage(store, keep=[report], older_than=AT_ONCE, dry_run=False)
        assert keys_of(store, unused) == []
        assert store.read_frame(used).height == 4
        assert store.file_names(report) == ["part-0.txt"]

    def test_a_wrong_keep_deletes_nothing(self, memory_store: ArtifactStore) -> None:
        refs = self.chain(memory_store)
        with pytest.raises(ArtifactNotFound):
            collect_garbage(
                memory_store, keep=[source_recipe(9).ref], older_than=AT_ONCE, dry_run=False
            )
        assert all(memory_store.is_committed(ref) for ref in refs)

    def test_unfinished_artifacts_go_once_old(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(2))
        writer.put_frame(0, source_frame(0))
        assert collect_garbage(store, older_than=NEVER, dry_run=False) == []
        assert writer.missing() == [1]
        [gone] = collect_garbage(store, older_than=AT_ONCE, dry_run=False)
        assert (gone.ref, gone.reason) == (writer.ref, "never committed")
        assert list_artifacts(store) == []

    def test_leftovers_of_a_committed_artifact_go(self, store: ArtifactStore) -> None:
        writer = store.writer(source_recipe(1))
        blob = writer.put_blob(b"image")
        writer.save_checkpoint(1, {"a": b"one"})
        orphan = f"{writer.ref.prefix}/shards/00000-of-00001-ffffffffffff.parquet"
        store.storage.put(orphan, b"lost a race")
        writer.put_frame(0, source_frame(0))
        writer.commit()
        [item] = collect_garbage(store, older_than=AT_ONCE, dry_run=False)
        assert not item.is_whole_artifact
        assert orphan in item.keys
        assert len(item.keys) == 3
        assert store.read_frame(writer.ref).height == 4
        assert store.read_uri(blob) == b"image"
        assert collect_garbage(store, older_than=AT_ONCE) == []

    def test_other_files_in_the_root_are_left_alone(self, store: ArtifactStore) -> None:
        for key in ("download/notes/a.txt", "elsewhere/a", "download/" + "0" * 19 + "/recipe.json"):
            store.storage.put(key, b"mine")
        assert collect_garbage(store, keep=[], older_than=AT_ONCE, dry_run=False) == []


def test_recipe_ids_do_not_depend_on_the_store(
    file_store: ArtifactStore, s3_store: ArtifactStore
) -> None:
    """Moving a store must not orphan its artifacts."""
    recipe: Recipe = source_recipe(1, a=1)
    assert file_store.writer(recipe).ref == s3_store.writer(recipe).ref == recipe.ref
