"""A mix in the format of llava_v1_5_mix665k, of any size, without writing its images."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.recipes import IMAGES_PER_SHARD

_SUFFIX = "\nAnswer the question using a single word or phrase."
_WORDS = ("colour", "shape", "writing", "couleur", "\u0446\u0432\u0435\u0442", "\u8272")


def generated_record(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Text-only, multi-turn, missing images, other scripts and repetitions, all mixed."""
    kind = rng.random()
    if kind < 0.06:
        talk = [{"from": "human", "value": "Tell me more. " * 40}, {"from": "gpt", "value": "No."}]
        return {"id": f"t{number}", "conversations": talk}
    if kind < 0.09:
        number = int(rng.integers(0, max(1, number)))  # may repeat an earlier one
    talk = []
    for turn in range(1 + number % 7):
        marker = "<image>\n" if turn == 0 else ""
        word = _WORDS[(number + turn) % len(_WORDS)]
        question = f"{marker}What is the {word} of object {turn} in picture {number}?{_SUFFIX}"
        talk.append({"from": "human", "value": question})
        talk.append({"from": "gpt", "value": f"{word} {turn}"})
    return {"id": str(number), "image": _image_path(number), "conversations": talk}


def write_generated_mix(path: Path, num_records: int) -> None:
    """Write the JSON list, record by record."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            record = json.dumps(generated_record(number, rng), ensure_ascii=False)
            file.write(f"{',' if number else '['}{record}\n")
        file.write("]")


def image_tables(num_records: int) -> list[pl.DataFrame]:
    """The images as the download stage lists them, in order of their paths and in its shards.

    2 % are missing, 1 % unreadable, 1 % identical to another.
    """
    there = [number for number in range(num_records) if number % 50 != 49]
    by_path = sorted(there, key=lambda number: (number % 2 == 0, number))
    starts = range(0, len(by_path), IMAGES_PER_SHARD)
    return [_image_table(by_path[start : start + IMAGES_PER_SHARD]) for start in starts]


def _image_table(numbers: Sequence[int]) -> pl.DataFrame:
    same = [number - 2 if number % 100 == 20 else number for number in numbers]
    problems = ["damaged JPEG: truncated" if number % 100 == 7 else None for number in numbers]
    table = {
        "path": [f"images/{_image_path(number)}" for number in numbers],
        "uri": [f"archive.zip#bytes={number * 100}-{number * 100 + 100}" for number in numbers],
        "num_bytes": [100] * len(numbers),
        "sha256": [hashlib.sha256(str(number).encode()).hexdigest() for number in same],
        "problem": problems,
    }
    return pl.DataFrame(table, schema_overrides={"problem": pl.String})


def _image_path(number: int) -> str:
    return f"{'gqa' if number % 2 else 'ocr_vqa'}/images/{number:07d}.jpg"
