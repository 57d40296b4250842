"""Closed vocabularies shared by every layer; the values are what is stored."""

from enum import IntEnum, StrEnum


class Stage(StrEnum):
    """Stages of the pipeline, in the order they run."""

    CALIBRATE = "calibrate"
    """Only where the model's profile is uncalibrated."""
    DOWNLOAD = "download"
    BUILD_JSONL = "build-jsonl"
    EXTRACT_ATTENTION = "extract-attention"
    MAKE_LABELS = "make-labels"
    MERGE_LABELS = "merge-labels"
    TRAIN_RPN = "train-rpn"
    EVALUATE = "evaluate"
    REPORT = "report"


class QuestionKind(StrEnum):
    """What a question asks to look at; the two kinds may use different grounding heads."""

    TEXTUAL = "textual"
    NATURAL = "natural"


class RoiLabel(IntEnum):
    """Per-cell pseudo-label; IGNORE equals torch's default ``ignore_index``."""

    BACKGROUND = 0
    FOREGROUND = 1
    IGNORE = -100


class RecordStatus(StrEnum):
    """Whether a question-image record can enter the pipeline."""

    OK = "ok"
    TEXT_ONLY = "text_only"
    NO_QUESTION = "no_question"
    MALFORMED = "malformed"
    MISSING_IMAGE = "missing_image"
    UNREADABLE_IMAGE = "unreadable_image"
    DUPLICATE = "duplicate"


class ExtractionStatus(StrEnum):
    """Outcome of attention extraction for one record, whoever gave the response."""

    OK = "ok"
    EMPTY_RESPONSE = "empty_response"
    OVERLONG_RESPONSE = "overlong_response"
    UNREADABLE_IMAGE = "unreadable_image"


class LabelStatus(StrEnum):
    """Outcome of label making for one record; anything but OK is all IGNORE."""

    OK = "ok"
    NO_ATTENTION = "no_attention"
    BOX_TOO_LARGE = "box_too_large"
    WEAK_ATTENTION = "weak_attention"
    NO_FOREGROUND = "no_foreground"
    AMBIGUOUS = "ambiguous"
    NOT_EXTRACTED = "not_extracted"


class ZoomDecision(StrEnum):
    """Which stage answered a question: the second, or the first for this reason."""

    ZOOMED = "zoomed"
    NO_CONFIDENT_REGION = "no_confident_region"
    REGION_TOO_LARGE = "region_too_large"
    IMAGE_FULLY_SEEN = "image_fully_seen"


class Method(StrEnum):
    """Ways of answering that evaluation compares."""

    BASE = "base"
    RANDOM_CROP = "random_crop"
    RAW_ATTENTION = "raw_attention"
    VICROP = "vicrop"
    """Relative attention (rel-att)."""
    VICROP_GRAD = "vicrop_grad"
    """Attention weighted by its gradient (grad-att)."""
    VICROP_PURE_GRAD = "vicrop_pure_grad"
    """Gradient of the pixels (pure-grad)."""
    VICROP_HIGH = "vicrop_high"
    """The three again with each tile of the image seen on its own (high-res)."""
    VICROP_GRAD_HIGH = "vicrop_grad_high"
    VICROP_PURE_GRAD_HIGH = "vicrop_pure_grad_high"
    SDRPN = "sdrpn"
    SDRPN_WITHDRAWN = "sdrpn_withdrawn"
    """The image withdrawn from the upper layers where there is a crop."""
    ORACLE = "oracle"


DEFAULT_METHODS = (
    Method.BASE,
    Method.RANDOM_CROP,
    Method.RAW_ATTENTION,
    Method.VICROP,
    Method.SDRPN,
    Method.SDRPN_WITHDRAWN,
    Method.ORACLE,
)
"""Those of an evaluation that names none; ViCrop's other variants cost several passes each."""


class ScoringMode(StrEnum):
    """Which variant of a benchmark's scoring rule."""

    PUBLISHED = "published"
    """As lmms-eval scores, oddities included: what published numbers use."""
    STRICT = "strict"
    """The rule as its authors define it, without the oddities."""


class BenchmarkTask(StrEnum):
    """The public benchmarks, named as lmms-eval's tasks."""

    TEXTVQA = "textvqa_val"
    DOCVQA = "docvqa_val"
    INFOVQA = "infovqa_val"
    CHARTQA = "chartqa"
    OCRBENCH = "ocrbench"
    VSTAR = "vstar_bench"
    POPE = "pope"
    HRBENCH_4K = "hrbench4k"
    HRBENCH_8K = "hrbench8k"
