"""True boxes beside a LLaVA mix, for evaluation alone: JSON Lines, a box of one turn a line."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, FiniteFloat, model_validator

from data_contracts.base import Settings
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.records import image_path, question_id

_Place = tuple[int, str | None]
"""Turn and source id of a box; None for every record of its image."""


class MixBox(Settings):
    """One line; what else it says is not read."""

    model_config = ConfigDict(extra="ignore")

    image: str
    """Path as in the records."""
    turn: int
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    """x0, y0, x1, y1 in pixels of the upright image."""
    source_id: str | None = None
    """Of the record; None for every record of that image."""
    layout: str = ""

    @model_validator(mode="after")
    def _has_area(self) -> "MixBox":
        x0, y0, x1, y1 = self.box
        if x0 >= x1 or y0 >= y1:
            raise ValueError("box is empty: x0 < x1 and y0 < y1 are needed")
        return self

    @property
    def path(self) -> str | None:
        """Of the image as questions have it; None of what no record can name."""
        return image_path({"image": self.image})

    @property
    def place(self) -> _Place:
        """What it is the box of, on its image."""
        return self.turn, self.source_id

    @property
    def content(self) -> tuple[Any, ...]:
        """What it says of a question."""
        return self.box, self.layout

    def is_in(self, folders: Sequence[str] | None) -> bool:
        """Whether its image is in one of some folders; None are all."""
        return folders is None or str(self.path).partition("/")[0] in folders


class MixBoxes:
    """The boxes of a source by question.

    A question belongs to the path that its record names, which its id tells but where the same
    question is asked again. A path without any box takes those of an identical image, unless
    several have different ones. Several boxes of one question become the smallest that holds them
    all.
    """

    def __init__(self, lines: Sequence[MixBox], digests: Mapping[str, str]) -> None:
        """Take boxes.

        Args:
            lines: in their order.
            digests: path -> digest of the images that there are.
        """
        self.lines = lines
        self._by_path: dict[str, dict[_Place, MixBox]] = defaultdict(dict)
        self._paths: dict[str, list[str]] = defaultdict(list)
        for line in lines:
            if line.path is None or line.path not in digests:
                continue
            boxes = self._by_path[line.path]
            boxes[line.place] = _around(boxes.get(line.place, line), line)
        for path in self._by_path:
            self._paths[digests[path]].append(path)

    @property
    def are_as_written(self) -> bool:
        """Whether the last line of each question says it all, and copies do not differ."""
        last = {(line.path, line.place): line for line in self.lines if line.path in self._by_path}
        contents = {
            path: {place: box.content for place, box in of.items()}
            for path, of in self._by_path.items()
        }
        return all(
            line.path == line.image and line.content == contents[line.path][line.place]
            for line in last.values()
        ) and all(
            contents[path] == contents[paths[0]] for paths in self._paths.values() for path in paths
        )

    def outside(self, sizes: Mapping[str, tuple[int, int]]) -> list[MixBox]:
        """Boxes that show nothing of their image, of the images (by path) of known size."""
        return [
            box
            for path, size in sizes.items()
            for box in self._by_path.get(path, {}).values()
            if not BoxXYXY(*box.box).shows_part_of(size)
        ]

    def find(self, question: Mapping[str, Any]) -> MixBox | None:
        """The box of a question (a row of ``qa_record.v1``); None if it has none."""
        paths = self._paths_of(question)
        for source_id in (question["source_id"], None):
            place = question["turn"], source_id
            found = [of[place] for of in map(self._by_path.__getitem__, paths) if place in of]
            if found:
                return found[-1] if len({box.box for box in found}) == 1 else None
        return None

    def unasked(self, questions: Iterable[Mapping[str, Any]]) -> list[MixBox]:
        """Lines that belong to none of these questions.

        Those of images that none of them is about, though the source has them, are not counted:
        their questions were not selected.
        """
        asked: dict[str, set[_Place]] = defaultdict(set)
        for question in questions:
            for path in self._paths_of(question):
                turn = question["turn"]
                asked[path] |= {(turn, question["source_id"]), (turn, None)}
        return [
            line
            for line in self.lines
            if line.path not in self._by_path
            or (line.path in asked and line.place not in asked[line.path])
        ]

    def _paths_of(self, question: Mapping[str, Any]) -> list[str]:
        """Paths whose boxes may be the question's: its own, which its id tells, or all others."""
        paths = self._paths.get(question["image_sha256"], [])
        own = [path for path in paths if question_id(path, question) == question["question_id"]]
        return own or paths


def _around(one: MixBox, other: MixBox) -> MixBox:
    """The later of two lines, with the smallest box that holds both."""
    x0s, y0s, x1s, y1s = zip(one.box, other.box, strict=True)
    return other.model_copy(update={"box": (min(x0s), min(y0s), max(x1s), max(y1s))})
