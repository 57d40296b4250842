"""The benchmarks as data: prompts, ids and splits as in lmms-eval's own task files."""

import copy
import inspect
from pathlib import Path

import pytest
import yaml
from lmms_eval import tasks as lmms_eval_tasks
from lmms_eval.tasks.chartqa.utils import chartqa_doc_to_text
from lmms_eval.tasks.docvqa.utils import docvqa_doc_to_text
from lmms_eval.tasks.hrbench.utils import hrbench_doc_to_text, hrbench_doc_to_visual
from lmms_eval.tasks.infovqa.utils import infovqa_doc_to_text
from lmms_eval.tasks.ocrbench.utils import ocrbench_doc_to_text
from lmms_eval.tasks.pope.utils import pope_doc_to_text
from lmms_eval.tasks.textvqa.utils import textvqa_doc_to_text
from lmms_eval.tasks.vstar_bench.utils import vstar_doc_to_text

from data_contracts.enums import BenchmarkTask
from sdrpn_core.benchmarks import UnusableDocument, score
from sdrpn_core.benchmarks.hub_rows import hub_documents, image_bytes, split_files
from sdrpn_core.benchmarks.tasks import TASKS, TaskSpec
from sdrpn_core.images import decode_image
from tests.benchmark_tables import rows
from tests.oracles.benchmark_cases import cases

PROMPTS = {
    "textvqa": textvqa_doc_to_text,
    "docvqa": docvqa_doc_to_text,
    "infovqa": infovqa_doc_to_text,
    "chartqa": chartqa_doc_to_text,
    "ocrbench": ocrbench_doc_to_text,
    "vstar_bench": vstar_doc_to_text,
    "pope": pope_doc_to_text,
    "hrbench": hrbench_doc_to_text,
}
QUESTIONS = ("what BRAND is it?", "  What's \u00dc\n", "", "a (A) b", "Is NASA (B) here? (A) x")


class _Loader(yaml.SafeLoader):
    """Task files with their functions as plain names."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def task_file(task: BenchmarkTask) -> dict:
    """A task's settings as lmms-eval reads them, includes resolved."""
    folder = Path(inspect.getfile(lmms_eval_tasks)).parent / TASKS[task].rule
    return _read(folder / f"{task.value}.yaml")


def _read(path: Path) -> dict:
    settings = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    if include := settings.pop("include", None):
        return {**_read(path.parent / include), **settings}
    return settings


@pytest.mark.parametrize("spec", TASKS.values(), ids=lambda spec: spec.task.value)
def test_ids_splits_and_lengths_are_lmms_evals(spec: TaskSpec):
    settings = task_file(spec.task)
    assert settings["task"] == spec.task.value
    assert settings["dataset_path"] == spec.hub_ids[0]
    assert settings.get("dataset_name") == spec.folder
    assert settings["test_split"] == spec.split
    length = settings.get("generation_kwargs", {}).get("max_new_tokens")
    assert length == spec.max_new_tokens


@pytest.mark.parametrize("spec", TASKS.values(), ids=lambda spec: spec.task.value)
def test_prompts_are_lmms_evals(spec: TaskSpec):
    kwargs = task_file(spec.task).get("lmms_eval_specific_kwargs", {}).get("default")
    documents = rows(spec.task, 20)
    column = "text" if spec.rule == "vstar_bench" else "question"
    documents += [{**documents[0], column: question} for question in QUESTIONS]
    if spec.rule in {"vstar_bench", "hrbench"}:
        generated = [{**documents[0], **row} for _, row in cases(spec.rule, 300, seed=3)]
        documents += generated
    for document in documents:
        assert spec.prompt(document) == PROMPTS[spec.rule](copy.deepcopy(document), kwargs)


@pytest.mark.parametrize("spec", TASKS.values(), ids=lambda spec: spec.task.value)
def test_rows_become_documents_that_can_be_scored(spec: TaskSpec):
    source = rows(spec.task, 50)
    documents = list(hub_documents(spec, source))
    assert len(documents) == 50
    for row, document in zip(source, documents, strict=True):
        assert decode_image(document.image).size == (48, 32)
        assert "image" not in document.fields
        right = document.answers[0]
        assert score(spec.rule, right, document.fields) > 0
        assert score(spec.rule, right, document.fields) == score(spec.rule, right, row)
        assert bool(document.category) == (spec.category_column is not None)
    if spec.id_column is not None:
        assert [d.question_id for d in documents] == [str(row[spec.id_column]) for row in source]


def test_a_row_in_no_category_can_still_be_asked():
    spec = TASKS[BenchmarkTask.DOCVQA]
    (row,) = rows(spec.task, 1)
    for value in ([], None, ""):
        (document,) = hub_documents(spec, [row | {"question_types": value}])
        assert document.category == ""


def test_base64_images_are_lmms_evals():
    row = rows(BenchmarkTask.HRBENCH_4K, 1)[0]
    [theirs] = hrbench_doc_to_visual(row)
    assert decode_image(image_bytes(row)).tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": None}, "image"),
        ({"image": {"bytes": None, "path": "x.png"}}, "image"),
        ({"answers": None}, "answer"),
        ({"answers": 7}, "answers.*holds 7"),
        ({"answers": {"x": "a"}}, "answers.*holds {'x': 'a'}"),
        ({"question": None}, "question"),
        ({"image": "\u00fc"}, "image.*not base64"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(change: dict, named: str):
    good, bad = rows(BenchmarkTask.DOCVQA, 2)
    with pytest.raises(UnusableDocument, match=f"docvqa_val row 1: .*{named}"):
        list(hub_documents(TASKS[BenchmarkTask.DOCVQA], [good, {**bad, **change}]))


@pytest.mark.parametrize(
    ("task", "column", "value"),
    [
        (BenchmarkTask.HRBENCH_4K, "cycle_category", ["0"]),
        (BenchmarkTask.POPE, "answer", "9" * 5000),
        (BenchmarkTask.POPE, "answer", ["9" * 5000] * 2 + [None]),
    ],
)
def test_a_column_that_cannot_be_scored_is_named_in_one_line(
    task: BenchmarkTask, column: str, value: object
):
    """A list of cycles was a traceback; values were repeated whole, whatever their length."""
    (row,) = rows(task, 1)
    with pytest.raises(UnusableDocument, match=f"column '{column}' holds .{{,160}}$"):
        list(hub_documents(TASKS[task], [row | {column: value}]))


def test_files_of_other_splits_and_configurations_are_left_out():
    hub = [
        "DocVQA/validation-00001-of-00002.parquet",
        "DocVQA/validation-00000-of-00002.parquet",
        "DocVQA/test-00000-of-00001.parquet",
        "InfographicVQA/validation-00000-of-00001.parquet",
        "README.md",
    ]
    assert split_files(TASKS[BenchmarkTask.DOCVQA], hub) == [hub[1], hub[0]]
    assert split_files(TASKS[BenchmarkTask.INFOVQA], hub) == [hub[3]]
    assert split_files(TASKS[BenchmarkTask.DOCVQA], ["validation-00000-of-00001.parquet"]) != []
    pope = ["data/test-00000-of-00003.parquet", "Full/adversarial-00000-of-00001.parquet"]
    assert split_files(TASKS[BenchmarkTask.POPE], pope) == pope[:1]
    hr = ["hr_bench_4k.parquet", "hr_bench_8k.parquet"]
    assert split_files(TASKS[BenchmarkTask.HRBENCH_8K], hr) == hr[1:]
    assert split_files(TASKS[BenchmarkTask.POPE], []) == []
