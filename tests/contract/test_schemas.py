"""Row contracts: frozen, enforced rule by rule, unchanged by a round trip through files."""

from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts.artifact import canonical_json
from data_contracts.registry import (
    SCHEMAS,
    ContractError,
    SchemaId,
    empty_frame,
    fingerprint,
    frame_of,
    schema_for,
    validate,
)
from tasks.artifacts.frame_codec import decode_frame, encode_frame

Row = dict[str, Any]

FROZEN = {
    "source_file.v1": "3755071b9c9ff072",
    "source_file.v2": "6ec3aba202c78350",
    "qa_record.v1": "0743cdf2793d9b2a",
    "attention_map.v1": "9287e15c18073c87",
    "import_reject.v1": "ed3f451a8c720f22",
    "pseudo_label.v2": "f6fbce6f994dee54",
    "label_set.v2": "766c2a65ed5ae4d8",
    "prediction.v4": "04a4f3ff45e9ed87",
}

_GRID: Row = {
    "question_id": "0" * 20,
    "dataset": "gqa",
    "kind": "natural",
    "image_uri": "images/a.png",
    "image_sha256": "a" * 64,
    "question": "What is written\nthere?",
    "answers": ["a", "b\u00e9"],
    "grid_height": 2,
    "grid_width": 3,
    "image_width": 640,
    "image_height": 480,
    "pad_left": 0,
    "pad_top": 80,
    "canvas_width": 640,
    "canvas_height": 640,
}
_LABEL: Row = _GRID | {
    "labels": [1, 1, 0, 0, -100, -100],
    "box_x0": 0,
    "box_y0": 0,
    "box_x1": 2,
    "box_y1": 1,
    "num_foreground": 2,
    "num_background": 2,
    "num_ignore": 2,
    "max_attention": 0.25,
    "status": "ok",
    "reason": "",
}
_REJECTED: Row = _LABEL | {
    "question_id": "1" * 20,
    "labels": [-100] * 6,
    "num_foreground": 0,
    "num_background": 0,
    "num_ignore": 6,
    "status": "box_too_large",
    "reason": "box covers 0.8 of the content",
    **dict.fromkeys(["box_x0", "box_y0", "box_x1", "box_y1"]),
}
_RECORD: Row = {
    "question_id": "0" * 20,
    "dataset": "ocr_vqa",
    "source_id": "17",
    "turn": 0,
    "kind": "textual",
    "image_uri": "images/a.png",
    "image_sha256": "b" * 64,
    "question": 'Who wrote "this"?\u2028',
    "answers": ["one", ""],
    "status": "ok",
    "reason": "",
}
_ATTENTION: Row = _GRID | {
    "response": "red",
    "num_response_tokens": 2,
    "grounding": [0.0, 0.5, 0.1, 0.0, 1.0, 0.2],
    "sink": [0.0] * 6,
    "prompt_attention": [0.1] * 6,
    "kernel": "sdpa",
    "status": "ok",
    "reason": "",
}

VALID: dict[str, list[Row]] = {
    "source_file.v1": [
        {"path": "a/b.png", "uri": "download/x", "num_bytes": 5, "sha256": "0" * 64},
        {"path": "a/c.png", "uri": "s3://b/c", "num_bytes": 0, "sha256": "f" * 64},
    ],
    "source_file.v2": [
        {"path": "a", "uri": "x", "num_bytes": 5, "sha256": "0" * 64, "problem": None},
        {"path": "b", "uri": "y", "num_bytes": 5, "sha256": "0" * 64, "problem": "no image"},
    ],
    "qa_record.v1": [
        _RECORD,
        _RECORD
        | {"question_id": "1" * 20, "image_uri": None, "image_sha256": None, "answers": []}
        | {"status": "text_only", "reason": "the record names no image"},
    ],
    "attention_map.v1": [
        _ATTENTION,
        _ATTENTION
        | {"question_id": "1" * 20, "status": "empty_response", "reason": "end at once"}
        | {"grounding": None, "sink": None, "prompt_attention": None, "response": ""},
    ],
    "import_reject.v1": [
        {"file": "labels.pkl", "row": 7, "source_id": "1007", "reason": "prompt is empty"},
        {"file": "labels.pkl", "row": 8, "source_id": "", "reason": "not a dictionary"},
    ],
    "pseudo_label.v2": [_LABEL, _REJECTED],
    "label_set.v2": [
        row | {"label_artifact": "make-labels/" + "0" * 20} for row in (_LABEL, _REJECTED)
    ],
    "prediction.v4": [
        {
            "benchmark": "scenes",
            "method": method,
            "question_id": "q1",
            "category": "",
            "image_uri": "images/a.png",
            "question": "code?",
            "answers": ["K 7"],
            "prediction": "K 7",
            "score": 1.0,
            "boxes": boxes,
            "num_crop_tokens": 40 * len(boxes),
            "true_box": None,
            "roi_map": roi_map,
            "kind": "textual",
            "sink_map": None,
            "grid_height": 1,
            "grid_width": 2,
            "image_width": 640,
            "image_height": 320,
            "pad_left": 0,
            "pad_top": 160,
            "canvas_width": 640,
            "canvas_height": 640,
        }
        for method, boxes, roi_map in [
            ("base", [], None),
            ("sdrpn", [[0.0, 1.0, 2.0, 3.0]], [0.5, 1.0]),
        ]
    ],
}

_LABEL_FAULTS: list[tuple[str, Row]] = [
    ("labels_have_grid_length", {"grid_width": 4}),
    ("labels_are_known_values", {"labels": [1, 1, 0, 0, -1, -100]}),
    ("counts_match_labels", {"num_ignore": 3}),
    ("rejected_is_all_ignore", {"status": "weak_attention"}),
    ("ok_has_box_inside_grid", {"box_x1": 4}),
    ("ok_has_box_inside_grid", {"box_x0": 2}),
    ("ok_has_box_inside_grid", {"box_y0": None}),
]
FAULTS: dict[str, list[tuple[str, Row]]] = {
    "source_file.v1": [
        ("sha256|regex", {"sha256": "0" * 63}),
        ("num_bytes|min", {"num_bytes": -1}),
        ("path|min_length", {"path": ""}),
    ],
    "source_file.v2": [
        ("sha256|regex", {"sha256": "0" * 63}),
        ("problem|min_length", {"problem": ""}),
    ],
    "qa_record.v1": [
        ("usable_has_image_and_question", {"image_uri": None}),
        ("usable_has_image_and_question", {"question": ""}),
        ("unusable_has_reason", {"status": "malformed"}),
        ("question_id|regex", {"question_id": "17"}),
    ],
    "attention_map.v1": [
        ("ok_has_grounding", {"grounding": None}),
        ("ok_has_grounding", {"status": "empty_response", "reason": "end at once"}),
        ("grounding_has_grid_length", {"grounding": [0.1] * 5}),
        ("sink_has_grid_length", {"sink": [0.1] * 7}),
        ("grounding_is_probability", {"grounding": [1.5] + [0.0] * 5}),
        ("grounding_is_probability", {"grounding": [-0.1] + [0.0] * 5}),
        ("grounding|inner_nan", {"grounding": [float("nan")] + [0.0] * 5}),
        ("sink|inner_inf", {"sink": [float("inf")] + [0.0] * 5}),
        ("failed_has_reason", {"status": "unreadable_image", "grounding": None}),
    ],
    "import_reject.v1": [
        ("file|min_length", {"file": ""}),
        ("row|min", {"row": -1}),
        ("reason|min_length", {"reason": ""}),
    ],
    "pseudo_label.v2": _LABEL_FAULTS,
    "label_set.v2": [*_LABEL_FAULTS, ("label_artifact|min_length", {"label_artifact": ""})],
    "prediction.v4": [
        ("roi_map_has_grid_length", {"roi_map": [0.5]}),
        ("sink_map_has_grid_length", {"sink_map": [0.5] * 3}),
        ("boxes_have_four_numbers", {"boxes": [[0.0, 1.0, 2.0]]}),
        ("boxes_have_four_numbers", {"true_box": [0.0] * 5}),
        ("num_crop_tokens|min", {"num_crop_tokens": -1}),
        ("score|max", {"score": 1.5}),
        ("score|nan", {"score": float("nan")}),
    ],
}


def test_every_id_but_that_of_plain_files_has_a_contract():
    assert set(SCHEMAS) == set(SchemaId) - {SchemaId.FILES}


def test_no_rows_are_a_frame_with_the_contracts_columns(schema_id: str):
    assert_frame_equal(frame_of([], schema_id), empty_frame(schema_id))


@pytest.fixture(params=sorted(SCHEMAS))
def schema_id(request: pytest.FixtureRequest) -> str:
    return request.param


def num_breaking(frame: pl.DataFrame, schema_id: str) -> dict[str, int]:
    """Number of rows that break each rule of the contract."""
    return schema_for(schema_id).filter(frame, cast=True).failure.counts()


def test_fingerprints_are_frozen() -> None:
    """Stored rows depend on these: a change of meaning makes a new version of the schema."""
    assert {schema_id: fingerprint(schema_id) for schema_id in SCHEMAS} == FROZEN


def test_valid_rows_pass_unchanged(schema_id: str) -> None:
    frame = frame_of(VALID[schema_id], schema_id)
    assert_frame_equal(validate(frame, schema_id), frame)


@pytest.mark.parametrize(
    ("schema_id", "rule", "change"),
    [(schema_id, *fault) for schema_id, faults in FAULTS.items() for fault in faults],
)
def test_a_row_that_breaks_a_rule_is_caught_by_name(schema_id: str, rule: str, change: Row) -> None:
    good, other = VALID[schema_id]
    frame = frame_of([good | change, other], schema_id)
    assert num_breaking(frame, schema_id).get(rule) == 1
    with pytest.raises(ContractError, match=rule.rpartition("|")[2]) as caught:
        validate(frame, schema_id)
    assert "\n" not in str(caught.value)


def test_every_rule_has_a_row_that_breaks_it(schema_id: str) -> None:
    rules = {rule for rule in schema_for(schema_id)._validation_rules(with_cast=False)}
    named = {rule for rule in rules if "|" not in rule} - {"primary_key"}
    assert named <= {rule for rule, _ in FAULTS[schema_id]}


def test_nulls_are_caught_column_by_column(schema_id: str) -> None:
    for name, column in schema_for(schema_id).columns().items():
        frame = frame_of([VALID[schema_id][0] | {name: None}], schema_id)
        if not column.nullable:
            assert num_breaking(frame, schema_id).get(f"{name}|nullability") == 1, name


def test_repeated_keys_are_caught(schema_id: str) -> None:
    row = VALID[schema_id][0]
    frame = frame_of([row, row], schema_id)
    assert num_breaking(frame, schema_id)["primary_key"] == 2


def test_missing_column_is_named_in_one_line(schema_id: str) -> None:
    first, *_ = empty_frame(schema_id).columns
    with pytest.raises(ContractError, match=f"{schema_id}: .*{first}") as caught:
        validate(frame_of(VALID[schema_id], schema_id).drop(first), schema_id)
    assert "\n" not in str(caught.value)


def test_unknown_category_is_not_silently_null() -> None:
    rows = [VALID["qa_record.v1"][0] | {"kind": "visual"}]
    with pytest.raises(ContractError, match="kind"):
        validate(pl.DataFrame(rows), "qa_record.v1")


def test_unknown_schema_is_named() -> None:
    with pytest.raises(ContractError, match=r"attention_map\.v9.*attention_map\.v1"):
        schema_for("attention_map.v9")


def test_round_trip_through_bytes(schema_id: str) -> None:
    frame = frame_of(VALID[schema_id], schema_id)
    assert_frame_equal(decode_frame(encode_frame(frame, schema_id), schema_id), frame)


def test_round_trip_of_no_rows(schema_id: str) -> None:
    empty = empty_frame(schema_id)
    assert_frame_equal(decode_frame(encode_frame(empty, schema_id), schema_id), empty)


def test_some_columns_can_be_read(schema_id: str) -> None:
    frame = frame_of(VALID[schema_id], schema_id)
    wanted = [frame.columns[-1], frame.columns[0]]
    read = decode_frame(encode_frame(frame, schema_id), schema_id, wanted)
    assert_frame_equal(read, frame.select(wanted))


def test_bytes_do_not_depend_on_row_order_or_chunks(schema_id: str) -> None:
    rows = frame_of(VALID[schema_id], schema_id)
    chunks = pl.concat([rows[1:], rows[:1]], rechunk=False)
    assert encode_frame(chunks, schema_id) == encode_frame(rows, schema_id)


def test_records_are_json_lines_that_people_can_read() -> None:
    text = encode_frame(frame_of(VALID["qa_record.v1"], "qa_record.v1"), "qa_record.v1").decode()
    first, second, end = text.split("\n")
    assert first.startswith('{"answers":["one",""],"dataset":"ocr_vqa"')
    assert '"image_uri":null' in second
    assert end == ""


def test_records_of_any_text_are_canonical_json() -> None:
    """The bytes of questions are older than the library call that writes them."""
    row = VALID["qa_record.v1"][0]
    every = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x110000))]
    texts = ["".join(every[i : i + 1000]) for i in range(0, len(every), 1000)]
    rows = [
        row | {"question_id": f"{i:020x}", "question": text, "answers": [text, ""], "reason": text}
        for i, text in enumerate(texts)
    ]
    expected = "".join(f"{canonical_json(row)}\n" for row in rows)
    assert encode_frame(frame_of(rows, "qa_record.v1"), "qa_record.v1") == expected.encode()
