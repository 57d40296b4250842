"""Questions whose answers are of different lengths by instruction do not share batches."""

from pathlib import Path

import pytest
import yaml

from data_contracts.configs import ExtractionConfig, ModelConfig
from data_contracts.enums import QuestionKind
from data_contracts.runtime import RuntimeConfig
from tasks import extract_attention
from tasks.artifacts.device_memory import BatchSize
from tasks.artifacts.stage import StageRun
from tasks.artifacts.store import ArtifactStore
from tests.mixes import write_image
from tests.tiny_qwen import tiny_qwen2_5_vl

NATURAL, TEXTUAL = QuestionKind.NATURAL.value, QuestionKind.TEXTUAL.value


def test_batches_are_of_one_kind_and_rows_in_the_order_of_questions(
    file_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every batch of a mix ran as many steps as the longest list of boxes in it."""
    profile = tiny_qwen2_5_vl(tmp_path / "model")
    assert set(profile.extraction_instructions) == {QuestionKind.NATURAL}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    write_image(tmp_path / "a.png", 0, (40, 30))
    kinds = [NATURAL, TEXTUAL, TEXTUAL, NATURAL, TEXTUAL]
    questions = [
        {
            "question_id": f"q{number}",
            "dataset": "own",
            "kind": kind,
            "image_uri": str(tmp_path / "a.png"),
            "image_sha256": None,
            "question": "what is it ?",
            "answers": [],
        }
        for number, kind in enumerate(kinds)
    ]
    extract, batches = extract_attention.extract_attention, []

    def told(adapter, requests, **settings):
        batches.append([request.kind.value for request in requests])
        return extract(adapter, requests, **settings)

    monkeypatch.setattr(extract_attention, "extract_attention", told)
    runtime = RuntimeConfig(device="cpu", batch_size=2)
    rows = extract_attention._extract(
        StageRun(store=file_store, runtime=runtime),
        questions,
        ModelConfig(profile=str(tmp_path / "profile.yaml")),
        ExtractionConfig(max_new_tokens=2),
        BatchSize(2),
    )
    assert [row["question_id"] for row in rows] == [f"q{number}" for number in range(5)]
    assert batches == [[TEXTUAL, TEXTUAL], [TEXTUAL, NATURAL], [NATURAL]]
