"""Pictures like those of docs/zoom.md: ``python -m benchmarks.zoom_pictures --out pictures``.

One scene of each layout with its RoI map and crop, side by side with the crop: what the decoder
does not get of it is pale.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.zoom_scenes import load_pipeline, parser, probes
from sdrpn_core.crop_masks import masked_crops
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.report.overlay import shrink
from sdrpn_core.zoom_answers import ZoomAnswer
from tasks.predict import draw_overlay

SIDE = 360
GAP = 12
PALENESS = 0.6


def main() -> None:
    options = parser(__doc__, num_scenes=8)
    options.add_argument("--out", type=Path, default=Path("pictures"), help="folder to write")
    given = options.parse_args()
    pipeline = load_pipeline(given)
    given.out.mkdir(parents=True, exist_ok=True)
    asked = probes(given.num_scenes)
    answers = pipeline.answer([p.image for p in asked], [p.question for p in asked])
    drawn: set[str] = set()
    for probe, answer in zip(asked, answers, strict=True):
        if probe.layout in drawn or not answer.used_crop or not probe.is_right(answer.text):
            continue
        drawn.add(probe.layout)
        letterbox = pipeline.adapter.letterbox(probe.image.size)
        pictures = [
            draw_overlay(probe.image, answer, letterbox),
            shown_crop(pipeline, probe.image, answer),
        ]
        path = given.out / f"zoom-{probe.layout}.png"
        side_by_side([fitted(picture) for picture in pictures]).save(path, optimize=True)
        print(f"{path}: {probe.question.splitlines()[0]} -> {answer.text}")
    for layout in sorted({probe.layout for probe in asked} - drawn):
        print(f"{layout}: none was answered right with a crop; raise --num-scenes")


def shown_crop(pipeline: ZoomPipeline, image: Image.Image, answer: ZoomAnswer) -> Image.Image:
    """The first crop, pale where its tokens are not shown."""
    (features,) = pipeline.adapter.encode_images([image])
    region = pipeline.zoom(answer.roi_map, features).regions[0]
    ((encoded,),) = masked_crops(
        pipeline.adapter, [image], [features], [[region]], pipeline.crop_tokens
    )
    crop, shown, letterbox = region.box.crop(image), encoded.shown, encoded.letterbox
    if shown is None:
        return crop
    canvas = Image.fromarray(255 * shown.astype(np.uint8)).resize(
        (letterbox.canvas_width, letterbox.canvas_height), Image.Resampling.NEAREST
    )
    corner = (letterbox.pad_left, letterbox.pad_top)
    mask = canvas.crop((*corner, corner[0] + crop.width, corner[1] + crop.height))
    pale = Image.blend(crop, Image.new("RGB", crop.size, "white"), PALENESS)
    return Image.composite(crop, pale, mask)


def fitted(image: Image.Image) -> Image.Image:
    """The picture in a white square of ``SIDE`` pixels."""
    scale = SIDE / max(image.size)
    small = (
        shrink(image, SIDE)
        if scale < 1
        else image.resize((round(image.width * scale), round(image.height * scale)))
    )
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Equal squares in a row."""
    row = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, picture in enumerate(pictures):
        row.paste(picture, (place * (SIDE + GAP), 0))
    return row


if __name__ == "__main__":
    main()
