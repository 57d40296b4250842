"""Public benchmarks in the hub's format: found, downloaded, asked and scored."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.configs import RecordsConfig
from data_contracts.enums import BenchmarkTask
from data_contracts.errors import SdrpnError
from data_contracts.sources import BenchmarkSource, LlavaMixSource
from sdrpn_core.benchmarks.tasks import TASKS
from tasks.artifacts.store import ArtifactStore
from tasks.build_jsonl import TooManyRejects, build_jsonl
from tasks.download import download
from tasks.extract_attention import usable_questions
from tasks.sources.benchmark_files import TABLE_LABEL, BenchmarkFilesError
from tasks.sources.evaluation_documents import SourceDocuments, benchmark_rows
from tests.artifacts import stage_run
from tests.benchmark_tables import rows, write_rows, write_table


@pytest.mark.parametrize("task", BenchmarkTask)
def test_every_row_becomes_a_document(file_store: ArtifactStore, tmp_path: Path, task):
    source = BenchmarkSource(task=task, files=str(write_table(tmp_path / "hub", task)))
    run = stage_run(file_store)
    files = download(run, source)
    questions = build_jsonl(run, files, source, RecordsConfig())
    asked = usable_questions(file_store, questions, 1, 0)
    assert len(asked) == 50
    documents = SourceDocuments(file_store, files, TASKS[task].rule)
    by_source = {row["source_id"]: documents.document(row) for row in asked}
    scored = benchmark_rows(file_store, questions, files)
    for number, row in enumerate(rows(task, 50)):
        [name] = [name for name in by_source if name.startswith(f"{number:06d}-")]
        document = by_source[name]
        assert document.question == TASKS[task].prompt(row)
        assert document.kind is TASKS[task].kind
        assert document.answers
        for column in TASKS[task].columns:
            assert document.row()[column] == row[column]
        assert scored[document.question_id].items() <= row.items()


def test_committed_files_are_not_read_again(
    file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task = BenchmarkTask.POPE
    source = BenchmarkSource(task=task, files=str(write_table(tmp_path, task)))
    ref = download(stage_run(file_store), source)
    monkeypatch.setattr("tasks.sources.benchmark_files.pq.ParquetFile", None)
    assert download(stage_run(file_store), source) == ref
    first = source.model_copy(update={"max_documents": 3})
    with pytest.raises(TypeError):
        download(stage_run(file_store), first)


@pytest.mark.parametrize(
    ("task", "column", "values", "message"),
    [
        (BenchmarkTask.POPE, "answer", ["yes", "no", ""], "pope row 2: column 'answer' holds ''"),
        (BenchmarkTask.HRBENCH_4K, "answer", ["A", None, "B"], "4k row 1: column 'answer' holds N"),
        (BenchmarkTask.VSTAR, "category", ["x", None, "y"], "row 1: column 'category' holds None"),
        (
            BenchmarkTask.DOCVQA,
            "answers",
            [["red"], ["red"], None],
            "row 2: column 'answers' holds None; .*a test",
        ),
        (
            BenchmarkTask.TEXTVQA,
            "answers",
            [[""] * 10] * 3,
            "textvqa_val: not one of its 3 rows has an ans",
        ),
        (BenchmarkTask.CHARTQA, "answer", [" ", "", ""], "not one of its 3 rows has an answer"),
    ],
)
def test_rows_that_nothing_can_be_judged_by_show_when_a_benchmark_is_fetched(
    file_store: ArtifactStore,
    tmp_path: Path,
    task: BenchmarkTask,
    column: str,
    values: list,
    message: str,
):
    """After training and other evaluations, a row stopped the run; or all answers were wrong."""
    made = rows(task, 3)
    for row, value in zip(made, values, strict=True):
        row[column] = value
    source = BenchmarkSource(task=task, files=str(write_rows(tmp_path, task, made, 1)))
    with pytest.raises(SdrpnError, match=message):
        download(stage_run(file_store), source)


def test_a_benchmark_with_an_image_that_cannot_be_read_is_refused(
    file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its figures were those of the other rows: records.max_failure_rate let a quarter go."""
    task = BenchmarkTask.POPE
    made = rows(task, 6)
    made[2]["image"]["bytes"] = made[2]["image"]["bytes"][:60]
    source = BenchmarkSource(task=task, files=str(write_rows(tmp_path, task, made)))
    run = stage_run(file_store)
    files = download(run, source)
    message = r"source 'pope': 1 of 6 questions cannot be asked \(.*; the first: .*mend the bench"
    with pytest.raises(TooManyRejects, match=message):
        build_jsonl(run, files, source, RecordsConfig())
    with monkeypatch.context() as patch:  # as releases that let it pass did
        patch.setattr("tasks.build_jsonl._require_usable", lambda *arguments: None)
        build_jsonl(run, files, source, RecordsConfig())
    with pytest.raises(TooManyRejects, match=message):
        build_jsonl(run, files, source, RecordsConfig())


def test_only_the_first_documents(file_store: ArtifactStore, tmp_path: Path):
    task = BenchmarkTask.CHARTQA
    source = BenchmarkSource(task=task, files=str(write_table(tmp_path, task)), max_documents=3)
    files = download(stage_run(file_store), source)
    names = sorted(file_store.read_frame(files)["path"].to_list())
    assert names[0] == "documents.jsonl"
    assert names[1:4] == [f"images/chartqa/00000{n}.{'jpg' if n != 1 else 'png'}" for n in range(3)]


def test_one_file_on_an_object_store(object_store: ArtifactStore, tmp_path: Path):
    task = BenchmarkTask.HRBENCH_8K
    folder = write_table(tmp_path, task, count=4, num_files=1)
    [local] = (folder / "hrbench_version_split").iterdir()
    object_store.storage.put("lake/hr_bench_8k.parquet", local.read_bytes())
    run = stage_run(object_store)
    of_file = BenchmarkSource(task=task, files=object_store.storage.uri("lake/hr_bench_8k.parquet"))
    of_folder = BenchmarkSource(task=task, files=object_store.storage.uri("lake"))
    assert download(run, of_file) == download(run, of_folder)


def test_true_boxes_are_joined_by_question(file_store: ArtifactStore, tmp_path: Path):
    task = BenchmarkTask.TEXTVQA
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text(json.dumps({"question_id": 34603, "box": [1, 2, 30, 20]}) + "\n")
    source = BenchmarkSource(
        task=task, files=str(write_table(tmp_path / "hub", task, 4)), boxes=str(boxes)
    )
    run = stage_run(file_store)
    files = download(run, source)
    questions = build_jsonl(run, files, source, RecordsConfig())
    documents = SourceDocuments(file_store, files, "textvqa")
    asked = usable_questions(file_store, questions, 1, 0)
    found = {row["source_id"]: documents.document(row).true_box for row in asked}
    assert found.pop("000001-34603") == (1, 2, 30, 20)
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("ids", "max_documents", "warning"),
    [
        ((34603, 9, 8), None, "2 of 3 true boxes belong to no question; the first: '9'"),
        ((34603, 9), 2, None),
        ((9, 8), 2, "2 of 2 true boxes belong to no question; the first: '9'"),
    ],
)
def test_boxes_of_no_question_are_told(
    memory_store: ArtifactStore, tmp_path: Path, caplog, ids, max_documents, warning
):
    """They vanished silently. Of a part of the documents, that others have boxes is no news."""
    boxes = tmp_path / "boxes.jsonl"
    lines = [json.dumps({"question_id": own_id, "box": [1, 2, 30, 20]}) for own_id in ids]
    boxes.write_text("\n".join(lines))
    task = BenchmarkTask.TEXTVQA
    files = str(write_table(tmp_path / "hub", task, 4))
    source = BenchmarkSource(task=task, files=files, boxes=str(boxes), max_documents=max_documents)
    download(stage_run(memory_store), source)
    told = [record.getMessage() for record in caplog.records if "true boxes" in record.getMessage()]
    assert told == ([] if warning is None else [f"benchmark textvqa_val: {warning}"])


def test_missing_files_are_answered_with_what_to_download(
    file_store: ArtifactStore, tmp_path: Path
):
    source = BenchmarkSource(task=BenchmarkTask.VSTAR, files=str(tmp_path / "empty"))
    with pytest.raises(BenchmarkFilesError, match=r"test-\*\.parquet.*lmms-lab-encoder/vstar"):
        download(stage_run(file_store), source)


def test_a_file_that_is_not_parquet_is_named(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"<html>")
    source = BenchmarkSource(task=BenchmarkTask.POPE, files=str(tmp_path))
    with pytest.raises(BenchmarkFilesError, match=r"test-00000.*cannot be read as Parquet"):
        download(stage_run(file_store), source)


def test_a_file_that_is_damaged_in_its_middle_is_named(memory_store: ArtifactStore, tmp_path: Path):
    """Its first pages were read, and the next one ended the run with an error of the library's."""
    folder = write_table(tmp_path, BenchmarkTask.VSTAR, 3)
    for file in Path(folder).rglob("*.parquet"):
        data = bytearray(file.read_bytes())
        data[8 : len(data) // 2] = bytes(len(data) // 2 - 8)
        file.write_bytes(data)
    source = BenchmarkSource(task=BenchmarkTask.VSTAR, files=str(folder))
    with pytest.raises(BenchmarkFilesError, match=r"\.parquet: cannot be read as Parquet"):
        download(stage_run(memory_store), source)


def test_a_file_with_text_that_is_not_utf_8_is_named(memory_store: ArtifactStore, tmp_path: Path):
    question = pa.array([b"what \xff ?"]).view(pa.string())
    pq.write_table(pa.table({"question": question}), tmp_path / "test-00000-of-00001.parquet")
    source = BenchmarkSource(task=BenchmarkTask.POPE, files=str(tmp_path))
    with pytest.raises(BenchmarkFilesError, match=r"cannot be read as Parquet \('utf-8' codec"):
        download(stage_run(memory_store), source)


def test_no_source_can_be_called_as_the_table_of_all_is():
    """A source named "table" took its place."""
    with pytest.raises(ValueError, match="should match pattern"):
        LlavaMixSource(name=TABLE_LABEL, records="r.json", images="i")
