"""Reading source records one at a time, however large the file: a JSON list, or JSON Lines.

Only the record at hand and a chunk of the file are in memory. In JSON Lines a broken line is a
``BadRecord`` and reading goes on. In a list nothing says where the next record starts after a
broken one, so that is an error that names the place, as is anything after the list; a record that
is only nested too deeply, or has too long a number, is a ``BadRecord`` there too.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from data_contracts.errors import SdrpnError
from sdrpn_core.records import BadRecord
from sdrpn_core.source_formats import llava_record

MAX_RECORD_BYTES = 1 << 26
_CHUNK_BYTES = 1 << 20
_SHOWN = 200
_SHOWN_AFTER = 40
_MAX_BAD_START = 100
"""So many bad lines before the first good one mean that it is another kind of file."""
_MAX_NESTING = 100
"""Far below where the interpreter gives up, which depends on who calls."""
_GZIP = b"\x1f\x8b"
_SPACE = re.compile(r"\s*")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|$)|[\[\]{}]', re.DOTALL)
"""A whole text, in which brackets mean nothing, or a bracket."""
_SCALAR_END = re.compile(r"[\s,\]]")
_FORMAT = (
    'expected LLaVA\'s format, {"id": ..., "image": ..., "conversations": [...]} each, or '
    '{"messages": [...], "images": [...]}, as a JSON list or JSON Lines'
)


class SourceError(SdrpnError):
    """A source cannot be read; the message names the URI and the remedy."""


def read_mix(file: BinaryIO, uri: str) -> Iterator[object]:
    """Records as ``read_records`` gives them, those of chat data in LLaVA's form."""
    return map(llava_record, read_records(file, uri))


def read_records(file: BinaryIO, uri: str) -> Iterator[object]:
    """Records in their order.

    Args:
        file: UTF-8, with or without a byte order mark.
        uri: its address, for messages.

    Raises:
        SourceError: if it is packed, not text, or a list that cannot be read further.
    """
    first = file.read(4096)
    if first.startswith(_GZIP):
        raise SourceError(
            f"{uri}: is gzipped, and records are read as they lie: unpack it (gunzip)"
        )
    rest = first.removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if rest[:1] == b"[":
        yield from _List(file, uri).records()
    else:
        yield from _lines(file, uri)


def _lines(file: BinaryIO, uri: str) -> Iterator[object]:
    num_good = num_bad = 0
    last: BadRecord | None = None
    while line := file.readline(MAX_RECORD_BYTES):
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            raise SourceError(f"{uri}: has a line of more than {MAX_RECORD_BYTES} bytes; {_FORMAT}")
        if not line.strip():
            continue
        record = _parse_line(line)
        if isinstance(record, BadRecord):
            num_bad, last = num_bad + 1, record
            if num_bad == _MAX_BAD_START and not num_good:
                break
        else:
            num_good += 1
        yield record
    if last is not None and not num_good:
        raise SourceError(f"{uri}: is no JSON ({last.reason}); {_FORMAT}")


def _parse_line(line: bytes) -> object:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadRecord(line[:_SHOWN].hex(), f"the line is not UTF-8 ({error.reason})")
    try:
        return _checked(json.loads(text), text)
    except ValueError as error:
        return BadRecord(text.strip(), f"the line is not JSON ({error})")
    except RecursionError:
        return _too_deep(text)


def _checked(record: object, text: str) -> object:
    """The record, unless it is nested so deeply that it could not be worked with."""
    if text.count("[") + text.count("{") <= _MAX_NESTING:
        return record
    level = [record]
    for _ in range(_MAX_NESTING):
        lists = [value for value in level if isinstance(value, list)]
        objects = [value for value in level if isinstance(value, dict)]
        level = [child for value in lists for child in value]
        level += [child for value in objects for child in value.values()]
    return _too_deep(text) if level else record


def _too_deep(text: str) -> BadRecord:
    return BadRecord(text.strip(), "the record is not JSON that can be read (nested too deeply)")


def _end_of_value(text: str, start: int) -> int | None:
    """Where a JSON value ends, by its brackets alone; None if that is not in this text."""
    if text[start] not in "[{":
        match = _SCALAR_END.search(text, start)
        return match.start() if match else None
    depth = 0
    for match in _BRACKET.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


class _List:
    """A JSON list, parsed value by value from a window of its text."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file = file
        self._uri = uri
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._position = 0
        self._num_read = 0
        self._is_at_end = False

    def records(self) -> Iterator[object]:
        """Every value of the list, which is all that the file may hold."""
        self._next()
        self._position += 1  # the bracket
        if self._next() != "]":
            yield from self._values()
        self._position += 1  # the bracket
        if self._next():
            raise self._goes_on()

    def _values(self) -> Iterator[object]:
        """Every value, up to the bracket that closes the list."""
        while True:
            yield self._value()
            self._num_read += 1
            separator = self._next()
            if separator == "]":
                return
            if separator != ",":
                raise self._error("a comma is missing" if separator else "the file ends early")
            self._position += 1
            self._next()

    def _value(self) -> object:
        while True:
            try:
                value, end = self._scan(self._text, self._position)
                if end < len(self._text) or not self._more():
                    text = self._text[self._position : end]
                    self._position = end
                    return _checked(value, text)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._error(error.msg) from error
                if len(self._text) > MAX_RECORD_BYTES:
                    raise self._error(f"{error.msg}, or longer than can be") from error
            except (ValueError, RecursionError) as error:  # well-formed as far as it was read
                return self._skip(error)

    def _skip(self, error: Exception) -> BadRecord:
        """Pass over a value that is too deep, or has too long a number."""
        while (end := _end_of_value(self._text, self._position)) is None:
            if len(self._text) - self._position > MAX_RECORD_BYTES or not self._more():
                raise self._error(str(error)) from error
        text = self._text[self._position : end]
        self._position = end
        if isinstance(error, RecursionError):
            return _too_deep(text)
        return BadRecord(text, f"the record is not JSON that can be read ({error})")

    def _next(self) -> str:
        """The next character that is not space, without taking it; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on, twice as far each time the same record turns out to be longer."""
        if self._is_at_end:
            return False
        kept = self._text[self._position :]
        data = self._file.read(max(_CHUNK_BYTES, len(kept)))
        try:
            self._text = kept + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self._uri}: not UTF-8 text ({error.reason} near record {self._num_read}, the "
                "first being record 0); save it as UTF-8 JSON"
            ) from error
        self._position = 0
        self._is_at_end = not data
        return bool(data)

    def _goes_on(self) -> SourceError:
        after = self._text[self._position : self._position + _SHOWN_AFTER]
        return SourceError(
            f"{self._uri}: goes on with {after!r} after its list of {self._num_read} records; "
            "put all records into one list, or write JSON Lines: one record a line, no list around "
            "them"
        )

    def _error(self, problem: str) -> SourceError:
        return SourceError(
            f"{self._uri}: record {self._num_read} is not JSON ({problem}), the first being record "
            f"0; is the file complete? {_FORMAT}"
        )
