"""Many questions asked of a tiny model, and what becomes of them."""

from pathlib import Path
from typing import Any

from data_contracts.json_lines import json_lines
from sdrpn_core.pipeline import ZoomPipeline
from tasks.artifacts.store import ArtifactStore
from tasks.asked_questions import Asked
from tasks.predict_many import ManyAnswers, answer_many

NUM_QUESTIONS = 12


def answer(pipeline: ZoomPipeline, asked: list[Asked], output: Path, **more: Any) -> ManyAnswers:
    options = {"rpn": "this one", "max_new_tokens": 4, "rows_per_part": 3, **more}
    store = ArtifactStore(f"{output.parent}/store")
    return answer_many(pipeline, store, asked, str(output), **options)


def rows(output: Path) -> list[dict[str, Any]]:
    return json_lines(output.read_bytes())


def drawn_in(pictures: Path) -> list[str]:
    """Names of all that a folder holds beside the file that says whose pictures they are."""
    names = sorted(path.name for path in pictures.iterdir())
    assert names[:1] == [".request"]
    return names[1:]
