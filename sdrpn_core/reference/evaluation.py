"""Accuracy of the reference model on held-out scenes, through the full-resolution path.

Modes: ``base`` sees the image; the others also see a crop: ``oracle`` the true box with a margin,
``loose`` a window three times as wide, ``random`` a window of the oracle's size somewhere,
``wrong`` another object's box. ``readable`` sees one image whose print is readable.

    python -m sdrpn_core.reference.evaluation --model DIR --num-scenes 200
"""

import argparse
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.reference.model import prompt_for, reference_model_path
from sdrpn_core.reference.scenes import READABLE_PRINT, SMALL_PRINT, Scene, make_scene
from sdrpn_core.reference.views import draw_canvas, margin_box
from sdrpn_core.reference.vocabulary import normalise_answer

Mode = Literal["base", "oracle", "loose", "random", "wrong", "readable"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
HELD_OUT_SEED: Final = 500_000_000
ORACLE_MARGIN: Final = 0.1
_BATCH_SIZE: Final = 32


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One question as the model sees it."""

    canvases: tuple[Image.Image, ...]
    question: str
    answer: str
    layout: str


def held_out_probes(mode: Mode, num_scenes: int) -> list[Probe]:
    """One question per held-out scene; ``readable`` scenes have at least two objects."""
    probes: list[Probe] = []
    seed = HELD_OUT_SEED
    while len(probes) < num_scenes:
        scale = READABLE_PRINT if mode == "readable" else SMALL_PRINT
        scene, rng = make_scene(seed, print_scale=scale), np.random.default_rng([11, seed])
        seed += 1
        if len(scene.objects) >= 2:
            probes.append(_probe(scene, mode, rng))
    return probes


def predict(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, probes: Sequence[Probe]
) -> list[str]:
    """Greedy answers; probes of one call show the same number of images."""
    answers: list[str] = []
    for start in range(0, len(probes), _BATCH_SIZE):
        inputs = encode(processor, probes[start : start + _BATCH_SIZE])
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        fresh = tokens[:, inputs["input_ids"].shape[1] :]
        answers.extend(processor.batch_decode(fresh, skip_special_tokens=True))
    return answers


def encode(processor: LlavaProcessor, probes: Sequence[Probe]) -> Any:
    """Model inputs of a batch of probes."""
    return processor(
        images=[canvas for probe in probes for canvas in probe.canvases],
        text=[prompt_for(probe.question, len(probe.canvases)) for probe in probes],
        return_tensors="pt",
        padding=True,
    )


def accuracy(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    mode: Mode,
    num_scenes: int,
) -> dict[str, float]:
    """Share of exactly right answers, overall and by layout."""
    probes = held_out_probes(mode, num_scenes)
    right: dict[str, list[bool]] = defaultdict(list)
    for probe, said in zip(probes, predict(model, processor, probes), strict=True):
        is_right = normalise_answer(said) == normalise_answer(probe.answer)
        right["all"].append(is_right)
        right[probe.layout].append(is_right)
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def load_reference(
    path: Path | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model (float32, eval) and processor from a folder, by default the packaged one."""
    folder = path or reference_model_path()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), LlavaProcessor.from_pretrained(folder)


def _probe(scene: Scene, mode: Mode, rng: np.random.Generator) -> Probe:
    image = _through_jpeg(scene.image)
    turn = scene.turns[0]
    crop = _crop_for(mode, scene, rng)
    canvases = (
        (draw_canvas(image),) if crop is None else (draw_canvas(image), draw_canvas(image, crop))
    )
    return Probe(
        canvases=canvases,
        question=turn.question,
        answer=turn.answer,
        layout=scene.layout,
    )


def _crop_for(mode: Mode, scene: Scene, rng: np.random.Generator) -> BoxXYXY | None:
    target = margin_box(scene.turns[0].box, ORACLE_MARGIN)
    if mode in ("base", "readable"):
        return None
    if mode == "oracle":
        return target
    if mode == "loose":
        return margin_box(scene.turns[0].box, 1.0)
    if mode == "wrong":
        return margin_box(scene.turns[1].box, ORACLE_MARGIN)
    width, height = target.x1 - target.x0, target.y1 - target.y0
    x0 = float(rng.uniform(0, max(scene.image.width - width, 1)))
    y0 = float(rng.uniform(0, max(scene.image.height - height, 1)))
    return BoxXYXY(x0, y0, x0 + width, y0 + height)


def _through_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92)
    return Image.open(buffer).convert("RGB")


def main() -> None:
    """Print one JSON line of accuracies per mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    arguments = parser.parse_args()
    model, processor = load_reference(arguments.model)
    for mode in arguments.modes:
        figures = accuracy(model, processor, mode, arguments.num_scenes)
        print(json.dumps({"mode": mode, "n": arguments.num_scenes, **figures}), flush=True)


if __name__ == "__main__":
    main()
