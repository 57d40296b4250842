"""Predictions and reports over generated scenes with made-up maps."""

from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from data_contracts import registry
from data_contracts.enums import DEFAULT_METHODS, Method, QuestionKind
from data_contracts.label_settings import LabelSettings, RegionSettings
from data_contracts.profiles import HeadSelection, ModelProfile, RpnShape
from data_contracts.training import TrainingConfig
from sdrpn_core.benchmarks import Document
from sdrpn_core.evaluation.harness import prediction_row
from sdrpn_core.evaluation.methods import MethodAnswer, oracle_box, random_box
from sdrpn_core.evaluation.prediction_rows import regions_of
from sdrpn_core.evaluation.results import summarize
from sdrpn_core.evaluation.speed import BatchTime, Timings
from sdrpn_core.geometry import BoxXYXY, GridShape, Letterbox
from sdrpn_core.reference.scenes import make_scene
from sdrpn_core.regions import crop_regions
from sdrpn_core.report import ArtifactLine, ReportData
from sdrpn_core.report.gallery import answered_examples
from sdrpn_core.rpn.config import FORMAT_VERSION, RpnConfig, ValidationSummary
from sdrpn_core.rpn.data import DatasetSizes
from sdrpn_core.rpn.threshold import Calibration, CellQuality

GRID = GridShape(24, 24)
SINK_CELL = (1, 22)
LABELS = LabelSettings()
REGIONS = RegionSettings.preset("default")
FIND_REGIONS = partial(regions_of, threshold=0.5, settings=REGIONS)
_RIGHT_CHANCE = {
    Method.BASE: 0.15,
    Method.RANDOM_CROP: 0.2,
    Method.RAW_ATTENTION: 0.45,
    Method.VICROP: 0.5,
    Method.SDRPN: 0.75,
    Method.SDRPN_WITHDRAWN: 0.7,
    Method.ORACLE: 0.95,
}
_SECONDS = {
    Method.BASE: 0.1,
    Method.RANDOM_CROP: 0.15,
    Method.RAW_ATTENTION: 0.26,
    Method.VICROP: 0.25,
    Method.SDRPN: 0.17,
    Method.SDRPN_WITHDRAWN: 0.14,
    Method.ORACLE: 0.15,
}


def scene_predictions(count: int, grid: GridShape = GRID) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Rows of ``prediction.v4`` of every method, and the images by URI."""
    rows, images = [], {}
    for seed in range(count):
        scene = make_scene(seed, layout="document" if seed % 3 == 2 else "objects")
        turn = scene.turns[0]
        document = Document(
            benchmark="scenes",
            question_id=f"question-{seed:03d}",
            image_uri=f"scene-{seed}.png",
            question=turn.question,
            answers=(turn.answer,),
            kind=QuestionKind(scene.question_kind),
            category=scene.layout,
            true_box=turn.box,
        )
        images[document.image_uri] = scene.image
        rng = np.random.default_rng(seed)
        for method in DEFAULT_METHODS:
            answer = _answer(method, document, scene.image, grid, rng)
            rows.append(prediction_row(method, document, answer))
    frame = pl.DataFrame(rows, schema=registry.empty_frame("prediction.v4").schema)
    return registry.validate(frame, "prediction.v4"), images


def timings() -> Timings:
    """A batch of 40 documents by every method."""
    found = Timings()
    found.add({method: BatchTime(40, 40 * seconds) for method, seconds in _SECONDS.items()})
    return found


def _answer(
    method: Method,
    document: Document,
    image: Image.Image,
    grid: GridShape,
    rng: np.random.Generator,
) -> MethodAnswer:
    letterbox = Letterbox.square(image.size)
    assert document.true_box is not None
    is_right = rng.random() < _RIGHT_CHANCE[method]
    text = document.answers[0] if is_right else document.answers[0][:-1] + "8"
    roi_map = sink_map = None
    boxes: tuple[BoxXYXY, ...] = ()
    match method:
        case Method.RANDOM_CROP:
            boxes = (random_box(document, image.size, 0.1),)
        case Method.ORACLE:
            boxes = (oracle_box(document, image.size, 0.1),)
        case Method.RAW_ATTENTION | Method.VICROP:
            roi_map, sink_map = noisy_attention(document.true_box, letterbox, grid, rng)
            boxes = _regions(roi_map / roi_map.max(), 0.5, letterbox)
        case Method.SDRPN | Method.SDRPN_WITHDRAWN:
            misses = not is_right and rng.random() < 0.5
            target = BoxXYXY(0.0, 0.0, 90.0, 60.0) if misses else document.true_box
            coverage = letterbox.coverage(target, grid)
            roi_map = (0.02 + 0.93 * coverage).astype(np.float32)
            boxes = _regions(roi_map, 0.3, letterbox)
        case _:
            pass
    if method is Method.VICROP:
        sink_map = None
    return MethodAnswer(text, boxes, grid, letterbox, roi_map, sink_map)


def noisy_attention(
    box: BoxXYXY, letterbox: Letterbox, grid: GridShape, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Attention with the object, noise, and one sink cell; and the sink signal, (h, w) each."""
    coverage = letterbox.coverage(box, grid)
    attention = 0.03 * coverage * rng.uniform(0.3, 1.0, size=grid) + rng.uniform(0, 2e-3, grid)
    sink = np.full(grid, 1e-5)
    row, column = (min(place, side - 1) for place, side in zip(SINK_CELL, grid, strict=True))
    attention[row, column], sink[row, column] = 0.02, 0.01
    return attention.astype(np.float32), sink.astype(np.float32)


def _regions(
    scores: NDArray[np.float32], threshold: float, letterbox: Letterbox
) -> tuple[BoxXYXY, ...]:
    found = crop_regions(scores, threshold, REGIONS, letterbox)
    return tuple(region.box for region in found)


def rpn_config() -> RpnConfig:
    """A checkpoint's configuration with a plausible threshold sweep."""
    profile = ModelProfile(
        name="tiny",
        family="llava",
        model_id="tiny",
        num_layers=6,
        num_heads=4,
        prompt="{images} {question}",
        heads={QuestionKind.NATURAL: HeadSelection(grounding={2: (0,)})},
        rpn=RpnShape(branch_layer=2, depth=3),
        source="test",
    )
    sweep = tuple(
        CellQuality(
            threshold=threshold,
            precision=min(0.3 + threshold, 0.97),
            recall=1 - threshold**2,
            f1=0.4 + threshold * (1 - threshold) * 1.8,
        )
        for threshold in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    )
    return RpnConfig(
        format_version=FORMAT_VERSION,
        profile=profile,
        shape=profile.rpn,
        dtype="float32",
        threshold=0.5,
        regions=REGIONS,
        training=TrainingConfig(),
        label_set="merge-labels/00000000000000000000",
        data=DatasetSizes.model_construct(),
        validation=ValidationSummary(
            loss=0.123,
            calibration=Calibration(auc=0.97, expected_calibration_error=0.02),
            calibrated=Calibration(auc=0.97, expected_calibration_error=0.004),
            chosen=sweep[5],
            sweep=sweep,
        ),
    )


def training_log(num_steps: int = 60) -> list[dict[str, Any]]:
    """Steps and validations as training reports them."""
    log: list[dict[str, Any]] = []
    for step in range(num_steps + 1):
        loss = 0.08 + 0.6 * float(np.exp(-step / 15))
        if step:
            log.append({"kind": "step", "epoch": 1, "step": step, "loss": loss})
        if step % 20 == 0:
            quality = 0.85 - 0.6 * float(np.exp(-step / 12))
            scores = {"f1": quality, "precision": quality - 0.03, "recall": quality + 0.05}
            log.append({"kind": "validation", "step": step, "loss": loss * 1.1, **scores})
    return log


def full_report(count: int = 40, num_examples: int = 10) -> ReportData:
    """A report with every section filled."""
    predictions, images = scene_predictions(count)
    return ReportData(
        title="SD-RPN report: demo",
        facts=[("Model", "tiny"), ("Data", "40 scenes"), ("Device", "cpu/float32")],
        results=[
            summarize(predictions, LABELS, num_bootstrap=200).model_copy(
                update={"speed": timings().summarize().methods}
            )
        ],
        label_counts={"ok": 960, "box_too_large": 25, "no_foreground": 15},
        training_log=training_log(),
        rpn=rpn_config(),
        examples=answered_examples(
            predictions,
            images.__getitem__,
            FIND_REGIONS,
            LABELS,
            Method.SDRPN,
            num_examples,
        ),
        config={"name": "demo", "model": {"profile": "reference", "dtype": "float32"}},
        artifacts=[
            ArtifactLine("evaluate", "evaluate/0123456789abcdef0123", 240, "2026-01-01", "0.1.0"),
            ArtifactLine("train-rpn", "train-rpn/0123456789abcdef0123"),
        ],
    )
