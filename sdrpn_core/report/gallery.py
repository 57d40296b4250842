"""Choosing what the gallery shows: wins and failures alike, by question id and not by looks."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from data_contracts.enums import Method
from data_contracts.label_settings import LabelSettings
from sdrpn_core.evaluation.changed_answers import covers_true_box, is_right
from sdrpn_core.evaluation.prediction_rows import Row, letterbox_of, map_of, true_boxes_of
from sdrpn_core.evaluation.roi_quality import box_quality
from sdrpn_core.pseudo_labels import make_pseudo_labels
from sdrpn_core.regions import Region
from sdrpn_core.report.data import Example, GivenAnswer, Outcome

LoadImage = Callable[[str], Image.Image]
FindRegions = Callable[[Row], tuple[Region, ...]]


def choose_questions(
    predictions: pl.DataFrame, zoom: Method, count: int
) -> list[tuple[str, Outcome]]:
    """Questions to show, as evenly spread over the outcomes as there are questions.

    Args:
        predictions: ``prediction.v4`` rows of one benchmark; needs base and the zoom.
        zoom: method that is held against base.
        count: most questions.

    Returns:
        (question id, outcome), grouped by outcome in the order of ``Outcome``.
    """
    columns = ["question_id", "method", "score", "boxes", "true_box", "image_width", "image_height"]
    by_question: dict[str, dict[str, Row]] = {}
    for row in predictions.select(columns).iter_rows(named=True):
        by_question.setdefault(row["question_id"], {})[row["method"]] = row
    pools: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    for question_id in sorted(by_question, key=_shuffled):
        base, zoomed = (by_question[question_id].get(m) for m in (Method.BASE, zoom))
        if base is not None and zoomed is not None:
            pools[outcome_of(base, zoomed)].append(question_id)
    chosen: dict[Outcome, list[str]] = {outcome: [] for outcome in Outcome}
    while any(pools.values()):
        for outcome, pool in pools.items():
            if pool and sum(map(len, chosen.values())) < count:
                chosen[outcome].append(pool[0])
            del pool[:1]
    return [(question_id, outcome) for outcome in Outcome for question_id in chosen[outcome]]


def outcome_of(base: Row, zoomed: Row) -> Outcome:
    """Classify one question by its predictions without the zoom and with it."""
    base_right, zoomed_right = is_right(base["score"]), is_right(zoomed["score"])
    if zoomed_right:
        return Outcome.BOTH_RIGHT if base_right else Outcome.WIN
    if base_right:
        return Outcome.LOSS
    if not true_boxes_of(zoomed):
        return Outcome.BOTH_WRONG
    return Outcome.RIGHT_REGION if covers_true_box(zoomed) else Outcome.WRONG_REGION


def answered_examples(
    predictions: pl.DataFrame,
    load_image: LoadImage,
    find_regions: FindRegions,
    settings: LabelSettings,
    zoom: Method,
    count: int,
) -> list[Example]:
    """Examples for the gallery, with every map that the predictions hold.

    Args:
        predictions: ``prediction.v4`` rows of one benchmark.
        load_image: image URI -> upright RGB image.
        find_regions: row of the zoom -> what it zoomed into.
        settings: of the label shown beside the raw attention.
        zoom: as of ``choose_questions``.
        count: most examples.
    """
    chosen = choose_questions(predictions, zoom, count)
    wanted = predictions.filter(pl.col("question_id").is_in([key for key, _ in chosen]))
    rows: dict[str, dict[Method, Row]] = {}
    for row in wanted.iter_rows(named=True):
        rows.setdefault(row["question_id"], {})[Method(row["method"])] = row
    return [
        _example(rows[key], zoom, outcome, load_image, find_regions, settings)
        for key, outcome in chosen
    ]


def label_example(label: Row, attention: Row, load_image: LoadImage) -> Example:
    """One sample of a label set.

    Args:
        label: row of ``pseudo_label.v2`` or ``label_set.v2``.
        attention: row of ``attention_map.v1`` of the same question.
        load_image: image URI -> upright RGB image.
    """
    has_labels, has_map = len(label["labels"]) > 0, attention["grounding"] is not None
    note = "" if label["status"] == "ok" else f"Rejected: {label['reason'] or label['status']}."
    return Example(
        image=load_image(label["image_uri"]),
        letterbox=letterbox_of(label),
        question=label["question"],
        answers=tuple(label["answers"]),
        category=label["dataset"],
        note=f"The model's response was: {attention['response']}. {note}".strip(),
        attention=map_of(attention, "grounding") if has_map else None,
        labels=map_of(label, "labels").astype(np.int8) if has_labels else None,
    )


def _example(
    by_method: Mapping[Method, Row],
    zoom: Method,
    outcome: Outcome,
    load_image: LoadImage,
    find_regions: FindRegions,
    settings: LabelSettings,
) -> Example:
    zoomed, raw = by_method[zoom], by_method.get(Method.RAW_ATTENTION)
    regions = find_regions(zoomed)
    has_map = raw is not None and raw["roi_map"] is not None
    return Example(
        image=load_image(zoomed["image_uri"]),
        letterbox=letterbox_of(zoomed),
        question=zoomed["question"],
        answers=tuple(zoomed["answers"]),
        outcome=outcome,
        category=zoomed["category"],
        note=_region_note(zoomed, regions),
        true_box=next(iter(true_boxes_of(zoomed)), None),
        regions=regions,
        attention=map_of(raw, "roi_map") if raw is not None and has_map else None,
        labels=_labels(raw, settings) if raw is not None and has_map else None,
        roi_map=None if zoomed["roi_map"] is None else map_of(zoomed, "roi_map"),
        given={m: GivenAnswer(row["prediction"], row["score"]) for m, row in by_method.items()},
    )


def _labels(raw: Row, settings: LabelSettings) -> NDArray[np.int8]:
    """The pseudo-label that the raw attention of a prediction gives."""
    sink = None if raw["sink_map"] is None else map_of(raw, "sink_map")[None]
    sizes = np.array([letterbox_of(raw).placement])
    labels: NDArray[np.int8] = make_pseudo_labels(
        map_of(raw, "roi_map")[None], sink, settings, sizes
    ).labels[0]
    return labels


def _region_note(row: Row, regions: Sequence[Region]) -> str:
    true_boxes = true_boxes_of(row)
    if not regions:
        return "No region was found: answered from the whole image."
    if not true_boxes:
        return ""
    size = (row["image_width"], row["image_height"])
    coverage = box_quality([region.box for region in regions], true_boxes, size).coverage
    visible = [box for region in regions for box in region.visible]
    inside = box_quality(visible, true_boxes, size).coverage
    of_crop, of_region = f"{coverage:.0%}", f"{inside:.0%}"
    also = "" if of_region == of_crop else f", the region {of_region}"
    return f"The crop holds {of_crop} of the true box{also}."


def _shuffled(question_id: str) -> str:
    """Sort key in no meaningful order, the same on every machine."""
    return hashlib.sha256(question_id.encode()).hexdigest()
