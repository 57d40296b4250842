"""``sdrpn attention``: what a run would extract of one question, shown without a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_contracts.configs import PipelineConfig
from data_contracts.enums import LabelStatus, RoiLabel, Stage
from data_contracts.profiles import ModelProfile
from data_contracts.sink_rules import SinkHiddenNorm
from sdrpn_core.evaluation.prediction_rows import letterbox_of, map_of
from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape, Letterbox
from sdrpn_core.models.profiles import load_profile
from sdrpn_core.pseudo_labels import make_pseudo_labels
from sdrpn_core.reference.scenes import make_scene
from sdrpn_core.reference.vocabulary import SHORT_ANSWER_SUFFIX
from tasks.artifacts.admin import committed_artifacts
from tasks.artifacts.store import ArtifactStore
from tasks.attention_view import AttentionView
from tests.e2e.command_line import sdrpn
from tests.mixes import write_image
from tests.pipelines import LENIENT, write_tiny_pipeline

pytestmark = pytest.mark.timeout(600)


SCENE = make_scene(3, layout="objects", size=(512, 768))
TURN = SCENE.turns[0]
LABELS = LENIENT.model_copy(update={"sink_threshold": 0.8, "mask_padding": True})
QUESTION = TURN.question + SHORT_ANSWER_SUFFIX


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    SCENE.image.save(path)
    return path


def shown(*arguments: object) -> dict[str, Any]:
    result = sdrpn("attention", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def write_profile(path: Path, profile: ModelProfile, **changes: object) -> Path:
    changed = profile.model_copy(update=changes)
    path.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return path


def write_pipeline_with_sinks(folder: Path) -> PipelineConfig:
    """The tiny pipeline, with most cells called sinks, and pictures that are padded."""
    config = write_tiny_pipeline(folder, num_images=30)
    profile = load_profile(f"{folder}/profile.yaml")
    sink = SinkHiddenNorm(layer=2)
    heads = {k: h.model_copy(update={"sink": sink}) for k, h in profile.heads.items()}
    write_profile(folder / "profile.yaml", profile, heads=heads, labels=LABELS)
    for number, path in enumerate(sorted((folder / "data").rglob("*.png"))):
        if Image.open(path).size[0] > 8:
            write_image(path, number, size=[(120, 16), (16, 120), (48, 32)][number % 3])
    changed = config.model_copy(update={"labels": None})
    (folder / "config.yaml").write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return changed


def test_shows_what_a_run_extracts_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = write_pipeline_with_sinks(tmp_path)
    store = ArtifactStore(str(tmp_path / "store"))
    options = ("--config", tmp_path / "config.yaml", "--store", store.root)
    assert sdrpn("stage", "make-labels", *options).exit_code == 0
    rows = {}
    for stage in (Stage.EXTRACT_ATTENTION, Stage.MAKE_LABELS):
        (made,) = committed_artifacts(store, stage)
        frame = store.read_frame(made.recipe.ref)
        rows[stage] = {row["question_id"]: row for row in frame.iter_rows(named=True)}
    labels_made = rows[Stage.MAKE_LABELS]
    answered = [key for key, row in labels_made.items() if row["status"] != "not_extracted"]
    assert "ok" in {labels_made[key]["status"] for key in answered}
    assert len(answered) >= 4
    has_changed = {"sink_threshold": False, "mask_padding": False}
    for key in answered:
        extracted, label = (rows[stage][key] for stage in rows)
        view = shown(
            *(label["image_uri"], label["question"], "--kind", label["kind"]),
            *("--profile", tmp_path / "profile.yaml"),
            *("--max-new-tokens", config.extraction.max_new_tokens),
        )
        assert view["question"] == label["question"]
        assert view["answer"] == extracted["response"].strip()
        attention, sink = map_of(extracted, "grounding"), map_of(extracted, "sink")
        np.testing.assert_allclose(view["attention"], attention, rtol=1e-3, atol=1e-6)
        labels, letterbox = map_of(label, "labels"), letterbox_of(label)
        assert (view["label"], view["labels"]) == (label["status"], labels.tolist())
        cells = GridBox(*(label[f"box_{side}"] or 0 for side in ("x0", "y0", "x1", "y1")))
        box = letterbox.cells_to_image(cells, GridShape(*view["grid"]))
        assert (view["box"] or []) == pytest.approx(list(box) if box.area else [], abs=0.05)
        assert Letterbox(**view["letterbox"]) == letterbox
        for rule, off in {"sink_threshold": None, "mask_padding": False}.items():
            without = LABELS.model_copy(update={rule: off})
            placement = np.array([letterbox.placement])
            others = make_pseudo_labels(attention[None], sink[None], without, placement).labels[0]
            has_changed[rule] |= bool((others != labels).any())
    assert has_changed == {"sink_threshold": True, "mask_padding": True}


def test_the_reference_model_looks_at_what_it_is_asked_about(picture: Path, tmp_path: Path) -> None:
    """And the picture shows it: bright where asked, green there on the right."""
    result = sdrpn("attention", picture, QUESTION, "--overlay", tmp_path / "overlay.png")
    assert result.exit_code == 0, result.output
    answer, label = result.stdout.splitlines()[:2]
    assert answer
    view = shown(picture, QUESTION)
    corners = ", ".join(f"{side:.0f}" for side in view["box"])
    assert label == f"label: box ({corners}) in pixels"
    found, true = BoxXYXY(*view["box"]), TURN.box
    assert found.coverage_of(true) > 0.5
    source = np.asarray(SCENE.image.convert("RGB")).astype(int)
    drawn = np.asarray(Image.open(tmp_path / "overlay.png").convert("RGB")).astype(int)
    width, height = SCENE.image.size
    assert drawn.shape[0] == height
    heat, label_picture = drawn[:, :width], drawn[:, -width:]
    changed = np.abs(heat - source).sum(axis=2)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    assert found.x0 <= x < found.x1
    assert found.y0 <= y < found.y1
    labels, letterbox = np.array(view["labels"]), Letterbox.square(SCENE.image.size)
    grid = GridShape(*labels.shape)
    in_picture = letterbox.content_mask(grid)

    def tint(label: RoiLabel) -> int:
        """Green less blue of the first such cell's middle, against the picture."""
        row, column = np.argwhere((labels == label) & in_picture)[0]
        cell = letterbox.cells_to_image(GridBox(column, row, column + 1, row + 1), grid)
        x, y = map(int, cell.center)
        _, green, blue = label_picture[y, x] - source[y, x]
        return int(green - blue)

    assert tint(RoiLabel.FOREGROUND) > 0 > tint(RoiLabel.BACKGROUND)


def test_a_layer_alone_stands_for_the_mean_of_its_heads(picture: Path) -> None:
    num_heads = load_profile("reference").num_heads
    whole = shown(picture, QUESTION, "--heads", "2")
    assert whole["heads"] == {"2": list(range(num_heads))}
    each = [shown(picture, QUESTION, "--heads", f"2:{head}") for head in range(num_heads)]
    maps = np.array([view["attention"] for view in each])
    np.testing.assert_allclose(whole["attention"], maps.mean(axis=0), rtol=1e-4, atol=1e-7)
    assert not np.allclose(maps[0], maps[1], rtol=0.1)
    several = shown(picture, QUESTION, "--heads", "2:0", "--heads", "2:1", "--heads", "1:0")
    assert several["heads"] == {"2": [0, 1], "1": [0]}


def test_heads_may_be_looked_at_before_any_are_known(picture: Path, tmp_path: Path) -> None:
    unknown = write_profile(tmp_path / "unknown.yaml", load_profile("reference"), heads={})
    refused = sdrpn("attention", picture, QUESTION, "--profile", unknown)
    assert refused.exit_code == 2
    assert "sdrpn calibrate" in refused.output
    assert "--heads" in refused.output
    assert shown(picture, QUESTION, "--profile", unknown, "--heads", "1")["heads"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--heads", "8"), "has layers 0 to 7 with heads 0 to 3"),
        (("--heads", "1:4"), "has layers 0 to 7 with heads 0 to 3"),
        (("--heads", "9" * 5000), "give LAYER or LAYER:HEAD,HEAD"),
        (("--heads", "1:"), "give LAYER or LAYER:HEAD,HEAD"),
        (("--heads", "-1"), "give LAYER or LAYER:HEAD,HEAD"),
        (("--profile", "none"), "no profile 'none'"),
        (("--profile", "."), "sdrpn calibrate --model . --out FOLDER"),
        (("--dtype", "float8"), "dtype"),
        (("--overlay", "scene.png"), "is the image itself"),
        (("--overlay", "view.xyz"), "no picture can be written"),
        (("--overlay", "."), "is a folder"),
    ],
)
def test_wrong_options_are_refused_before_the_model_loads(
    picture: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], reason: str
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("tasks.models.adapter_for", load)
    monkeypatch.chdir(picture.parent)
    monkeypatch.setenv("COLUMNS", "200")
    result = sdrpn("attention", "scene.png", "what is it ?", *options)
    assert result.exit_code == 2, result.output
    assert reason in " ".join(result.output.split())


def test_a_question_of_another_encoding_is_refused(picture: Path) -> None:
    """Its bytes were a traceback of the tokenizer."""
    result = sdrpn("attention", picture, "what \udca0 ?")
    assert result.exit_code == 2, result.output
    assert r"QUESTION is 'what \udca0 ?', which is not valid Unicode" in result.output


def test_a_label_in_the_padding_is_no_box(tmp_path: Path) -> None:
    """It was told as a box without area, and the padding's peak not at all."""
    SCENE.image.resize((1500, 60)).save(tmp_path / "wide.png")
    options = (
        tmp_path / "wide.png",
        QUESTION,
        "--heads",
        "2:0",
        "--overlay",
        tmp_path / "seen.png",
    )
    result = sdrpn("attention", *options)
    assert result.exit_code == 0, result.output
    view = shown(tmp_path / "wide.png", QUESTION, "--heads", "2:0")
    attention = np.array(view["attention"])
    letterbox = Letterbox(**view["letterbox"])
    in_picture = letterbox.content_mask(GridShape(*view["grid"]))
    assert attention.argmax() not in np.flatnonzero(in_picture)
    assert "attention: of heads 2:0; strongest in the padding, " in result.stdout
    width, height = Image.open(tmp_path / "seen.png").size
    assert width > 1024
    assert height > 2 * 60


def view_of(status: LabelStatus, box: BoxXYXY | None, answer: str = "red") -> AttentionView:
    attention = np.full((4, 4), 0.1, np.float32)
    attention[0, 0] = np.nan if status is LabelStatus.NO_ATTENTION else 0.2
    labels = np.full((4, 4), int(RoiLabel.IGNORE), np.int8)
    square = Letterbox.square((80, 80))
    return AttentionView("what ?", answer, {1: (0,)}, attention, labels, status, box, square)


@pytest.mark.parametrize(
    ("view", "lines"),
    [
        (
            view_of(LabelStatus.OK, BoxXYXY(20, 20, 60, 40)),
            ["red", "label: box (20, 20, 60, 40) in pixels"],
        ),
        (view_of(LabelStatus.OK, None), ["red", "label: its box lies in the padding"]),
        (
            view_of(LabelStatus.BOX_TOO_LARGE, BoxXYXY(0, 0, 80, 80)),
            ["red", "label: none, the box covers more than max_box_area_ratio of the grid"],
        ),
        (
            view_of(LabelStatus.NO_ATTENTION, None, " "),
            ["(no answer)", "label: none, the attention map is zero or not finite"],
        ),
    ],
)
def test_odd_labels_are_told_drawn_and_written(view: AttentionView, lines: list[str]) -> None:
    assert view.lines() == [*lines, "attention: of heads 1:0"]
    grey = Image.new("RGB", (80, 80), (60, 60, 60))
    drawn = view.draw(grey)
    assert drawn.height == 80
    outline = [drawn.getpixel((80 + 4 + x, 21)) for x in range(24, 56)]
    has_solid_top = all(red > 200 and green < 100 for red, green, _ in outline)
    assert has_solid_top == (lines[1] == "label: box (20, 20, 60, 40) in pixels")
    written = json.loads(json.dumps(view.as_json(), allow_nan=False))
    is_finite = view.status is not LabelStatus.NO_ATTENTION
    assert written["attention"][0][0] == (pytest.approx(0.2) if is_finite else None)
    assert bool(written["reason"]) == (view.status is not LabelStatus.OK)


def test_an_answer_that_is_cut_off_says_what_to_do(picture: Path) -> None:
    result = sdrpn("attention", picture, QUESTION, "--max-new-tokens", 1)
    assert result.exit_code == 1
    assert "raise --max-new-tokens" in " ".join(result.output.split())


def test_an_empty_answer_says_what_to_do(picture: Path) -> None:
    """The reference model knows questions that ask for a word or phrase only."""
    result = sdrpn("attention", picture, TURN.question)
    assert result.exit_code == 1
    assert "Answer the question using a single word or phrase." in " ".join(result.output.split())
