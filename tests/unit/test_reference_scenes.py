"""The scene generator and the mix it writes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_contracts.json_lines import json_lines
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.reference.mix import write_mix
from sdrpn_core.reference.scenes import LAYOUTS, READABLE_PRINT, make_scene
from sdrpn_core.reference.shapes import draw_object
from sdrpn_core.reference.views import BACKGROUND, draw_canvas, margin_box, render_view
from sdrpn_core.reference.vocabulary import SHORT_ANSWER_SUFFIX, normalise_answer

SCENES = [make_scene(seed) for seed in range(30)]


def test_equal_seeds_give_equal_scenes_in_another_process() -> None:
    program = (
        "import hashlib; from sdrpn_core.reference.scenes import make_scene; s = make_scene(3);"
        "print(hashlib.sha256(s.image.tobytes()).hexdigest(), s.turns[0].answer)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    scene = make_scene(3)
    expected = f"{hashlib.sha256(scene.image.tobytes()).hexdigest()} {scene.turns[0].answer}"
    assert run.stdout.strip() == expected


def test_different_seeds_give_different_scenes() -> None:
    pictures = {scene.image.tobytes() for scene in SCENES}
    assert len(pictures) == len(SCENES)


def test_boxes_lie_inside_the_image_and_contain_the_print() -> None:
    for scene in SCENES:
        width, height = scene.image.size
        assert scene.objects
        for thing in scene.objects:
            assert 0 <= thing.box.x0 < thing.box.x1 <= width
            assert 0 <= thing.box.y0 < thing.box.y1 <= height
            assert thing.box.coverage_of(thing.code_box) > 0.99


def test_boxes_do_not_overlap() -> None:
    for scene in SCENES:
        boxes = [thing.box for thing in scene.objects]
        for index, box in enumerate(boxes):
            assert all(box.intersection(other).area == 0 for other in boxes[index + 1 :])


def test_referring_expressions_are_unique_and_answers_echo_them() -> None:
    for scene in SCENES:
        names = [(thing.colour, thing.kind) for thing in scene.objects]
        assert len(set(names)) == len(names)
        assert len(scene.turns) == len(names)
        for turn in scene.turns:
            thing = scene.objects[turn.object_index]
            assert f"{thing.colour} {thing.kind}" in turn.question
            assert turn.answer == f"{thing.colour} {thing.kind} {thing.code[0]} {thing.code[1]}"
            assert turn.box == thing.box


def test_print_has_ink_on_a_plate() -> None:
    for scene in SCENES:
        for thing in scene.objects:
            window = scene.image.crop(thing.code_box.to_pixels(scene.image.size)).convert("L")
            values = np.asarray(window)
            assert values.max() > 200
            assert values.min() < 80


@pytest.mark.parametrize("code", ["C4", "E3", "H3"])
def test_another_code_prints_other_pixels_and_nothing_else_changes(code: str) -> None:
    first, code_box = _drawn("C3")
    other, _ = _drawn(code)
    differs = (first != other).any(axis=-1)
    rows, columns = np.nonzero(differs)
    assert len(rows) > 10
    assert code_box.x0 <= columns.min() <= columns.max() < code_box.x1
    assert code_box.y0 <= rows.min() <= rows.max() < code_box.y1


def test_all_layouts_and_non_square_sizes_occur() -> None:
    assert {scene.layout for scene in SCENES} == set(LAYOUTS)
    shapes = {np.sign(scene.image.width - scene.image.height) for scene in SCENES}
    assert shapes == {-1, 0, 1}


def test_small_print_is_below_three_input_pixels_and_readable_print_above_four() -> None:
    for seed in range(20):
        for scale, is_right in ((1.0, lambda h: h < 3), (READABLE_PRINT, lambda h: h > 4)):
            scene = make_scene(seed, print_scale=scale)
            for thing in scene.objects:
                assert is_right(thing.print_height * 96 / max(scene.image.size))


def test_crop_of_the_true_box_makes_small_print_readable() -> None:
    for scene in SCENES:
        for index, thing in enumerate(scene.objects):
            view = render_view(scene.image, scene.objects, margin_box(thing.box, 0.1))
            assert view.print_heights[index] > 5.5


def test_cell_map_names_the_object_under_a_cell() -> None:
    scene = make_scene(3)
    view = render_view(scene.image, scene.objects)
    assert (view.cells == BACKGROUND).any()
    for index in range(len(scene.objects)):
        assert (view.cells == index).any()


def test_canvas_of_the_whole_image_is_the_view() -> None:
    scene = make_scene(4)
    whole = BoxXYXY(0.0, 0.0, float(scene.image.width), float(scene.image.height))
    assert draw_canvas(scene.image).tobytes() == draw_canvas(scene.image, whole).tobytes()


def test_mix_has_the_format_of_llava(tmp_path: Path) -> None:
    written = write_mix(tmp_path, num_images=40, seed=3, split="train")
    records = json.loads(written.json_path.read_text())
    with_image = [record for record in records if "image" in record]
    assert len(with_image) == written.num_images == 40
    assert len(records) == 40 + written.num_text_only
    assert written.num_text_only >= 1
    assert {record["image"].split("/")[0] for record in with_image} == {"gqa", "ocr_vqa"}
    assert any(len(record["conversations"]) > 2 for record in with_image)
    for record in records:
        speakers = [turn["from"] for turn in record["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        questions = [turn["value"] for turn in record["conversations"][::2]]
        assert all(question.endswith(SHORT_ANSWER_SUFFIX) for question in questions)
        has_image = [question.startswith("<image>\n") for question in questions]
        assert has_image == ["image" in record] + [False] * (len(questions) - 1)


def test_boxes_sidecar_agrees_with_the_conversations(tmp_path: Path) -> None:
    written = write_mix(
        tmp_path, num_images=12, seed=0, split="validation", print_scale=READABLE_PRINT
    )
    records = {r["id"]: r for r in json.loads(written.json_path.read_text())}
    rows = json_lines(written.boxes_path.read_bytes())
    with_image = [record for record in records.values() if "image" in record]
    assert len(rows) == sum(len(record["conversations"]) // 2 for record in with_image)
    for row in rows:
        question, answer = records[row["source_id"]]["conversations"][2 * row["turn"] :][:2]
        assert row["question"] in question["value"]
        assert row["answer"] == answer["value"]
        with Image.open(written.image_root / row["image"]) as image:
            assert 0 <= row["box"][0] < row["box"][2] <= image.width
            assert 0 <= row["box"][1] < row["box"][3] <= image.height


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}])
def test_other_seeds_and_splits_write_other_scenes(tmp_path: Path, change: dict) -> None:
    arguments = {"num_images": 2, "seed": 0, "split": "train"}
    first = write_mix(tmp_path / "a", **arguments)
    again = write_mix(tmp_path / "b", **arguments)
    other = write_mix(tmp_path / "c", **(arguments | change))
    assert _pictures(first.image_root) == _pictures(again.image_root)
    assert first.json_path.read_text() == again.json_path.read_text()
    assert not _pictures(first.image_root) & _pictures(other.image_root)


def test_answers_compare_without_case_and_punctuation() -> None:
    assert normalise_answer(" Red circle  C 3.") == "red circle c 3"


def _pictures(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*.jpg")}


def _drawn(code: str) -> tuple[np.ndarray, BoxXYXY]:
    image = Image.new("RGB", (120, 120), (90, 90, 90))
    box = BoxXYXY(10.0, 10.0, 110.0, 110.0)
    code_box = draw_object(image, box, "red", "square", code, 20.0, np.random.default_rng(0))
    return np.asarray(image), code_box
