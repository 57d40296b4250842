"""Reading JSON Lines that any program may have written."""

import json

import pytest

from data_contracts.json_lines import json_lines, text_lines


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_only_newlines_end_a_line(sign: str):
    """JSON allows other separators within strings; a line was cut in two there."""
    rows = [{"question": f"what {sign} is it"}, {"question": "red"}]
    escaped = [json.dumps(row) for row in rows]
    plain = [json.dumps(row, ensure_ascii=False) for row in rows]
    assert json_lines("\n".join(escaped).encode()) == rows
    assert json_lines("\n".join(plain).encode()) == rows


def test_blank_lines_are_places_and_no_values():
    assert text_lines(b'1\r\n\n{"a": 2}\n') == ["1\r", "", '{"a": 2}']
    assert json_lines(b'1\r\n\n{"a": 2}\n') == [1, {"a": 2}]
    assert text_lines(b"") == json_lines(b"") == []
    assert text_lines(b"1") == text_lines(b"1\n") == ["1"]


@pytest.mark.parametrize("data", [b"{", b'"\xff"'])
def test_what_is_no_json_is_a_value_error(data: bytes):
    with pytest.raises(ValueError, match=r"Expecting|codec"):
        json_lines(data)


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    """Files as some editors save them were refused as no JSON."""
    assert json_lines(b'\xef\xbb\xbf{"a": 1}\r\n2') == [{"a": 1}, 2]
    assert text_lines(b"\xef\xbb\xbf") == []
