"""Many questions with the zoom: answers as JSONL, part by part, so that a stopped run can go on.

A part is a fixed number of questions. Each appears whole or not at all; when all are there they
become the output file. What was asked, and of which RPN and model, is kept beside it: a rerun goes
on only with exactly that. It asks again what was refused, as the cause may have gone meanwhile.
"""

import glob
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from pydantic import Field

from data_contracts.artifact import canonical_json
from data_contracts.base import Settings
from data_contracts.configs import ConfigError, parse_settings
from sdrpn_core.models.base import ModelError
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.rpn.checkpoint import CONFIG, WEIGHTS, RpnCheckpoint
from sdrpn_core.zoom_answers import ZoomAnswer
from tasks.artifact_store import ArtifactStore
from tasks.predict import draw_overlay, read_image
from tasks.storage import Storage
from tasks.storage_addresses import absolute_uri

QUESTIONS_SUFFIX = ".jsonl"
PARTS_SUFFIX = ".parts"
"""Ends the name of the folder beside the output that keeps parts until all are there."""
REQUEST_SUFFIX = ".request"
"""Ends the name of the file beside the output that says what was asked."""
ROWS_PER_PART = 32


class Asked(Settings):
    """One line of a questions file."""

    image: str = Field(min_length=1)
    """Path or URI; relative paths start from the questions file."""
    question: str = Field(min_length=1)
    id: str | None = None


@dataclass(frozen=True)
class ManyAnswers:
    """What became of a run."""

    num_questions: int
    num_refused: int
    """Those that could not be answered, this time either."""
    num_reused: int
    """Answers that an earlier run had made."""


def is_many(image: str) -> bool:
    """Whether an IMAGE argument stands for many: a glob pattern, or a file of questions."""
    return image.endswith(QUESTIONS_SUFFIX) or (glob.has_magic(image) and not Path(image).exists())


def read_asked(store: ArtifactStore, image: str, question: str | None) -> list[Asked]:
    """Questions of a JSONL file, or one question about every image that a pattern finds.

    Raises:
        ConfigError: naming the line or argument and the remedy.
    """
    if not image.endswith(QUESTIONS_SUFFIX):
        found = sorted(glob.glob(image, recursive=True))
        if not found:
            raise ConfigError(f"{image}: no image matches; check the pattern")
        if question is None:
            raise ConfigError("give a QUESTION to ask about these images")
        return [Asked(image=path, question=question) for path in found]
    if question is not None:
        raise ConfigError(f"{image} holds the questions already: leave QUESTION out")
    address = absolute_uri(image)
    try:
        # Not splitlines(): JSON strings may hold the other separators that Unicode knows.
        lines = store.read_uri(address).decode("utf-8").split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{image}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{image}: not UTF-8 text ({error}); save it as UTF-8") from None
    rows = [
        _parse_line(line, f"{image} line {n}") for n, line in enumerate(lines, 1) if line.strip()
    ]
    if not rows:
        raise ConfigError(f"{image}: holds no questions")
    folder = address.rpartition("/")[0]
    return [row.model_copy(update={"image": _resolved(row.image, folder)}) for row in rows]


def check_writable(store: ArtifactStore, output: str, overlays: Path | None) -> None:
    """See to it, before anything is loaded, that answers and pictures can be written.

    Raises:
        ConfigError: if the output is a folder, or the pictures' folder is called like a picture.
        StoreError: naming the folder and the remedy.
    """
    root, _, name = absolute_uri(output).rpartition("/")
    if not name or Path(output).is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file, such as answers.jsonl")
    store.storage.elsewhere(root).check_writable()
    if overlays is not None:
        if overlays.suffix.lower() in Image.registered_extensions():
            raise ConfigError(
                f"--overlay {overlays}: many images need a folder; name one, such as pictures"
            )
        store.storage.elsewhere(absolute_uri(str(overlays))).check_writable()


def rpn_digest(checkpoint: RpnCheckpoint) -> str:
    """Digest of an RPN's weights and settings."""
    files = checkpoint.to_files()
    return hashlib.sha256(files[CONFIG] + files[WEIGHTS]).hexdigest()


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
        ConfigError: if the output belongs to other questions or settings, another RPN or model;
            says which.
    """
    root, _, name = absolute_uri(output).rpartition("/")
    storage = images.storage.elsewhere(root)
    request = _request(pipeline, asked) | {
        "rpn": rpn,
        "max_new_tokens": max_new_tokens,
        "overlay": None if overlays is None else absolute_uri(overlays),
        "rows_per_part": rows_per_part,
    }
    _claim(storage, name, request, output)
    pictures = None if overlays is None else storage.elsewhere(absolute_uri(overlays))
    asker = _Asker(pipeline, images, max_new_tokens, batch_size, pictures)
    finished = _finished_lines(storage, name, len(asked), output)
    parts = {item.key for item in storage.find(f"{name}{PARTS_SUFFIX}")}
    lines: list[str] = []
    num_reused = 0
    for part, start in enumerate(range(0, len(asked), rows_per_part)):
        key = f"{name}{PARTS_SUFFIX}/{part:06d}{QUESTIONS_SUFFIX}"
        rows = asked[start : start + rows_per_part]
        # A part beside a finished file is newer: a rerun that asked again was stopped.
        kept = _lines(storage, key) if key in parts else finished[start : start + rows_per_part]
        made = kept
        if places := _unanswered(rows, kept):
            on_part(len(lines), len(asked))
            made = asker.lines(rows, kept, places, start)
            storage.put(key, _text(made))
        num_reused += len(kept) - _num_refused(kept)
        lines += made
    on_part(len(asked), len(asked))
    if lines != finished:
        storage.put(name, _text(lines))
    storage.delete([item.key for item in storage.find(f"{name}{PARTS_SUFFIX}")])
    storage.remove_empty_folders(f"{name}{PARTS_SUFFIX}")
    return ManyAnswers(len(asked), _num_refused(lines), num_reused)


def _request(pipeline: ZoomPipeline, asked: Sequence[Asked]) -> dict[str, str | int | None]:
    """What is asked of which model, and how it sees."""
    questions = canonical_json([row.model_dump() for row in asked])
    profile = pipeline.adapter.profile
    return {
        "questions": hashlib.sha256(questions.encode()).hexdigest(),
        "model": profile.model_id,
        "revision": profile.revision,
        "dtype": str(pipeline.adapter.dtype).removeprefix("torch."),
        # "averaged": towers of fixed grids saw smaller crops before, and answered otherwise.
        "crop_tokens": pipeline.crop_tokens and f"{pipeline.crop_tokens}, averaged",
        # Only where it is: files begun before there was a choice go on.
        **({"withdraw_image": True} if pipeline.withdraw_image else {}),
    }


@dataclass(frozen=True)
class _Answered:
    asked: Asked
    image: Image.Image | None = None
    answer: ZoomAnswer | None = None
    error: str | None = None

    def row(self) -> dict[str, Any]:
        answer = self.answer
        return {
            **self.asked.model_dump(),
            "answer": None if answer is None else answer.text,
            "boxes": [] if answer is None else rounded_boxes(answer),
            "decision": None if answer is None else answer.decision.value,
            "error": self.error,
        }


def _unanswered(rows: Sequence[Asked], kept: Sequence[str]) -> list[int]:
    """Places of what was not asked yet or was refused."""
    return [n for n in range(len(rows)) if not kept or _is_refused(kept[n])]


def rounded_boxes(answer: ZoomAnswer) -> list[list[float]]:
    """Boxes to a tenth of a pixel."""
    return [[round(side, 1) for side in box] for box in answer.boxes]


@dataclass(frozen=True)
class _Asker:
    """What the parts of a run share."""

    pipeline: ZoomPipeline
    images: ArtifactStore
    max_new_tokens: int
    batch_size: int
    pictures: Storage | None

    def lines(
        self, rows: Sequence[Asked], kept: Sequence[str], places: Sequence[int], start: int
    ) -> list[str]:
        """A part's lines: those kept, and answers to others.

        Args:
            rows: questions of the part.
            kept: a line for each of them, or none.
            places: which are to be asked.
            start: place of the first among all questions.
        """
        answered = self._answer([rows[n] for n in places])
        if self.pictures is not None:
            where = [start + n for n in places]
            _draw(self.pictures, self.pipeline, zip(where, answered, strict=True))
        new = (json.dumps(item.row()) for item in answered)
        by_place = dict(enumerate(kept)) | dict(zip(places, new, strict=True))
        return [by_place[n] for n in range(len(rows))]

    def _answer(self, rows: Sequence[Asked]) -> list[_Answered]:
        """An image that is asked about twice is one object, and run once."""
        images: dict[str, Image.Image | str] = {row.image: "" for row in rows}
        for path in images:
            try:
                images[path] = read_image(self.images, path)
            except ConfigError as error:
                images[path] = str(error)
        readable = [
            (row, found) for row in rows if isinstance(found := images[row.image], Image.Image)
        ]
        answers = iter(_answer_each(self.pipeline, readable, self.max_new_tokens, self.batch_size))
        answered = []
        for row in rows:
            found = images[row.image]
            is_image = isinstance(found, Image.Image)
            answered.append(next(answers) if is_image else _Answered(row, error=str(found)))
        return answered


def _answer_each(
    pipeline: ZoomPipeline,
    rows: Sequence[tuple[Asked, Image.Image]],
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


def _draw(
    storage: Storage, pipeline: ZoomPipeline, answered: Iterable[tuple[int, _Answered]]
) -> None:
    """One PNG per answer, named by the question's place and its image."""
    for place, item in answered:
        if item.image is None or item.answer is None:
            continue
        letterbox = pipeline.adapter.letterbox(item.image.size)
        buffer = io.BytesIO()
        draw_overlay(item.image, item.answer, letterbox).save(buffer, "PNG")
        storage.put(f"{place:06d}-{PurePosixPath(item.asked.image).stem}.png", buffer.getvalue())


def _claim(storage: Storage, name: str, request: Mapping[str, Any], output: str) -> None:
    """See to it that the output is of this very request."""
    key = f"{name}{REQUEST_SUFFIX}"
    if storage.size(key) is None and storage.size(name) is not None:
        raise ConfigError(
            f"{output} exists and was not made by this command: name another --output"
        )
    storage.create(key, f"{canonical_json(request)}\n".encode())
    if other := _differences(storage.read(key), request):
        raise ConfigError(
            f"{output} was begun with other {', '.join(other)}: name another --output, or delete "
            f"{output}{REQUEST_SUFFIX} and what begins with {output}"
        )


def _differences(found: bytes, request: Mapping[str, Any]) -> list[str]:
    """What a request file does not have in common with a request."""
    try:
        known = json.loads(found)
    except ValueError:
        known = None
    if not isinstance(known, dict):
        return ["settings (an earlier release kept only their digest)"]
    shared = known.keys() & request.keys()
    return [key for key in {**request, **known} if key not in shared or known[key] != request[key]]


def _finished_lines(storage: Storage, name: str, num_asked: int, output: str) -> list[str]:
    """What an earlier run wrote when it was through; none if there is nothing yet."""
    if storage.size(name) is None:
        return []
    lines = _lines(storage, name)
    if len(lines) != num_asked or not all(map(_is_answer, lines)):
        raise ConfigError(
            f"{output} has {len(lines)} rows for {num_asked} questions, or rows that are no "
            "answers, so it was changed after it was written: name another --output, or delete it"
        )
    return lines


def _lines(storage: Storage, key: str) -> list[str]:
    return storage.read(key).decode().splitlines()


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _is_answer(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "error" in row


def _is_refused(line: str) -> bool:
    return json.loads(line)["error"] is not None


def _num_refused(lines: Iterable[str]) -> int:
    return sum(map(_is_refused, lines))


def _parse_line(line: str, origin: str) -> Asked:
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{origin}: not JSON ({error}); one object per line") from None
    return parse_settings(Asked, plain, origin)


def _resolved(image: str, folder: str) -> str:
    is_complete = "://" in image or Path(image).is_absolute()
    return image if is_complete else f"{folder}/{image}"
