"""Visual-CoT's lines become questions and true boxes."""

import json
from collections import Counter
from pathlib import Path

from data_contracts.sources import (
    VisualCotSource,
)
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tasks.download import download
from tasks.sources.evaluation_documents import SourceDocuments
from tests.source_files import picture, questions, runtime_of


def test_visual_cot_lines_with_boxes(file_store: ArtifactStore, tmp_path: Path):
    (tmp_path / "images/textvqa").mkdir(parents=True)
    (tmp_path / "images/textvqa/a.png").write_bytes(picture(0))
    lines = [
        {"question": "what is it ?", "answer": "b", "image": "a.png", "dataset": "textvqa"}
        | {"bboxs": [[1, 2, 9, 8], [4, 1, 12, 6]], "width": 64, "height": 48},
        {"question": "who ?", "answer": "c", "image": "a.png", "dataset": "textvqa", "bboxs": []},
        {"question": "", "answer": "c", "image": "a.png", "dataset": "textvqa"},
        {"question": "where ?", "answer": "here", "image": "a.png", "dataset": "textvqa"}
        | {"bboxs": [[20, 20, 30, 40]]},
        {"answer": "no question, no image", "bboxs": [[20, 20, 30, 40]]},
        ["no object"],
    ]
    text = "\n".join([*(json.dumps(line) for line in lines), "{torn"])
    (tmp_path / "viscot.jsonl").write_text(text)
    source = VisualCotSource(
        name="cot", records=f"{tmp_path}/viscot.jsonl", images=f"{tmp_path}/images"
    )
    rows = questions(file_store, source, tmp_path, max_failure_rate=0.7)
    assert Counter(row["status"] for row in rows) == {
        "malformed": 2,
        "no_question": 1,
        "text_only": 1,
        "ok": 3,
    }
    run = StageRun(file_store, runtime_of(file_store, tmp_path))
    documents = SourceDocuments(file_store, download(run, source), "vqa")
    boxes = {row["question"]: documents.document(row).true_box for row in rows}
    assert boxes["what is it ?"] == (1, 1, 12, 8)
    assert boxes["where ?"] == (20, 20, 30, 40), "of the same image, but another question"
    assert boxes["who ?"] is None
