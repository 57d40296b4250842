"""Rows of the authors' label pickles -> rows of ``attention_map.v1``.

A pickle is a list of dictionaries: ``question_id`` (position in LLaVA's mix), ``prompt`` (the
question), ``text`` (the model's response), ``image`` (path), ``grounding_attn_o2i`` and
``sink_attn``. LLaVA's maps are flat (576,), float16 for 7B and float64 for 13B; Qwen's are (24, 24)
float64, and a sink map of zeros means that no sink was looked for. LLaVA-7B's grounding maps are
already zero at sinks, which denoising does not change again. Q-Zoom's rows also have ``mode``, the
kind of the question.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_contracts.artifact import ID_LENGTH, canonical_json
from data_contracts.enums import ExtractionStatus, QuestionKind
from data_contracts.interop import PublishedLabels
from sdrpn_core.geometry import GridShape, Letterbox
from sdrpn_core.images import UnreadableImage, decode_image, is_stored_turned
from sdrpn_core.records import image_path
from sdrpn_core.source_paths import is_unicode

STAGE_VERSION = 1
KERNEL = "imported/sd-rpn"

# What the attention contract allows: softmax rows sum to one, up to rounding in half precision.
_MAX_ATTENTION = 1.0001
_IMAGE_MARKER = "<image>"
_MAX_ID_BITS = 128


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class PublishedRow:
    """One question of a label pickle, checked."""

    source_id: str
    """The authors' ``question_id``."""
    dataset: str
    """First folder of the image path."""
    image: str
    """Path below the images folder."""
    question: str
    response: str
    grounding: NDArray[np.float32]
    """(h, w) in [0, 1]."""
    sink: NDArray[np.float32] | None
    """(h, w), or None where the authors looked for no sink."""
    kind: QuestionKind | None
    """Of the question, if the row says so."""

    @property
    def question_id(self) -> str:
        """Digest of what the row asks, equal wherever the row lies."""
        content = ["sd-rpn", self.dataset, self.source_id, self.image, self.question]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:ID_LENGTH]


def read_row(row: object, settings: PublishedLabels) -> PublishedRow:
    """Check one row of a label pickle.

    Raises:
        BadRow: with the reason.
    """
    if not isinstance(row, dict):
        raise BadRow(f"a {type(row).__name__}, not a dictionary")
    path = _path(row, settings)
    question = _text(row, "prompt").replace(_IMAGE_MARKER, " ").strip()
    if not question:
        raise BadRow("prompt is empty")
    grounding = _map(row, "grounding_attn_o2i")
    if grounding is None:
        raise BadRow("grounding_attn_o2i is missing")
    sink = _map(row, "sink_attn")
    if sink is not None and sink.shape != grounding.shape:
        raise BadRow(f"sink_attn is {_by(sink)}, grounding_attn_o2i is {_by(grounding)}")
    return PublishedRow(
        source_id=_source_id(row),
        dataset=PurePosixPath(path).parts[0] if "/" in path else settings.name,
        image=path,
        question=question,
        response=_text(row, "text").strip(),
        grounding=grounding,
        sink=sink if sink is not None and sink.any() else None,
        kind=_mode(row),
    )


def attention_row(
    row: PublishedRow, settings: PublishedLabels, image_uri: str, image: bytes
) -> dict[str, Any]:
    """One row of ``attention_map.v1``.

    Args:
        row: a checked row.
        settings: which data sets ask which kind of question.
        image_uri: where the image lies.
        image: its bytes.

    Raises:
        BadRow: if the image cannot be read, or the maps are not of the picture as it is shown.
    """
    try:
        size = decode_image(image).size
    except UnreadableImage as error:
        raise BadRow(f"image {row.image!r}: {error}") from error
    if is_stored_turned(image):
        raise BadRow(
            f"image {row.image!r} is stored turned (EXIF): the authors ran the model on it unturned"
        )
    grid = GridShape(*row.grounding.shape)
    # The authors pad to a square, and a square gives a square grid.
    is_square = grid.height == grid.width
    box = Letterbox.square(size) if is_square else Letterbox.identity(size)
    return {
        "question_id": row.question_id,
        "dataset": row.dataset,
        "kind": (row.kind or settings.datasets.get(row.dataset, settings.default_kind)).value,
        "image_uri": image_uri,
        "image_sha256": hashlib.sha256(image).hexdigest(),
        "question": row.question,
        "answers": [],
        "grid_height": grid.height,
        "grid_width": grid.width,
        **asdict(box),
        "response": row.response,
        "num_response_tokens": 0,
        "grounding": row.grounding.ravel(),
        "sink": None if row.sink is None else row.sink.ravel(),
        "prompt_attention": None,
        "kernel": KERNEL,
        "status": ExtractionStatus.OK.value,
        "reason": "",
    }


def _text(row: dict[Any, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise BadRow(f"{key} is {_kind(value)}, not text")
    if not is_unicode(value):
        raise BadRow(f"{key} is not valid Unicode")
    return value


def _mode(row: dict[Any, Any]) -> QuestionKind | None:
    if row.get("mode") is None:
        return None
    given = _text(row, "mode")
    if given not in list(QuestionKind):
        raise BadRow(f"mode is {given!r}, not {' or '.join(QuestionKind)}")
    return QuestionKind(given)


def _source_id(row: dict[Any, Any]) -> str:
    value = row.get("question_id")
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > _MAX_ID_BITS:
            raise BadRow(f"question_id is a number of {value.bit_length()} bits")
        return str(value)
    return _text(row, "question_id")


def _path(row: dict[Any, Any], settings: PublishedLabels) -> str:
    """Image path below the images folder; the authors' own folders before it are cut off."""
    given = _text(row, "image")
    usable = image_path({"image": given})
    if usable is not None:
        return usable
    parts = PurePosixPath(given).parts
    starts = [i for i, part in enumerate(parts) if part in settings.datasets]
    below = image_path({"image": "/".join(parts[starts[0] :])}) if starts else None
    if below is None:
        raise BadRow(f"image {given!r} is not a path below the images folder")
    return below


def _map(row: dict[Any, Any], key: str) -> NDArray[np.float32] | None:
    """A map on its grid, (h, w); None where the row has none."""
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise BadRow(f"{key} is {_kind(value)}, not an array of numbers")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused
        values = value.astype(np.float32)
    if values.ndim == 1:
        side = math.isqrt(values.size)
        if side * side != values.size:
            raise BadRow(f"{key} has {values.size} values, which are no square grid")
        values = values.reshape(side, side)
    if values.ndim != 2 or values.size == 0:
        raise BadRow(f"{key} is {_by(value)}, not a grid")
    if not np.isfinite(values).all():
        raise BadRow(f"{key} has values that are not finite")
    if values.min() < 0 or values.max() > _MAX_ATTENTION:
        raise BadRow(f"{key} has values outside 0 to 1")
    return values


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return "missing" if value is None else f"a {type(value).__name__}"


def _by(values: NDArray[Any]) -> str:
    return " x ".join(str(side) for side in values.shape) or "a single value"
