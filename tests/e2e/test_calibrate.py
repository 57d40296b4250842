"""``sdrpn calibrate`` on a tiny random model of a stock class, on the reference, and gone wrong."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from data_contracts.enums import QuestionKind
from flows.cli import app
from sdrpn_core.calibration import CalibrationEvidence
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.models.profiles import load_profile
from tests.tiny_models import NUM_HEADS, NUM_LAYERS, tiny_llava

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TINY = """
max_new_tokens: 64
num_branch_candidates: 1
branch_training: {num_epochs: 1, batch_size: 8, validation_ratio: 0.3}
num_head_candidates: 6
num_sink_candidates: 4
"""
REFERENCE = """
num_branch_candidates: 0
foreground_thresholds: [0.1, 0.2, 0.4]
exhaustive_heads: 2
planted_sinks: true
"""


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def calibrate(folder: Path, *arguments: object, settings: str = "") -> Result:
    file = folder / "settings.yaml"
    file.write_text(settings or "{}", encoding="utf-8")
    options = ["calibrate", *arguments, "--settings", file, "--out", folder / "out"]
    return CliRunner().invoke(app, [str(option) for option in options])


def evidence_of(folder: Path) -> CalibrationEvidence:
    return CalibrationEvidence.model_validate_json((folder / "out/evidence.json").read_text())


@pytest.mark.parametrize("method", ["boxes", "unsupervised"])
def test_a_model_without_a_profile_gets_one_that_loads(
    tmp_path: Path,
    method: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_llava(tmp_path / "tiny")
    with monkeypatch.context() as elsewhere:  # the model's folder was written down as given
        elsewhere.chdir(tmp_path)
        options = ("--model", "tiny", "--scenes", 12, "--method", method)
        result = calibrate(tmp_path, *options, settings=TINY)
    assert result.exit_code == 0, result.output
    profile = load_profile(str(tmp_path / "out/profile.yaml"))
    assert profile.is_calibrated
    # A stage said so; this command ended as if random heads were fine.
    assert "before you trust labels made so" in caplog.text
    # The family's prompt was taken without a word, though it may be foreign to these weights.
    assert f"asked as {profile.prompt!r}; if its chat template is another" in result.output
    assert set(profile.heads) == set(QuestionKind)
    assert f"by {'true boxes' if method == 'boxes' else 'attention alone'}" in profile.source
    load_adapter(profile, device="cpu")
    assert evidence_of(tmp_path).settings.method == method
    picture = ET.fromstring((tmp_path / "out/heads.svg").read_text())
    titles = [element for element in picture.iter() if element.tag.endswith("title")]
    assert len(titles) == 2 * NUM_LAYERS * NUM_HEADS
    page = (tmp_path / "out/calibration.html").read_text()
    assert page.count("<svg") == 1
    assert "Sink rules, labels on the unseen scenes" in page
    text = (tmp_path / "out/calibration.md").read_text()
    assert "## Ways of choosing, labels on the unseen scenes" in text
    assert "| unsupervised |" in text
    for told in ("unsupervised", "Branch layers", str(tmp_path / "out/profile.yaml")):
        assert told in result.output


def test_reference_model_comes_close_to_the_exhaustive_best(tmp_path: Path) -> None:
    """Smaller sets of heads and fewer thresholds than the documented command, to be quick."""
    result = calibrate(tmp_path, "--model", "reference", "--scenes", 150, settings=REFERENCE)
    assert result.exit_code == 0, result.output
    evidence = evidence_of(tmp_path)
    scores = {score.method: score.unseen.f1 for score in evidence.methods}
    assert scores["boxes"] >= 0.95 * scores["exhaustive"], scores
    assert scores["unsupervised"] > 0
    single = [score for score in evidence.planted_sinks if len(score.rule.terms) == 1]
    assert {score.rule.terms[0].signal.rule for score in single} >= {"hidden_norm", "dimensions"}
    for score in single:
        if score.rule.terms[0].signal.rule in ("hidden_norm", "dimensions"):
            assert score.found > 0.95
            assert score.with_rule.centre_precision > score.without.centre_precision
    assert "of exhaustive" in result.output
    profile = json.loads((tmp_path / "out/evidence.json").read_text())
    assert profile["branches"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "empty"), "check the id, the revision and its files"),
        (("--model", "reference", "--dtype", "bf16"), "choose float32, bfloat16 or float16"),
        (("--model", "reference", "--device", "gpu"), "device 'gpu' cannot be used"),
        (("--model", "reference", "--scenes", 3), "'--scenes'"),
        (("--model", "reference", "--method", "guess"), "method"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    result = calibrate(tmp_path, *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    result = calibrate(tmp_path, "--model", "reference", "--scenes", 12)
    assert result.exit_code == 2
    assert "name another folder" in result.output
    assert "attention of" not in result.output
