import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from sdrpn_core.geometry import BoxXYXY, GridBox, GridShape, Letterbox

SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
GRIDS = st.builds(GridShape, st.integers(1, 40), st.integers(1, 40))
LETTERBOXES = st.one_of(SIZES.map(Letterbox.square), SIZES.map(Letterbox.identity))


@st.composite
def boxes(draw, limit=4000.0):
    x0, x1 = sorted(draw(st.tuples(*[st.floats(-50, limit, width=32)] * 2)))
    y0, y1 = sorted(draw(st.tuples(*[st.floats(-50, limit, width=32)] * 2)))
    return BoxXYXY(x0, y0, x1, y1)


# --- boxes


def test_boxes_are_half_open():
    left, right = BoxXYXY(0, 0, 10, 10), BoxXYXY(10, 0, 20, 10)
    assert left.intersection(right).area == 0


@given(boxes(), boxes())
def test_coverage_is_a_share(first, second):
    assert 0 <= first.coverage_of(second) <= 1 + 1e-9


def test_half_of_a_box_inside_another_is_covered():
    crop, target = BoxXYXY(0, 0, 10, 10), BoxXYXY(5, 5, 15, 10)
    assert crop.coverage_of(target) == pytest.approx(0.5)


@given(boxes(), SIZES)
def test_pixel_box_is_never_empty_and_inside_the_image(box, image_size):
    """Defect 20: zero-area crops were resized to blank sub-images."""
    x0, y0, x1, y1 = box.to_pixels(image_size)
    assert 0 <= x0 < x1 <= image_size[0]
    assert 0 <= y0 < y1 <= image_size[1]


@given(boxes(limit=500.0))
def test_pixel_box_contains_the_box(box):
    x0, y0, x1, y1 = box.to_pixels((600, 600))
    assert x0 <= max(box.x0, 0) + 1e-5
    assert y0 <= max(box.y0, 0) + 1e-5
    assert x1 >= box.x1 - 1e-5
    assert y1 >= box.y1 - 1e-5


def test_pixel_box_ignores_rounding_errors():
    assert BoxXYXY(99.9999999, 0, 200.0000001, 10).to_pixels((300, 300)) == (100, 0, 200, 10)


# --- the letterbox


@pytest.mark.parametrize(
    ("image_size", "pad"), [((640, 427), (0, 106)), ((427, 640), (106, 0)), ((5, 5), (0, 0))]
)
def test_square_letterbox_centres_the_image(image_size, pad):
    letterbox = Letterbox.square(image_size)
    assert (letterbox.pad_left, letterbox.pad_top) == pad
    assert letterbox.canvas_width == letterbox.canvas_height == max(image_size)


@given(LETTERBOXES, boxes())
def test_box_round_trip_is_exact_inside_the_image(letterbox, box):
    """At most one pixel was asked for; nothing is lost but what lies outside the image."""
    width, height = letterbox.image_size
    inside = BoxXYXY(
        min(max(box.x0, 0.0), width),
        min(max(box.y0, 0.0), height),
        min(max(box.x1, 0.0), width),
        min(max(box.y1, 0.0), height),
    )
    assert letterbox.to_image(letterbox.to_canvas(box)) == pytest.approx(inside, abs=1e-3)


@given(LETTERBOXES, GRIDS, st.data())
def test_one_cell_maps_to_pixels_and_back(letterbox, grid, data):
    x = data.draw(st.integers(0, grid.width - 1))
    y = data.draw(st.integers(0, grid.height - 1))
    box = letterbox.cells_to_image(GridBox(x, y, x + 1, y + 1), grid)
    cell_width, cell_height = letterbox.cell_size(grid)
    covered = letterbox.coverage(box, grid)
    assert covered[y, x] * cell_width * cell_height == pytest.approx(box.area, rel=1e-3, abs=1e-3)
    covered[y, x] = 0
    assert covered.max(initial=0) < 1e-4


@given(LETTERBOXES, GRIDS, boxes())
def test_coverage_adds_up_to_the_area_on_the_canvas(letterbox, grid, box):
    canvas = BoxXYXY(0, 0, letterbox.canvas_width, letterbox.canvas_height)
    area = letterbox.to_canvas(box).intersection(canvas).area
    cell_width, cell_height = letterbox.cell_size(grid)
    covered = letterbox.coverage(box, grid)
    assert covered.sum() * cell_width * cell_height == pytest.approx(area, rel=1e-3, abs=1e-2)
    assert covered.min() >= 0
    assert covered.max() <= 1


def test_coverage_of_a_worked_example():
    letterbox = Letterbox.square((40, 20))
    covered = letterbox.coverage(BoxXYXY(5, 0, 20, 5), GridShape(4, 4))
    expected = np.zeros((4, 4))
    expected[1] = [0.25, 0.5, 0, 0]
    np.testing.assert_allclose(covered, expected)


@given(SIZES, GRIDS)
def test_transposed_image_has_transposed_content(image_size, grid):
    """Defect 18: two conversions took (w, h) and (h, w)."""
    content = Letterbox.square(image_size).content_mask(grid)
    turned = Letterbox.square(image_size[::-1]).content_mask(GridShape(grid.width, grid.height))
    np.testing.assert_array_equal(turned, content.T)


@given(SIZES, GRIDS)
def test_content_is_what_has_pixels(image_size, grid):
    letterbox = Letterbox.square(image_size)
    content = letterbox.content_mask(grid)
    assume(min(image_size) / max(image_size) * min(grid) > 1e-3)
    assert content.any()
    for y, x in np.ndindex(*grid):
        box = letterbox.cells_to_image(GridBox(x, y, x + 1, y + 1), grid)
        cell_width, cell_height = letterbox.cell_size(grid)
        assert content[y, x] == (box.area / (cell_width * cell_height) > 1.001e-4) or (
            box.area / (cell_width * cell_height) == pytest.approx(1e-4, rel=1e-2)
        )


def test_identity_letterbox_has_no_padding():
    letterbox = Letterbox.identity((640, 427))
    assert letterbox.content_mask(GridShape(16, 23)).all()
    assert letterbox.cells_to_image(GridBox(0, 0, 23, 16), GridShape(16, 23)) == (0, 0, 640, 427)


def test_paste_puts_the_image_where_the_letterbox_says():
    letterbox = Letterbox.square((8, 4))
    canvas = letterbox.paste(Image.new("RGB", (8, 4), (255, 0, 0)), (0, 0, 9), (8, 8))
    pixels = np.asarray(canvas)
    assert (pixels[2:6] == (255, 0, 0)).all()
    assert (pixels[[0, 1, 6, 7]] == (0, 0, 9)).all()


@pytest.mark.parametrize("size", [(5, 3), (40, 30)], ids=["smaller", "as-it-is"])
def test_paste_draws_a_picture_without_padding_pixel_by_pixel(size):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    canvas = Letterbox.identity((40, 30)).paste(image, (0, 0, 9), size)
    assert canvas.tobytes() == image.resize(size, Image.Resampling.BICUBIC).tobytes()
    canvas.paste((0, 0, 0), (0, 0, *size))
    assert (np.asarray(image) == pixels).all()


def test_paste_refuses_another_image():
    with pytest.raises(ValueError, match=r"letterbox is for \(8, 4\) pixels, image has \(4, 8\)"):
        Letterbox.square((8, 4)).paste(Image.new("RGB", (4, 8)), (0, 0, 0), (8, 8))


def test_only_extreme_shapes_are_padded_by_a_limited_letterbox() -> None:
    assert Letterbox.limited((60, 40), 100.0) == Letterbox.identity((60, 40))
    assert Letterbox.limited((100, 1), 100.0) == Letterbox.identity((100, 1))
    thin = Letterbox.limited((2, 1000), 100.0)
    assert (thin.canvas_width, thin.canvas_height, thin.pad_left, thin.pad_top) == (10, 1000, 4, 0)
    wide = Letterbox.limited((1001, 3), 100.0)
    assert (wide.canvas_width, wide.canvas_height, wide.pad_left, wide.pad_top) == (1001, 11, 0, 4)
