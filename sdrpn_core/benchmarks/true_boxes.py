"""True boxes of a benchmark's questions, in the formats in which they are published.

=============  ==============================================  ======================
whose          one row                                         boxes
=============  ==============================================  ======================
yours          ``{"question_id", "box"}``                      x0, y0, x1, y1
TextVQA        ``jrzhang/TextVQA_GT_bbox``:                    one, x, y, w, h
               ``{"dataset_id", "bbox"}``
V*             ``craigwu/vstar_bench``, a file an image:       several, x, y, w, h
               ``{"question", "bbox", "target_object"}``
Visual-CoT     ``deepcs233/Visual-CoT`` metadata:              several, x0, y0, x1, y1
               ``{"image", "question", "bboxs"}``
=============  ==============================================  ======================

Several boxes, of one row or of rows with one id, become the smallest one that holds them all, which
is what has to be seen to answer (Visual-CoT's authors do the same).
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from sdrpn_core.geometry import BoxXYXY

Box = tuple[float, float, float, float]
Key = str | tuple[str, str]
"""A question's own id, or (image name, question)."""


@dataclass(frozen=True)
class TrueBoxes:
    """Boxes by what a row says of its question."""

    by_id: Mapping[str, Box] = field(default_factory=dict)
    by_question: Mapping[tuple[str, str], Box] = field(default_factory=dict)
    """(image name, question); the image is empty where rows name none."""

    def find(self, question_id: str, question: str, image: str) -> Box | None:
        """The box of a question; None if it has none. Arguments are those of ``key``."""
        match self.key(question_id, question, image):
            case None:
                return None
            case str(own_id):
                return self.by_id[own_id]
            case named:
                return self.by_question[named]

    def key(self, question_id: str, question: str, image: str) -> Key | None:
        """What the box of a question goes by; None if it has none.

        Args:
            question_id: the benchmark's own.
            question: without options and answer-style suffix.
            image: name or path of its image; empty if the benchmark gives none.
        """
        if question_id in self.by_id:
            return question_id
        asked = _plain(question)
        named = ((_stem(image), asked), ("", asked))
        return next((key for key in named if key in self.by_question), None)

    def without(self, keys: Set[Key]) -> list[Key]:
        """What the boxes go by that go by none of these."""
        known: list[Key] = [*self.by_id, *self.by_question]
        return [key for key in known if key not in keys]

    def to_json(self) -> list[Any]:
        """Plain data that tells equal boxes from others."""
        named = [[*key, *box] for key, box in sorted(self.by_question.items())]
        return [*([key, *box] for key, box in sorted(self.by_id.items())), *named]


def parse_true_boxes(rows: Iterable[Mapping[str, Any]]) -> TrueBoxes:
    """Read rows of any of the formats.

    Questions that several rows ask in the same words about different places are left out where
    nothing else tells them apart. So are rows whose list of boxes is empty.

    Raises:
        ValueError: naming what is wrong with which row.
    """
    by_id: dict[str, Box] = {}
    by_question: dict[tuple[str, str], Box] = {}
    ambiguous: set[tuple[str, str]] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number}: a {type(row).__name__}, not an object")
        if _has_no_box(row):
            continue
        try:
            box = _box(row)
            own_id = row.get("question_id", row.get("dataset_id"))
            if own_id is not None:
                by_id[str(own_id)] = _around([box, by_id.get(str(own_id), box)])
                continue
            key = (_stem(str(row.get("image", ""))), _plain(str(row["question"])))
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"row {number}: {error!r}") from error
        if by_question.setdefault(key, box) != box:
            ambiguous.add(key)
    return TrueBoxes(by_id, {k: box for k, box in by_question.items() if k not in ambiguous})


def _has_no_box(row: Mapping[str, Any]) -> bool:
    listed = row.get("bboxs", row.get("bbox"))
    return isinstance(listed, Sequence) and not listed


def _box(row: Mapping[str, Any]) -> Box:
    if "box" in row:
        boxes = [_numbers(row["box"])]
    elif "bboxs" in row:
        boxes = [_numbers(box) for box in row["bboxs"]]
    else:
        listed = row["bbox"] if isinstance(row["bbox"][0], Sequence) else [row["bbox"]]
        corners = (_numbers(box) for box in listed)
        boxes = [(x, y, x + width, y + height) for x, y, width, height in corners]
    found = BoxXYXY(*_around(boxes))
    if found.area <= 0:
        raise ValueError(f"box {list(found)} has no area")
    return found.x0, found.y0, found.x1, found.y1


def _around(boxes: Sequence[Box]) -> Box:
    x0s, y0s, x1s, y1s = zip(*boxes, strict=True)
    return min(x0s), min(y0s), max(x1s), max(y1s)


def _numbers(box: Sequence[Any]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in box)
    if not math.isfinite(x0 + y0 + x1 + y1):
        raise ValueError(f"box {list(box)} is not of finite numbers")
    return x0, y0, x1, y1


def _plain(question: str) -> str:
    return " ".join(question.lower().split())


def _stem(image: str) -> str:
    return PurePosixPath(image).stem
