"""Bad images and records: each is a reject with its reason, and only too many stop the run."""

import gzip
import io
import json
import re
from pathlib import Path

import pytest

from data_contracts.artifact import ArtifactRef
from data_contracts.configs import RecordsConfig
from data_contracts.enums import Stage
from data_contracts.sources import LlavaMixSource
from sdrpn_core.records import BadRecord, SourceFile, build_records
from tasks.artifacts.admin import list_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import TooManyRejects, build_jsonl
from tasks.download import download
from tasks.sources.record_stream import SourceError, read_records
from tests.artifacts import stage_run
from tests.bad_corpora import BAD_IMAGES, bad_lines, encoded, good_lines
from tests.mixes import mix_record

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:Image size")


def write_corpus(folder: Path, lines: list[bytes], images: dict[str, bytes]) -> LlavaMixSource:
    for name, data in ({"good.png": encoded("PNG")} | images).items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(data)
    (folder / "images/folder").mkdir(exist_ok=True)
    (folder / "mix.jsonl").write_bytes(b"\n".join(lines))
    return LlavaMixSource(name="bad", records=f"{folder}/mix.jsonl", images=f"{folder}/images")


def build(
    store: ArtifactStore, source: LlavaMixSource, rate: float = 1.0, tolerated: int = 0
) -> list[dict]:
    run = stage_run(store)
    settings = RecordsConfig(max_failure_rate=rate, tolerated_failures=tolerated)
    return store.read_frame(build_jsonl(run, download(run, source), source, settings)).to_dicts()


def test_every_bad_image_is_a_reject_with_its_reason(file_store: ArtifactStore, tmp_path: Path):
    assert len(BAD_IMAGES) >= 30
    images = {f"{name}.jpg": make() for name, (make, _) in BAD_IMAGES.items()}
    lines = [json.dumps(mix_record(name, name)).encode() for name in images] + good_lines(3)
    rows = build(file_store, write_corpus(tmp_path, lines, images))
    by_id = {row["source_id"]: row for row in rows}
    for name, (_, reason) in BAD_IMAGES.items():
        row = by_id[f"{name}.jpg"]
        assert row["status"] == "unreadable_image", name
        assert re.search(reason, row["reason"]), (name, row["reason"])
        assert f"{name}.jpg" in row["reason"]
    assert sum(row["status"] == "ok" for row in rows) == 3
    assert len(rows) == len(images) + 3


def test_every_bad_record_is_a_reject_with_its_reason(file_store: ArtifactStore, tmp_path: Path):
    bad = bad_lines()
    assert len(bad) >= 20
    for name, (line, status, reason) in bad.items():
        source = write_corpus(tmp_path / name, [*good_lines(1), line], {})
        rejects = [row for row in build(file_store, source) if row["status"] != "ok"]
        assert [row["status"] for row in rejects] == [status], name
        assert reason in rejects[0]["reason"], (name, rejects[0]["reason"])


def test_all_bad_records_together(file_store: ArtifactStore, tmp_path: Path):
    lines = good_lines(5) + [line for line, _, _ in bad_lines().values()]
    rows = build(file_store, write_corpus(tmp_path, lines, {}))
    assert len(rows) == len(lines)
    assert len({row["question_id"] for row in rows}) == len(lines)
    assert sum(row["status"] == "ok" for row in rows) == 5


def test_failure_rate_decides_and_the_histogram_says_why(
    file_store: ArtifactStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    images = {"torn.jpg": encoded("JPEG")[:700]}
    broken = [b"{torn", json.dumps(mix_record("t", "torn.jpg")).encode()]
    source = write_corpus(tmp_path, [*broken, *good_lines(6)], images)
    assert len(build(file_store, source, 0.25)) == 8
    assert re.search(r"'bad': 2 of 8 questions cannot be asked \(of all .*its reason", caplog.text)
    (made,) = list_artifacts(file_store, Stage.BUILD_JSONL)
    assert f": sdrpn artifacts show {made.ref} --rejected" in caplog.text
    message = (
        r"source 'bad': 2 of 8 questions cannot be asked "
        r"\(of all rows: 6 ok, 1 \w+, 1 \w+\); the first: .*; "
        r"mend the source, choose `selection.folders`, or raise records.max_failure_rate"
    )
    with pytest.raises(TooManyRejects, match=message):
        build(ArtifactStore(str(tmp_path / "other")), source, 0.24)


@pytest.mark.parametrize("max_records", [None, 2])
def test_failure_rate_is_applied_to_what_was_built_before(
    file_store: ArtifactStore, tmp_path: Path, max_records: int | None
):
    source = write_corpus(tmp_path, [b"{torn", *good_lines(9)], {})
    run = stage_run(file_store)
    files = download(run, source)

    def build_at(rate: float) -> ArtifactRef:
        settings = RecordsConfig(
            max_failure_rate=rate, tolerated_failures=0, max_records=max_records
        )
        return build_jsonl(run, files, source, settings)

    built = build_at(0.9)
    assert build_at(0.1) == built, "one of ten, however many are taken"
    with pytest.raises(TooManyRejects, match=r"1 of 10 .*: 9 ok, 1 malformed\); the first: .*line"):
        build_at(0.09)


def test_a_few_failures_never_stop_tiny_data(file_store: ArtifactStore, tmp_path: Path):
    source = write_corpus(tmp_path, [b"{torn", b"{torn too", *good_lines(2)], {})
    assert len(build(file_store, source, 0.01, tolerated=2)) == 4
    with pytest.raises(TooManyRejects, match="2 of 4 questions cannot be asked"):
        build(ArtifactStore(str(tmp_path / "other")), source, 0.01, tolerated=1)


def deep(depth: int, key: str) -> bytes:
    """A good record but for lists in lists, with brackets in a text among them."""
    record = json.loads(good_lines(1)[0]) | {"id": "deep"}
    nested = b"[" * depth + rb'"]\"]"' + b"]" * depth
    return json.dumps(record | {key: "HERE"}).encode().replace(b'"HERE"', nested)


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("key", ["extra", "image", "id", "conversations"])
@pytest.mark.parametrize("depth", [101, 400, 450, 500, 700, 900, 990, 1000, 5000])
def test_a_record_nested_too_deeply_is_a_reject(depth: int, key: str, is_list: bool):
    before, after = good_lines(2)
    parts = (before, deep(depth, key), after)
    text = b"[" + b", ".join(parts) + b"]" if is_list else b"\n".join(parts)
    records = list(read_records(io.BytesIO(text), "mix.json"))
    image = SourceFile("u", "0" * 64, 9)
    rows = build_records(records, "mix", RecordsConfig(), {"good.png": image})
    assert [row["status"] for row in rows] == ["ok", "malformed", "ok"]
    assert "nested too deeply" in rows[1]["reason"]
    assert isinstance(records[1], BadRecord)
    assert records[1].text == deep(depth, key).decode()


@pytest.mark.parametrize("place", ["7", '{"id": [7, "]"]}'])
def test_a_number_too_long_in_a_list_is_a_reject(place: str):
    given = f'[1, {place.replace("7", "7" * 5000)}, {{"id": 2}}]'
    one, bad, two = read_records(io.BytesIO(given.encode()), "mix.json")
    assert (one, two) == (1, {"id": 2})
    assert isinstance(bad, BadRecord)
    assert "4300 digits" in bad.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"id": 1}, {"id": ', r"record 1 is not JSON .*is the file complete"),
        (b'[{"id": 1} {"id": 2}]', r"record 1 is not JSON \(a comma is missing\)"),
        (b'[{"id": 1},', r"record 1 is not JSON"),
        (b'[{"id": 1}', r"record 1 is not JSON \(the file ends early\)"),
        (b'[{"id": 1}, {"id": "\xff"}]', r"not UTF-8 text"),
        (gzip.compress(b'[{"id": 1}]', mtime=0), r"is gzipped, .*: unpack it \(gunzip\)"),
        # In JSON Lines, lines are told, which editors count from 1.
        (b'[{"id": 1},', r"record 1 is not JSON .*, the first being record 0; is the file"),
        (b'[{"id": "\xff"}]', r"near record 0, the first being record 0\); save it as UTF-8"),
        (b"[" * 200_000, r"record 0 is not JSON"),
        (b"[" + b"7" * 5000, r"record 0 is not JSON .*4300 digits"),
        (b"[" * 50_000 + b"}" * 49_999 + b"x", r"record 1 is not JSON \(a comma is missing\)"),
        (b"not json\n" * 200, r"is no JSON .*expected LLaVA's format"),
    ],
)
def test_list_that_cannot_be_read_on_names_the_place(
    file_store: ArtifactStore, tmp_path: Path, text: bytes, message: str
):
    source = write_corpus(tmp_path, [text], {})
    with pytest.raises(SourceError, match=rf"mix.jsonl: .*{message}") as caught:
        download(stage_run(file_store), source)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'[{"id": 1}]\n[{"id": 2}, {"id": 3}]', r"'\[{\"id\": 2}, {\"id\": 3}\]' .* of 1 records"),
        (b'[{"id": 1}] oops', r"'oops' after its list of 1 records"),
        (b'[{"id": 1}, {"id": 2}]]', r"'\]' after its list of 2 records"),
        (b"[] {}", r"'{}' after its list of 0 records"),
        (b'[{"id": 1}]' + b" " * (3 << 20) + b"oops", r"'oops' after its list of 1 records"),
    ],
)
def test_what_follows_a_list_is_refused(
    file_store: ArtifactStore, tmp_path: Path, text: bytes, place: str
):
    """Two lists in one file: the second, with most of the records, was dropped without a word."""
    source = write_corpus(tmp_path, [text], {})
    with pytest.raises(SourceError, match=rf"mix.jsonl: goes on with {place}; put all records"):
        download(stage_run(file_store), source)


@pytest.mark.parametrize("space", [b"", b"\n", b"\r\n\t ", b" " * (3 << 20)])
def test_space_after_a_list_is_none(space: bytes):
    assert list(read_records(io.BytesIO(b'[{"id": 1}]' + space), "mix.json")) == [{"id": 1}]
    assert list(read_records(io.BytesIO(b"[]" + space), "mix.json")) == []
