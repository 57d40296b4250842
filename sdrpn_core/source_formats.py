"""Other publishers' records -> LLaVA's, one at a time; what cannot be read stays to be rejected."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdrpn_core.records import BadRecord

Record = dict[str, Any]

_SPEAKERS = {"user": "human", "assistant": "gpt"}
"""Chat data's names -> LLaVA's."""


def visual_cot_record(line: object, number: int, image_folder: str | None) -> object:
    """One Visual-CoT line as a record of LLaVA's mix.

    Args:
        line: ``{"question", "answer", "image", "dataset", "bboxs", ...}``.
        number: of the line; the id where it has none.
        image_folder: put before a bare image name; None takes the line's ``dataset``.
    """
    if isinstance(line, BadRecord):
        return line.text  # a bare text is no record, and is rejected as such
    if not isinstance(line, Mapping):
        return line
    image = line.get("image")
    folder = image_folder or line.get("dataset")
    if isinstance(image, str) and image and "/" not in image and folder:
        image = f"{folder}/{image}"
    given = line.get("question_id", line.get("id", number))
    return mix_record(str(given), image, line.get("question"), line.get("answer"))


def visual_cot_box(line: object, record: object) -> Record | None:
    """The box around all that a line marks; None if it marks nothing that is a box."""
    if not isinstance(line, Mapping) or not isinstance(record, dict) or "image" not in record:
        return None
    boxes = line.get("bboxs", line.get("bbox"))
    if not isinstance(boxes, Sequence) or not boxes:
        return None
    listed = [boxes] if isinstance(boxes[0], int | float) else list(boxes)
    if not all(_is_box(box) for box in listed):
        return None
    x0, y0, x1, y1 = zip(*listed, strict=True)
    return {
        "source_id": record["id"],
        "image": record["image"],
        "turn": 0,
        "question": line.get("question"),
        "box": [min(x0), min(y0), max(x1), max(y1)],
        "layout": str(line.get("dataset", "")),
    }


def llava_record(record: object) -> object:
    """A record of chat data as one of LLaVA's mix; any other as it is, the same object.

    Args:
        record: ``{"messages": [{"role", "content"}, ...], "images": [path]}``, where a content is
            text or parts (``{"type": "text", "text"}``, ``{"type": "image", "image": path}``); or
            such turns, or LLaVA's, under ``conversations``.
    """
    if not isinstance(record, dict):
        return record
    key = "conversations" if record.get("conversations") is not None else "messages"
    turns = record.get(key)
    has_image = record.get("image") not in (None, "", [])
    if not isinstance(turns, list) or not turns:
        # Without turns it is rejected, not counted among those without an image.
        beside = None if has_image else record.get("images")
        return {**record, "image": beside} if beside else record
    if not any(map(_is_chat_turn, turns)) and (has_image or not record.get("images")):
        return record
    plain = {name: value for name, value in record.items() if name not in (key, "images", "image")}
    plain["conversations"] = [_llava_turn(turn) for turn in turns]
    plain["image"] = record["image"] if has_image else _images(record, turns)
    return plain


def _is_chat_turn(turn: object) -> bool:
    return isinstance(turn, dict) and "role" in turn and "from" not in turn


def _llava_turn(turn: object) -> object:
    """A chat's turn by LLaVA's names; what is not one stays, or stays to be rejected."""
    if not isinstance(turn, dict) or not _is_chat_turn(turn):
        return turn
    speaker, said = turn["role"], turn.get("content")
    if isinstance(said, list) and all(map(_is_text_or_image, said)):
        said = "\n".join(part["text"] for part in said if part["type"] == "text")
    return {"from": _SPEAKERS.get(str(speaker), speaker), "value": said}


def _is_text_or_image(part: object) -> bool:
    if not isinstance(part, dict):
        return False
    if part.get("type") == "text":
        return isinstance(part.get("text"), str)
    return part.get("type") in ("image", "image_url")


def _images(record: Record, turns: list[object]) -> object:
    """What a chat names beside its turns or, failing that, inside them; each image once."""
    if beside := record.get("images"):
        return beside
    said = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in said if isinstance(content, list) for part in content]
    found = [_image_of(part) for part in parts if isinstance(part, dict)]
    named = [image for image in found if image is not None]
    return [image for place, image in enumerate(named) if image not in named[:place]]


def _image_of(part: Record) -> object:
    """What a part of a turn names if it is an image; None if it names none."""
    if part.get("type") not in ("image", "image_url"):
        return None
    named = (part[name] for name in ("image", "image_url", "url", "path") if part.get(name))
    image = next(named, None)
    return image["url"] if isinstance(image, dict) and "url" in image else image


def mix_record(record_id: str, image: object, question: object, answers: object) -> Record:
    """A one-question record of LLaVA's mix."""
    answer = answers[0] if isinstance(answers, list) and answers else answers
    talk = [{"from": "human", "value": question}]
    if isinstance(answer, str):
        talk.append({"from": "gpt", "value": answer})
    record = {"id": record_id, "conversations": talk}
    return record if image is None else {**record, "image": image}


def _is_box(box: object) -> bool:
    return (
        isinstance(box, Sequence)
        and len(box) == 4
        and all(isinstance(value, int | float) for value in box)
        and box[0] < box[2]
        and box[1] < box[3]
    )
