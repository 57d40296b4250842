"""Each rule of the gate, on maps made for it."""

import numpy as np
import pytest

from data_contracts.enums import ZoomDecision
from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import BoxXYXY, Letterbox
from sdrpn_core.regions import Region
from sdrpn_core.zoom.gate import decide_zoom

PLAIN = RegionSettings(
    blur_sigma=None, threshold_is_peak_ratio=True, min_box_side=1, max_box_area_ratio=0.5
)
SQUARE = Letterbox.square((100, 100))


def spot(peak: float, background: float = 0.0) -> np.ndarray:
    """(10, 10) map with one strong cell."""
    roi_map = np.full((10, 10), background, dtype=np.float32)
    roi_map[4, 6] = peak
    return roi_map


def decided(roi_map: np.ndarray, threshold: float = 0.5, **settings: object) -> ZoomDecision:
    zoom = decide_zoom(roi_map, threshold, PLAIN.model_copy(update=settings), SQUARE, (50, 50))
    assert bool(zoom.regions) == (zoom.decision is ZoomDecision.ZOOMED)
    return zoom.decision


def test_a_region_is_zoomed_into_where_it_is():
    zoom = decide_zoom(spot(0.9), 0.5, PLAIN, SQUARE, (50, 50))
    assert zoom.regions == (Region(BoxXYXY(60.0, 40.0, 70.0, 50.0)),)


@pytest.mark.parametrize(
    ("peak", "decision"),
    [(0.19, ZoomDecision.NO_CONFIDENT_REGION), (0.21, ZoomDecision.ZOOMED)],
)
def test_a_peak_must_be_probable(peak: float, decision: ZoomDecision):
    assert decided(spot(peak), min_peak_probability=0.2) is decision
    assert decided(spot(peak)) is ZoomDecision.ZOOMED


@pytest.mark.parametrize(
    ("peak", "decision"),
    [(0.005, ZoomDecision.NO_CONFIDENT_REGION), (0.05, ZoomDecision.ZOOMED)],
)
def test_by_default_a_faint_peak_is_followed(peak: float, decision: ZoomDecision):
    """Below 0.1 it was not, which cost answers and saved nothing."""
    default = RegionSettings.preset("default").model_copy(update={"blur_sigma": None})
    assert decide_zoom(spot(peak), 0.5, default, SQUARE, (50, 50)).decision is decision


@pytest.mark.parametrize(
    ("background", "decision"),
    [(0.32, ZoomDecision.NO_CONFIDENT_REGION), (0.28, ZoomDecision.ZOOMED)],
)
def test_a_peak_must_stand_out_from_the_mean(background: float, decision: ZoomDecision):
    """Mean of the map is 0.99 times the background plus 0.009."""
    assert decided(spot(0.9, background), min_peak_to_mean=2.8) is decision
    assert decided(spot(0.9, background)) is ZoomDecision.ZOOMED


@pytest.mark.parametrize(
    ("num_rows", "decision"), [(5, ZoomDecision.ZOOMED), (6, ZoomDecision.REGION_TOO_LARGE)]
)
def test_a_region_must_be_smaller_than_half_of_the_image(num_rows: int, decision: ZoomDecision):
    roi_map = np.zeros((10, 10), dtype=np.float32)
    roi_map[:num_rows] = 1.0
    assert decided(roi_map) is decision
    assert decided(roi_map, max_box_area_ratio=None) is ZoomDecision.ZOOMED


@pytest.mark.parametrize(
    ("seen", "decision"),
    [((99, 100), ZoomDecision.ZOOMED), ((100, 100), ZoomDecision.IMAGE_FULLY_SEEN)],
)
def test_the_image_must_have_more_pixels_than_were_seen(
    seen: tuple[int, int], decision: ZoomDecision
):
    settings = PLAIN.model_copy(update={"max_seen_ratio": 1.0})
    assert decide_zoom(spot(0.9), 0.5, settings, SQUARE, seen).decision is decision
    assert decide_zoom(spot(0.9), 0.5, PLAIN, SQUARE, seen).decision is ZoomDecision.ZOOMED
    assert decide_zoom(spot(0.9), 0.5, settings, SQUARE).decision is ZoomDecision.ZOOMED


def test_padding_neither_hides_a_peak_nor_makes_one():
    """A wide image: only rows 3 to 6 of the grid show it."""
    wide = Letterbox.square((100, 40))
    roi_map = spot(0.3)
    roi_map[0, 0] = 0.9
    assert decide_zoom(roi_map, 0.5, PLAIN, wide).regions == (
        Region(BoxXYXY(60.0, 10.0, 70.0, 20.0)),
    )
    strict = PLAIN.model_copy(update={"min_peak_probability": 0.5})
    assert decide_zoom(roi_map, 0.5, strict, wide).decision is ZoomDecision.NO_CONFIDENT_REGION


def test_an_empty_map_has_no_region():
    assert decided(np.zeros((10, 10), np.float32)) is ZoomDecision.NO_CONFIDENT_REGION


@pytest.mark.parametrize(
    ("size", "decision"),
    [
        ((900, 220), ZoomDecision.ZOOMED),
        ((640, 300), ZoomDecision.ZOOMED),
        ((450, 440), ZoomDecision.IMAGE_FULLY_SEEN),
        ((448, 448), ZoomDecision.IMAGE_FULLY_SEEN),
        ((500, 448), ZoomDecision.ZOOMED),
    ],
)
def test_an_image_that_is_squeezed_is_not_seen_whole(size: tuple[int, int], decision: ZoomDecision):
    """Stretched to a square of more pixels, long images of fine print were not looked at again."""
    settings = PLAIN.model_copy(update={"max_seen_ratio": 1.0})
    stretched = Letterbox.limited(size, 12.0)
    found = decide_zoom(spot(0.9), 0.5, settings, stretched, (448, 448))
    assert found.decision is decision
    turned = Letterbox.limited(size[::-1], 12.0)
    assert decide_zoom(spot(0.9), 0.5, settings, turned, (448, 448)).decision is decision
