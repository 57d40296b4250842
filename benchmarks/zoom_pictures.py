"""The pictures of docs/zoom.md: ``python -m benchmarks.zoom_pictures --out docs/images``.

One scene of each layout with its RoI map and crop, side by side with the crop as the model gets it.
"""

from pathlib import Path

from PIL import Image

from benchmarks.zoom_scenes import load_pipeline, parser, probes
from sdrpn_core.report.overlay import shrink
from tasks.predict import draw_overlay

SIDE = 360
GAP = 12


def main() -> None:
    options = parser(__doc__, num_scenes=8)
    options.add_argument("--out", type=Path, default=Path("docs/images"))
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
            answer.boxes[0].crop(probe.image),
        ]
        path = given.out / f"zoom-{probe.layout}.png"
        side_by_side([fitted(picture) for picture in pictures]).save(path, optimize=True)
        print(f"{path}: {probe.question.splitlines()[0]} -> {answer.text}")


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
