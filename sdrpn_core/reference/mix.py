"""Scenes written as a user's data looks: image files and a ``llava_v1_5_mix665k``-format JSON.

Layout of the folder::

    mix.json                     conversations; image paths start from images/
    images/gqa/images/*.jpg      natural images (objects, signs)
    images/ocr_vqa/images/*.jpg  text-heavy images (documents)
    boxes.jsonl                  true boxes, one row a turn; read by evaluation only
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from sdrpn_core.reference.scenes import SMALL_PRINT, Scene, Turn, make_scene
from sdrpn_core.reference.vocabulary import (
    COLOURS,
    DIGITS,
    KINDS,
    LETTERS,
    SHORT_ANSWER_SUFFIX,
    answer_about,
    question_about,
)

Split = Literal["train", "validation", "test"]
_SPLIT_CODES: Final[dict[Split, int]] = {"train": 1, "validation": 2, "test": 3}
_JPEG_QUALITY: Final = 95
_MAX_TURNS: Final = 3
_TEXT_ONLY_SHARE: Final = 0.04


@dataclass(frozen=True, kw_only=True)
class WrittenMix:
    """Paths of a written mix and how much is in it."""

    json_path: Path
    image_root: Path
    boxes_path: Path
    num_images: int
    num_text_only: int


def write_mix(
    directory: Path,
    *,
    num_images: int,
    seed: int,
    split: Split = "train",
    print_scale: float = SMALL_PRINT,
) -> WrittenMix:
    """Write ``num_images`` scenes of a split with their conversations.

    Args:
        directory: folder to write into; created if missing.
        num_images: number of scenes.
        seed: any non-negative int; equal arguments write equal files.
        split: scenes of different splits or seeds never coincide.
        print_scale: size of the print, as of ``make_scene``.
    """
    records: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    rng = np.random.default_rng([13, seed, _SPLIT_CODES[split]])
    num_text_only = 0
    for index in range(num_images):
        scene = make_scene(_scene_seed(split, seed, index), print_scale=print_scale)
        name = _write_image(directory / "images", scene, f"{split}-{seed}-{index:06d}")
        turns = scene.turns[: int(rng.integers(1, _MAX_TURNS + 1))]
        records.append(_image_record(name, turns))
        boxes.extend(_box_row(name, number, turn, scene) for number, turn in enumerate(turns))
        if rng.random() < _TEXT_ONLY_SHARE:
            records.append(_text_record(f"{split}-{seed}-text-{index:06d}", rng))
            num_text_only += 1
    json_path, boxes_path = directory / "mix.json", directory / "boxes.jsonl"
    json_path.write_text(json.dumps(records, indent=1) + "\n")
    boxes_path.write_text("".join(json.dumps(row) + "\n" for row in boxes))
    return WrittenMix(
        json_path=json_path,
        image_root=directory / "images",
        boxes_path=boxes_path,
        num_images=num_images,
        num_text_only=num_text_only,
    )


def _scene_seed(split: Split, seed: int, index: int) -> int:
    state = np.random.SeedSequence([_SPLIT_CODES[split], seed, index]).generate_state(1, np.uint64)
    # Far above the seeds that the packaged weights were trained and measured on.
    return int(state[0]) | 1 << 62


def _write_image(directory: Path, scene: Scene, stem: str) -> str:
    folder = "ocr_vqa/images" if scene.question_kind == "textual" else "gqa/images"
    (directory / folder).mkdir(parents=True, exist_ok=True)
    name = f"{folder}/{stem}.jpg"
    scene.image.save(directory / name, quality=_JPEG_QUALITY, subsampling=0)
    return name


def _image_record(name: str, turns: tuple[Turn, ...]) -> dict[str, Any]:
    conversations: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        prefix = "<image>\n" if number == 0 else ""
        question = f"{prefix}{turn.question}{SHORT_ANSWER_SUFFIX}"
        conversations.append({"from": "human", "value": question})
        conversations.append({"from": "gpt", "value": turn.answer})
    return {"id": Path(name).stem, "image": name, "conversations": conversations}


def _text_record(record_id: str, rng: np.random.Generator) -> dict[str, Any]:
    """A look-up in a sentence: the few records of a mix that have no image."""
    colours, kind = rng.permutation(list(COLOURS))[:2], str(rng.choice(KINDS))
    codes = [str(rng.choice(LETTERS)) + str(rng.choice(DIGITS)) for _ in colours]
    answers = [answer_about(str(c), kind, code) for c, code in zip(colours, codes, strict=True)]
    question = question_about(str(colours[0]), kind, 0)
    value = f"{', '.join(answers)}. {question}{SHORT_ANSWER_SUFFIX}"
    return {
        "id": record_id,
        "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answers[0]}],
    }


def _box_row(name: str, number: int, turn: Turn, scene: Scene) -> dict[str, Any]:
    return {
        "source_id": Path(name).stem,
        "image": name,
        "turn": number,
        "question": turn.question,
        "answer": turn.answer,
        "box": [round(value, 2) for value in turn.box],
        "layout": scene.layout,
    }
