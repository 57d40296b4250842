"""The file that many answers go to, and what is kept beside it so that a stopped run can go on.

A part is a fixed number of questions. Each appears whole or not at all; when all are there they
become the output file. What was asked, and of which RPN and model, is kept beside it: a rerun goes
on only with exactly that. It asks again what was refused, as the cause may have gone meanwhile.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from data_contracts.artifact import canonical_json
from data_contracts.json_lines import text_lines
from data_contracts.settings_files import ConfigError
from data_contracts.wording import counted
from tasks.storage.addresses import absolute_uri, folder_and_name
from tasks.storage.storage import Storage

PARTS_SUFFIX = ".parts"
"""Ends the name of the folder beside the output that keeps parts until all are there."""
_REQUEST_SUFFIX = ".request"
"""Ends the name of the file beside the output that says what was asked."""
_PICTURES_REQUEST = ".request"
"""In the folder of pictures, which alone may be written to, and which may be deleted as it is."""


@dataclass(frozen=True)
class AnswerFiles:
    """An output that belongs to one request, and what earlier runs made of it."""

    storage: Storage
    """Where the output is."""
    name: str
    """Of the output."""
    rows_per_part: int
    finished: Sequence[str]
    """Lines of the output as it is; none if there is none yet."""
    parts: Set[str]
    """Keys of parts that an earlier run left."""

    @classmethod
    def claim(
        cls,
        storage: Storage,
        output: str,
        request: Mapping[str, Any],
        num_asked: int,
        rows_per_part: int,
    ) -> "AnswerFiles":
        """See to it that the output is of this very request, and look for what there is of it.

        Args:
            storage: its options apply to the output.
            output: path or URI of the file.
            request: all that the answers depend on.
            num_asked: how many answers there will be.
            rows_per_part: how many of them are in a part.

        Raises:
            ConfigError: if the output belongs to another request, or was changed.
        """
        root, name = folder_and_name(absolute_uri(output))
        at_root = storage.elsewhere(root)
        _claim(at_root, name, request, output)
        finished = _finished_lines(at_root, name, num_asked, output)
        parts = {item.key for item in at_root.find(f"{name}{PARTS_SUFFIX}")}
        return cls(at_root, name, rows_per_part, finished, parts)

    def kept(self, part: int) -> Sequence[str]:
        """Lines of a part that an earlier run made; none if it did not."""
        key = self._key(part)
        # A part beside a finished file is newer: a rerun that asked again was stopped.
        if key in self.parts:
            return text_lines(self.storage.read(key))
        start = part * self.rows_per_part
        return self.finished[start : start + self.rows_per_part]

    def keep(self, part: int, lines: Iterable[str]) -> None:
        """Keep a part until all are there."""
        self.storage.put(self._key(part), _text(lines))

    def finish(self, lines: Sequence[str]) -> None:
        """Write the output of all lines; its parts go."""
        if lines != self.finished:
            self.storage.put(self.name, _text(lines))
        folder = f"{self.name}{PARTS_SUFFIX}"
        self.storage.delete([item.key for item in self.storage.find(folder)])
        self.storage.remove_empty_folders(folder)

    def _key(self, part: int) -> str:
        return f"{self.name}{PARTS_SUFFIX}/{part:06d}.jsonl"


def claim_pictures(storage: Storage, folder: str, output: str) -> Storage:
    """The folder of an output's pictures, which no other output may share: they are named by place
    and image, so that one of another output could take the place of one of this.

    Args:
        storage: its options apply to the folder.
        folder: path or URI.
        output: path or URI of the file of answers.

    Raises:
        ConfigError: if the pictures of another output are there.
    """
    pictures = storage.elsewhere(absolute_uri(folder))
    request = _pictures_request(output)
    pictures.create(_PICTURES_REQUEST, f"{canonical_json(request)}\n".encode())
    check_pictures(storage, folder, output)
    return pictures


def check_pictures(storage: Storage, folder: str, output: str) -> None:
    """See to it that a folder has no pictures of another output; nothing is claimed.

    Raises:
        ConfigError: if it has; names the file that says of which.
    """
    pictures, key = storage.elsewhere(absolute_uri(folder)), _PICTURES_REQUEST
    if pictures.size(key) is None:
        return
    if _differences(pictures.read(key), _pictures_request(output)):
        raise ConfigError(
            f"--overlay {folder}: has the pictures of another --output ({pictures.uri(key)} says "
            "of which); name another folder, or delete that file and its pictures"
        )


def _pictures_request(output: str) -> dict[str, str]:
    return {"pictures of": absolute_uri(output)}


def _claim(storage: Storage, name: str, request: Mapping[str, Any], output: str) -> None:
    """See to it that the output is of this very request."""
    key = f"{name}{_REQUEST_SUFFIX}"
    if storage.size(key) is None and storage.size(name) is not None:
        raise ConfigError(
            f"{output} exists and was not made by this command: name another --output"
        )
    storage.create(key, f"{canonical_json(request)}\n".encode())
    if other := _differences(storage.read(key), request):
        raise ConfigError(
            f"{output} was begun with other {', '.join(other)}: name another --output, or delete "
            f"{output}{_REQUEST_SUFFIX} and what begins with {output}"
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
    lines = text_lines(storage.read(name))
    if len(lines) != num_asked or not all(map(_is_answer, lines)):
        raise ConfigError(
            f"{output} has {counted(len(lines), 'row')} for {counted(num_asked, 'question')}, or "
            "rows that are no answers, so it was changed after it was written: name another "
            "--output, or delete it"
        )
    return lines


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _is_answer(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "error" in row


def is_refused(line: str) -> bool:
    """Whether a line says why there is no answer."""
    return json.loads(line)["error"] is not None


def num_refused(lines: Iterable[str]) -> int:
    """How many lines do."""
    return sum(map(is_refused, lines))
