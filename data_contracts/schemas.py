"""Versioned row contracts of every tabular artifact, with named rules.

A schema is frozen once released: ``registry.fingerprint`` of each is pinned by a test, and a change
of meaning makes a new class with the next version. Maps are flattened row-major (h * w values).
"""

import dataframely as dy
import polars as pl

from data_contracts.enums import (
    ExtractionStatus,
    LabelStatus,
    Method,
    QuestionKind,
    RecordStatus,
    RoiLabel,
)

_KINDS = [kind.value for kind in QuestionKind]


class SourceFileV1(dy.Schema):
    """One downloaded file."""

    path = dy.String(primary_key=True, min_length=1)
    uri = dy.String(min_length=1)
    """Absolute, or relative to the store's root."""
    num_bytes = dy.Int64(min=0)
    sha256 = dy.String(regex=r"^[0-9a-f]{64}$")


class SourceFileV2(SourceFileV1):
    """One downloaded file, and whether it is what it should be."""

    problem = dy.String(nullable=True, min_length=1)
    """Why an image cannot be decoded; null for images that can and for other files."""


class QaRecordV1(dy.Schema):
    """One question about one image, or a source record that cannot be used and why."""

    question_id = dy.String(primary_key=True, regex=r"^[0-9a-f]{20}$")
    dataset = dy.String(min_length=1)
    source_id = dy.String()
    turn = dy.Int32(min=0)
    kind = dy.Enum(_KINDS)
    image_uri = dy.String(nullable=True)
    image_sha256 = dy.String(nullable=True, regex=r"^[0-9a-f]{64}$")
    question = dy.String()
    answers = dy.List(dy.String())
    status = dy.Enum([status.value for status in RecordStatus])
    reason = dy.String()

    @dy.rule()
    def usable_has_image_and_question(cls) -> pl.Expr:
        """A record with status ok names an image and asks something."""
        usable = pl.col("image_uri").is_not_null() & (pl.col("question").str.len_chars() > 0)
        return (pl.col("status") != RecordStatus.OK.value) | usable

    @dy.rule()
    def unusable_has_reason(cls) -> pl.Expr:
        """A record that is not ok says why."""
        return (pl.col("status") == RecordStatus.OK.value) | (pl.col("reason").str.len_chars() > 0)


class _GridSchema(dy.Schema):
    question_id = dy.String(primary_key=True, regex=r"^[0-9a-f]{20}$")
    dataset = dy.String(min_length=1)
    kind = dy.Enum(_KINDS)
    image_uri = dy.String(min_length=1)
    image_sha256 = dy.String(nullable=True, regex=r"^[0-9a-f]{64}$")
    question = dy.String(min_length=1)
    answers = dy.List(dy.String())
    grid_height = dy.Int32(min=0)
    grid_width = dy.Int32(min=0)
    image_width = dy.Int32(min=0)
    image_height = dy.Int32(min=0)
    pad_left = dy.Int32(min=0)
    pad_top = dy.Int32(min=0)
    canvas_width = dy.Int32(min=0)
    canvas_height = dy.Int32(min=0)


def _has_grid_length(column: str) -> pl.Expr:
    num_cells = pl.col("grid_height") * pl.col("grid_width")
    return pl.col(column).is_null() | (pl.col(column).list.len() == num_cells)


class AttentionMapV1(_GridSchema):
    """Answer-to-image attention of one question; maps are null unless status is ok."""

    response = dy.String()
    num_response_tokens = dy.Int32(min=0)
    grounding = dy.List(dy.Float32(), nullable=True)
    """Mean over response tokens and grounding heads."""
    sink = dy.List(dy.Float32(), nullable=True)
    """Sink signal of the profile's rule; null where the profile has none."""
    prompt_attention = dy.List(dy.Float32(), nullable=True)
    """Last prompt token -> image tokens, grounding heads (the prompt's own rows, kept apart)."""
    kernel = dy.String()
    status = dy.Enum([status.value for status in ExtractionStatus])
    reason = dy.String()

    @dy.rule()
    def ok_has_grounding(cls) -> pl.Expr:
        """Status ok means a grounding map is present, and only then."""
        return (pl.col("status") == ExtractionStatus.OK.value) == pl.col("grounding").is_not_null()

    @dy.rule()
    def grounding_has_grid_length(cls) -> pl.Expr:
        """The grounding map has grid_height * grid_width values."""
        return _has_grid_length("grounding")

    @dy.rule()
    def sink_has_grid_length(cls) -> pl.Expr:
        """The sink map has grid_height * grid_width values."""
        return _has_grid_length("sink")

    @dy.rule()
    def grounding_is_probability(cls) -> pl.Expr:
        """Attention is finite and within [0, 1]."""
        values = pl.col("grounding")
        is_share = pl.element().is_between(0.0, 1.0001) & pl.element().is_not_nan()
        in_range = (values.list.len() == 0) | values.list.eval(is_share).list.all()
        return values.is_null() | in_range

    @dy.rule()
    def failed_has_reason(cls) -> pl.Expr:
        """A row that is not ok says why."""
        return (pl.col("status") == ExtractionStatus.OK.value) | (
            pl.col("reason").str.len_chars() > 0
        )


class ImportRejectV1(dy.Schema):
    """A row of an imported file that could not be used, and why."""

    file = dy.String(primary_key=True, min_length=1)
    """Name of the file, without its folder."""
    row = dy.Int64(primary_key=True, min=0)
    """Position in the file, from 0."""
    source_id = dy.String()
    """The file's own id of the row; empty if it has none."""
    reason = dy.String(min_length=1)


class PseudoLabelV2(_GridSchema):
    """Pseudo-RoI label of one question."""

    labels = dy.List(dy.Int8())
    """1 foreground, 0 background, -100 ignore; empty if nothing was extracted."""
    box_x0 = dy.Int32(nullable=True)
    box_y0 = dy.Int32(nullable=True)
    box_x1 = dy.Int32(nullable=True)
    box_y1 = dy.Int32(nullable=True)
    """Foreground box in grid cells, half-open."""
    num_foreground = dy.Int32(min=0)
    num_background = dy.Int32(min=0)
    num_ignore = dy.Int32(min=0)
    max_attention = dy.Float32(min=0.0)
    status = dy.Enum([status.value for status in LabelStatus])
    reason = dy.String()

    @dy.rule()
    def labels_have_grid_length(cls) -> pl.Expr:
        """The label map has grid_height * grid_width values (or none if not extracted)."""
        return _has_grid_length("labels") | (pl.col("labels").list.len() == 0)

    @dy.rule()
    def labels_are_known_values(cls) -> pl.Expr:
        """Only foreground, background and ignore occur."""
        known = pl.element().is_in([int(label) for label in RoiLabel])
        return (pl.col("labels").list.len() == 0) | pl.col("labels").list.eval(known).list.all()

    @dy.rule()
    def counts_match_labels(cls) -> pl.Expr:
        """The three counts sum to the number of cells."""
        total = pl.col("num_foreground") + pl.col("num_background") + pl.col("num_ignore")
        return total == pl.col("labels").list.len().cast(pl.Int32)

    @dy.rule()
    def rejected_is_all_ignore(cls) -> pl.Expr:
        """A rejected sample trains nothing."""
        is_ok = pl.col("status") == LabelStatus.OK.value
        return is_ok | ((pl.col("num_foreground") == 0) & (pl.col("num_background") == 0))

    @dy.rule()
    def ok_has_box_inside_grid(cls) -> pl.Expr:
        """An accepted label has a non-empty box inside its grid."""
        inside = (
            (pl.col("box_x0") >= 0)
            & (pl.col("box_x0") < pl.col("box_x1"))
            & (pl.col("box_x1") <= pl.col("grid_width"))
            & (pl.col("box_y0") >= 0)
            & (pl.col("box_y0") < pl.col("box_y1"))
            & (pl.col("box_y1") <= pl.col("grid_height"))
        )
        return (pl.col("status") != LabelStatus.OK.value) | inside.fill_null(False)


class LabelSetV2(PseudoLabelV2):
    """A row of the merged label set: a pseudo-label and where it came from."""

    label_artifact = dy.String(min_length=1)
    """``make-labels/<id>`` that made this row."""


class PredictionV4(dy.Schema):
    """One method's answer to one benchmark document.

    How long it took is not here but among the shard's measurements: equal answers are equal bytes.
    """

    benchmark = dy.String(primary_key=True, min_length=1)
    method = dy.Enum([method.value for method in Method], primary_key=True)
    question_id = dy.String(primary_key=True, min_length=1)
    category = dy.String()
    kind = dy.Enum(_KINDS)
    image_uri = dy.String(min_length=1)
    question = dy.String(min_length=1)
    answers = dy.List(dy.String())
    prediction = dy.String()
    score = dy.Float64(min=0.0, max=1.0)
    boxes = dy.List(dy.List(dy.Float32()))
    """Crops in source pixels, xyxy; empty if answered from the whole image."""
    num_crop_tokens = dy.Int32(min=0)
    """Tokens of the crops that the decoder got: fewer than their cells where crops are masked."""
    true_box = dy.List(dy.Float32(), nullable=True)
    roi_map = dy.List(dy.Float32(), nullable=True)
    """The score map on the grid that the boxes came from; null for methods without one."""
    sink_map = dy.List(dy.Float32(), nullable=True)
    """Sink signal beside a raw attention map, so that denoising can be judged; else null."""
    grid_height = dy.Int32(min=0)
    grid_width = dy.Int32(min=0)
    image_width = dy.Int32(min=1)
    image_height = dy.Int32(min=1)
    pad_left = dy.Int32(min=0)
    pad_top = dy.Int32(min=0)
    canvas_width = dy.Int32(min=1)
    canvas_height = dy.Int32(min=1)

    @dy.rule()
    def roi_map_has_grid_length(cls) -> pl.Expr:
        """The score map has grid_height * grid_width values."""
        return _has_grid_length("roi_map")

    @dy.rule()
    def sink_map_has_grid_length(cls) -> pl.Expr:
        """The sink map has grid_height * grid_width values."""
        return _has_grid_length("sink_map")

    @dy.rule()
    def boxes_have_four_numbers(cls) -> pl.Expr:
        """Every crop and the true box are xyxy."""
        crops = pl.col("boxes").list.eval(pl.element().list.len() == 4).list.all()
        true_box = pl.col("true_box").is_null() | (pl.col("true_box").list.len() == 4)
        return crops & true_box
