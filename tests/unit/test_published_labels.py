"""Rows of published label pickles: every variant is read, every defect has its reason."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_contracts.interop import PublishedLabels
from sdrpn_core.interop.published_labels import BadRow, attention_row, read_row
from tests import image_files
from tests.published import llava_row, qwen_row

SETTINGS = PublishedLabels(files=("labels.pkl",), images="images")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_flat_maps_are_laid_out_row_by_row(dtype: type) -> None:
    given = llava_row(3, dtype)
    row = read_row(given, SETTINGS)
    assert row.grounding.shape == (24, 24)
    assert row.grounding.dtype == np.float32
    np.testing.assert_array_equal(
        row.grounding.ravel(), given["grounding_attn_o2i"].astype(np.float32)
    )
    assert row.sink is not None
    assert row.sink[0, 3] == np.float32(0.5)
    assert (row.dataset, row.image) == ("ocr_vqa", "ocr_vqa/images/3.png")


def test_a_sink_map_of_zeros_means_none() -> None:
    assert read_row(qwen_row(0, natural=False), SETTINGS).sink is None
    assert read_row(qwen_row(0, natural=True), SETTINGS).sink is not None
    assert read_row(qwen_row(0, natural=True) | {"sink_attn": None}, SETTINGS).sink is None


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("gqa/images/1.jpg", "gqa/images/1.jpg"),
        ("/home/someone/datasets/gqa/images/1.jpg", "gqa/images/1.jpg"),
        ("../../datasets/ocr_vqa/images/1.jpg", "ocr_vqa/images/1.jpg"),
        ("1.jpg", "1.jpg"),
    ],
)
def test_the_authors_own_folders_are_cut_off(given: str, path: str) -> None:
    assert read_row(llava_row(0) | {"image": given}, SETTINGS).image == path


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"grounding_attn_o2i": None}, "grounding_attn_o2i is missing"),
        ({"grounding_attn_o2i": [0.1, 0.2]}, "a list, not an array"),
        ({"grounding_attn_o2i": np.array(["a"])}, "an array of <U1"),
        ({"grounding_attn_o2i": np.zeros(575)}, "575 values, which are no square grid"),
        ({"grounding_attn_o2i": np.zeros((1, 2, 2))}, "1 x 2 x 2, not a grid"),
        ({"grounding_attn_o2i": np.float64(0.1)}, "float64, not an array"),
        ({"grounding_attn_o2i": np.zeros((0, 24))}, "not a grid"),
        ({"grounding_attn_o2i": np.full(576, np.nan)}, "not finite"),
        ({"sink_attn": np.full(576, np.inf)}, "sink_attn has values that are not finite"),
        ({"grounding_attn_o2i": np.full(576, -0.1)}, "outside 0 to 1"),
        ({"grounding_attn_o2i": np.full(576, 1.5)}, "outside 0 to 1"),
        ({"sink_attn": np.zeros((12, 12))}, "sink_attn is 12 x 12, grounding_attn_o2i is 24 x 24"),
        ({"image": None}, "image is missing"),
        ({"image": "../secret.png"}, "not a path below the images folder"),
        ({"image": "gqa/../../secret.png"}, "not a path below the images folder"),
        ({"image": "/root/gqa/../x.png"}, "not a path below the images folder"),
        ({"prompt": 7}, "prompt is a int, not text"),
        ({"prompt": " <image>\n"}, "prompt is empty"),
        ({"text": "\ud800"}, "text is not valid Unicode"),
        ({"question_id": True}, "question_id is a bool"),
        ({"question_id": 10**5000}, "question_id is a number of 16610 bits"),
        ({"grounding_attn_o2i": np.full(576, 1e300)}, "not finite"),
        ({"mode": "spoken"}, "mode is 'spoken', not textual or natural"),
        ({"mode": 1}, "mode is a int, not text"),
    ],
)
def test_defects_have_reasons(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read_row(llava_row(0) | changed, SETTINGS)


@pytest.mark.parametrize("row", [None, 3, ["question_id"], "text"])
def test_a_row_that_is_no_dictionary(row: object) -> None:
    with pytest.raises(BadRow, match="not a dictionary"):
        read_row(row, SETTINGS)


def test_ids_follow_what_is_asked_and_not_the_maps() -> None:
    row = llava_row(0)
    first = read_row(row, SETTINGS)
    assert read_row(row | {"sink_attn": None}, SETTINGS).question_id == first.question_id
    others = [{"question_id": 1001}, {"prompt": "What?"}, {"image": "gqa/images/9.png"}]
    ids = {read_row(row | other, SETTINGS).question_id for other in others}
    assert len(ids | {first.question_id}) == 4


def encoded(size: tuple[int, int], orientation: int | None = None) -> bytes:
    import io

    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size, "red").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_a_square_grid_is_of_the_padded_square() -> None:
    row = attention_row(read_row(llava_row(0), SETTINGS), SETTINGS, "x.jpg", encoded((60, 40)))
    assert (row["canvas_width"], row["canvas_height"]) == (60, 60)
    assert (row["pad_left"], row["pad_top"]) == (0, 10)
    assert (row["kind"], row["response"]) == ("natural", "a sign")


@pytest.mark.parametrize(
    ("mode", "kind"), [("textual", "textual"), ("natural", "natural"), (None, "natural")]
)
def test_rows_of_q_zoom_say_what_kind_of_question_they_ask(mode: str | None, kind: str) -> None:
    """Their pipeline's rows have three keys more than SD-RPN's."""
    given = qwen_row(0, natural=True) | {"uid": "gqa_7", "dataset": "gqa_train", "mode": mode}
    row = attention_row(read_row(given, SETTINGS), SETTINGS, "x.jpg", encoded((60, 40)))
    assert (row["kind"], row["dataset"]) == (kind, "gqa")


def test_another_grid_is_of_the_image_alone() -> None:
    given = qwen_row(0, natural=False)
    given |= {"grounding_attn_o2i": np.full((16, 24), 0.01), "sink_attn": np.zeros((16, 24))}
    row = attention_row(read_row(given, SETTINGS), SETTINGS, "x.jpg", encoded((60, 40)))
    assert (row["grid_height"], row["grid_width"]) == (16, 24)
    assert (row["canvas_width"], row["canvas_height"]) == (60, 40)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (encoded((60, 40), orientation=6), "stored turned"),
        (encoded((60, 40))[:200], "damaged JPEG"),
        (b"", "empty"),
    ],
)
def test_images_that_do_not_match_the_maps(image: bytes, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        attention_row(read_row(llava_row(0), SETTINGS), SETTINGS, "x.jpg", image)


_TEXT_SIX = b"\x12\x01\x02\x00\x02\x00\x00\x006\x00\x00\x00"


@pytest.mark.parametrize(
    "image",
    [
        encoded((60, 40), orientation=1),
        image_files.encoded(
            Image.new("RGB", (60, 40)),
            "JPEG",
            exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + _TEXT_SIX + bytes(4),
        ),
    ],
)
def test_an_orientation_that_turns_nothing_is_no_reason(image: bytes) -> None:
    """A text is no orientation: decoding does not turn a picture by it either."""
    row = attention_row(read_row(llava_row(0), SETTINGS), SETTINGS, "x.jpg", image)
    assert row["image_width"] == 60
