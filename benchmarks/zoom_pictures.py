"""Pictures like those of docs/zoom-measurements.md.

``python -m benchmarks.zoom_pictures --out pictures`` draws them.

One scene of each layout with its RoI map and crop, side by side with the crop, pale outside the
region.
"""

from pathlib import Path

from PIL import Image

from benchmarks.zoom_scenes import load_pipeline, parser, probes
from sdrpn_core.report.overlay import fade_hidden, joined, shrink
from tasks.predict import draw_overlay

SIDE = 360


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
            answer.boxes[0].crop(fade_hidden(probe.image, answer.regions, probe.image.size)),
        ]
        path = given.out / f"zoom-{probe.layout}.png"
        joined([fitted(picture) for picture in pictures]).save(path, optimize=True)
        print(f"{path}: {probe.question.splitlines()[0]} -> {answer.text}")
    for layout in sorted({probe.layout for probe in asked} - drawn):
        print(f"{layout}: none was answered right with a crop; raise --num-scenes")


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


if __name__ == "__main__":
    main()
