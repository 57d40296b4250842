"""Odd images are answered about by every family, with boxes on the upright picture."""

import pytest

from sdrpn_core.images import decode_image
from tests.families.conftest import Loaded
from tests.odd_images import ANSWERED
from tests.zoom_checks import check_answer, random_pipeline


@pytest.mark.parametrize("ratio", [None, 1.0], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ANSWERED)
def test_odd_images_are_answered_about_as_people_see_them(
    loaded: Loaded, name: str, ratio: float | None
) -> None:
    make, size = ANSWERED[name]
    image = decode_image(make())
    assert image.size == size
    adapter = loaded.adapter
    masks_tower = ratio is not None and adapter.masks_tower
    pipeline = random_pipeline(adapter, mask_threshold_ratio=ratio, mask_tower=masks_tower)
    (answer,) = pipeline.answer([image], ["what is it ?"], max_new_tokens=3)
    check_answer(answer, size)
