"""Many questions with the zoom: answers as JSONL, part by part, so that a stopped run can go on."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from data_contracts.artifact import canonical_json
from data_contracts.settings_files import ConfigError
from sdrpn_core.models.devices import dtype_name
from sdrpn_core.models.errors import ModelError
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.checkpoint import RpnCheckpoint
from sdrpn_core.rpn.checkpoint_files import CONFIG, WEIGHTS
from sdrpn_core.threads import in_parallel, made_ahead
from sdrpn_core.zoom.answers import ZoomAnswer
from sdrpn_core.zoom.refusals import question_refusal
from tasks import recipes
from tasks.answer_files import AnswerFiles, claim_pictures, is_refused, num_refused
from tasks.artifacts.device_memory import DeviceMemoryFull, smaller_if_full
from tasks.artifacts.store import ArtifactStore
from tasks.asked_questions import Asked
from tasks.predict import overlay_bytes, rounded_boxes
from tasks.predict_files import read_image
from tasks.storage.addresses import absolute_uri, kept_address
from tasks.storage.digests import digest
from tasks.storage.errors import StoreUnreachable
from tasks.storage.storage import Storage

ROWS_PER_PART = 32
_DRAWN_AT_ONCE = 4
"""A picture of a phone takes a gigabyte while it is drawn."""
_MOST_BYTES_OF_STEM = 150
"""File systems take names of 255, and a file that is being written has a longer one."""


_Readable = tuple[Asked, Image.Image]


@dataclass(frozen=True)
class ManyAnswers:
    """What became of a run."""

    num_questions: int
    num_refused: int
    """Those that could not be answered, this time either."""
    num_reused: int
    """Answers that an earlier run had made."""


def rpn_digest(checkpoint: RpnCheckpoint) -> str:
    """Digest of an RPN's weights and settings."""
    files = checkpoint.to_files()
    return digest(files[CONFIG] + files[WEIGHTS])


def answer_many(
    pipeline: ZoomPipeline,
    images: ArtifactStore,
    asked: Sequence[Asked],
    output: str,
    *,
    rpn: str,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    overlays: str | None = None,
    rows_per_part: int = ROWS_PER_PART,
    on_part: Callable[[int, int], None] = lambda num_done, num_all: None,
) -> ManyAnswers:
    """Answer questions into a JSONL file; those that an earlier run answered are kept.

    Rows hold id, image, question, answer, boxes, decision and error, in the order of the questions;
    a question that cannot be answered has no answer and an error.

    Args:
        pipeline: model and RPN.
        images: reads image paths and URIs.
        asked: what to ask.
        output: path or URI of the file.
        rpn: identifies the RPN, see ``rpn_digest``.
        max_new_tokens: most tokens per answer.
        batch_size: questions per forward pass.
        overlays: folder or URI to draw every answer's map and boxes into; None for no pictures.
        rows_per_part: questions between two saves.
        on_part: told how many questions are done, of how many, before each part that asks any and
            at the end.

    Raises:
        ConfigError: if the output belongs to other questions or settings, another RPN or model, or
            the pictures' folder to another output; says which.
    """
    request = _request(pipeline, asked) | {
        "rpn": rpn,
        "max_new_tokens": max_new_tokens,
        "overlay": None if overlays is None else kept_address(absolute_uri(overlays)),
        "rows_per_part": rows_per_part,
    }
    files = AnswerFiles.claim(images.storage, output, request, len(asked), rows_per_part)
    pictures = None if overlays is None else claim_pictures(images.storage, overlays, output)
    asker = _Asker(pipeline, max_new_tokens, batch_size, pictures)
    lines: list[str] = []
    num_reused = 0
    num_parts = -(-len(asked) // rows_per_part)
    with closing(made_ahead(partial(_read, images, files, asked), range(num_parts))) as parts:
        for part in parts:
            made = part.kept
            if part.places:
                on_part(len(lines), len(asked))
                made = asker.lines(part)
                files.keep(part.number, made)
            num_reused += len(part.kept) - num_refused(part.kept)
            lines += made
    on_part(len(asked), len(asked))
    files.finish(lines)
    return ManyAnswers(len(asked), num_refused(lines), num_reused)


def _request(pipeline: ZoomPipeline, asked: Sequence[Asked]) -> dict[str, str | int | None]:
    """What is asked of which model, and how it sees."""
    # The same pattern finds other images in another folder.
    named = ({**row.model_dump(), "image": absolute_uri(row.image)} for row in asked)
    questions = canonical_json(list(named))
    profile, regions = pipeline.adapter.profile, pipeline.regions
    return {
        "questions": digest(questions.encode()),
        "model": profile.model_id,
        "revision": profile.revision,
        "dtype": dtype_name(pipeline.adapter.dtype),
        # "averaged": towers of fixed grids saw smaller crops before, and answered otherwise.
        "crop_tokens": regions.crop_tokens and f"{regions.crop_tokens}, averaged",
        # Only where they are: files begun before there was a choice go on.
        **({"mask_tower": True} if regions.mask_tower else {}),
        **({"withdraw_image": True} if regions.withdraw_image else {}),
        **({"gate": "by side"} if profile.family in recipes.ONCE_GATED_BY_AREA else {}),
    }


@dataclass(frozen=True)
class _Answered:
    asked: Asked
    image: Image.Image | None = None
    answer: ZoomAnswer | None = None
    error: str | None = None
    is_too_large: bool = False
    """For the device's memory."""

    def row(self) -> dict[str, Any]:
        answer = self.answer
        return {
            **self.asked.model_dump(),
            "answer": None if answer is None else answer.text,
            "boxes": [] if answer is None else rounded_boxes(answer),
            "decision": None if answer is None else answer.decision.value,
            "error": self.error,
        }


@dataclass(frozen=True)
class _Part:
    """Questions between two saves, and all that answering them needs but the model."""

    number: int
    rows: Sequence[Asked]
    start: int
    """Place of the first row among all questions."""
    kept: Sequence[str]
    """A line for each row, of an earlier run; or none."""
    places: Sequence[int]
    """Which rows are to be asked."""
    images: Mapping[str, Image.Image | str]
    """Of those rows, by path; a text says why one cannot be read."""


def _read(images: ArtifactStore, files: AnswerFiles, asked: Sequence[Asked], number: int) -> _Part:
    start = number * files.rows_per_part
    rows = asked[start : start + files.rows_per_part]
    kept = files.kept(number)
    places = [n for n in range(len(rows)) if not kept or is_refused(kept[n])]
    paths = list(dict.fromkeys(rows[n].image for n in places))
    found = in_parallel(partial(_opened, images), paths)
    return _Part(number, rows, start, kept, places, dict(zip(paths, found, strict=True)))


def _opened(images: ArtifactStore, path: str) -> Image.Image | str:
    """The image, or why it cannot be read."""
    try:
        return read_image(images, path)
    except (ConfigError, StoreUnreachable) as error:
        return str(error)


@dataclass
class _Asker:
    """What the parts of a run share."""

    pipeline: ZoomPipeline
    max_new_tokens: int
    batch_size: int
    pictures: Storage | None
    _has_fit: bool = False
    """The device's memory has held a question."""

    def lines(self, part: _Part) -> list[str]:
        """A part's lines: those kept, and answers to others."""
        self._has_fit = self._has_fit or not all(map(is_refused, part.kept))
        answered = dict(zip(part.places, self._answer(part), strict=True))
        if self.pictures is not None:
            draw = partial(self._draw, self.pictures, part.start)
            in_parallel(draw, answered.items(), _DRAWN_AT_ONCE)
        by_place = dict(enumerate(part.kept))
        by_place |= {n: json.dumps(item.row()) for n, item in answered.items()}
        return [by_place[n] for n in range(len(part.rows))]

    def _answer(self, part: _Part) -> list[_Answered]:
        """An image that is asked about twice is one object, and run once."""
        asked = [part.rows[n] for n in part.places]
        rows = [(row, self._image_or_refusal(part, row)) for row in asked]
        readable = [(row, found) for row, found in rows if isinstance(found, Image.Image)]
        answers = iter(self._answer_readable(readable))
        return [
            next(answers) if isinstance(found, Image.Image) else _Answered(row, error=found)
            for row, found in rows
        ]

    def _image_or_refusal(self, part: _Part, row: Asked) -> Image.Image | str:
        """Of a row that can be asked its image; else why not."""
        refusal = question_refusal(self.pipeline.adapter, row.question)
        return part.images[row.image] if refusal is None else f"the question {refusal}"

    def _answer_readable(self, rows: Sequence[_Readable]) -> list[_Answered]:
        """In smaller batches from here on if the device's memory is full.

        Raises:
            DeviceMemoryFull: if it has held no question of the run yet, and holds none of these.
        """
        before = self.batch_size
        answered = self._in_batches(rows)
        too_large = [item for item in answered if item.is_too_large]
        self._has_fit = self._has_fit or len(too_large) < len(answered)
        if too_large and not self._has_fit:
            raise DeviceMemoryFull(too_large[0].error)
        if too_large:
            self.batch_size = before  # one large question is no reason to ask the others alone
        return answered

    def _in_batches(self, rows: Sequence[_Readable]) -> list[_Answered]:
        def smaller(batch_size: int) -> list[_Answered]:
            self.batch_size = batch_size
            return self._each_alone(rows) if batch_size == 1 else self._in_batches(rows)

        try:
            return smaller_if_full(
                self.pipeline.adapter.device,
                max(min(self.batch_size, len(rows)), 1),
                lambda: _answer_each(self.pipeline, rows, self.max_new_tokens, self.batch_size),
                smaller,
            )
        except DeviceMemoryFull as error:
            full = str(error)  # the error itself holds the memory of what failed
        if len(rows) == 1:
            return [_Answered(rows[0][0], error=full, is_too_large=True)]
        return self._each_alone(rows)

    def _each_alone(self, rows: Sequence[_Readable]) -> list[_Answered]:
        """One that does not fit is refused, and does not take the others with it."""
        return [answered for row in rows for answered in self._in_batches([row])]

    def _draw(self, pictures: Storage, start: int, placed: tuple[int, _Answered]) -> None:
        """One PNG of an answer, named by the question's place among all and its image."""
        place, item = placed
        if item.image is None or item.answer is None:
            return
        letterbox = self.pipeline.adapter.letterbox(item.image.size)
        picture = overlay_bytes(item.image, item.answer, letterbox)
        pictures.put(_picture_name(start + place, item.asked.image), picture)


def _answer_each(
    pipeline: ZoomPipeline,
    rows: Sequence[_Readable],
    max_new_tokens: int,
    batch_size: int,
) -> list[_Answered]:
    """Answer readable rows; one that the model refuses does not take the others with it."""
    if not rows:
        return []
    try:
        answers = pipeline.answer(
            [image for _, image in rows],
            [row.question for row, _ in rows],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
    except (ModelError, ValueError) as error:
        if len(rows) == 1:
            return [_Answered(rows[0][0], error=str(error))]
        return [
            item
            for row in rows
            for item in _answer_each(pipeline, [row], max_new_tokens, batch_size)
        ]
    return [
        _Answered(row, image, answer) for (row, image), answer in zip(rows, answers, strict=True)
    ]


def _picture_name(place: int, image: str) -> str:
    """Where the picture of a question is, such that every store takes it as a name."""
    stem = re.sub(r"[^\w. -]", "_", PurePosixPath(image).stem)
    readable = stem.encode()[:_MOST_BYTES_OF_STEM].decode(errors="ignore")
    return f"{place:06d}-{readable}.png"
