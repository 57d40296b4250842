"""Which heads of the reference model look at the object they answer about, and is there a sink.

    python -m sdrpn_core.reference.grounding_probe --model DIR --num-scenes 60

Per head, over small-print scenes: ``inside``, share of the attention paid to the image that falls
on the true box's cells; ``precision``, share of the cells above 0.2 of the maximum that lie in the
box; ``image``, attention paid to the image in all. Rows are the
answer's four words, as the model reads them back.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdrpn_core.geometry import Letterbox
from sdrpn_core.reference.evaluation import HELD_OUT_SEED, load_reference
from sdrpn_core.reference.model import prompt_for
from sdrpn_core.reference.scenes import make_scene
from sdrpn_core.reference.views import GRID, draw_canvas
from sdrpn_core.reference.vocabulary import TOKEN_IDS


def answer_attention(model: Any, processor: Any, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Attention (layers, heads, h, w) of the answer's rows, and true-box coverage (h, w)."""
    scene = make_scene(seed)
    turn = scene.turns[0]
    prompt = prompt_for(turn.question)
    inputs = processor(
        images=draw_canvas(scene.image), text=f"{prompt} {turn.answer}", return_tensors="pt"
    )
    with torch.inference_mode():
        attentions = model(**inputs, output_attentions=True).attentions
    num_answer = len(turn.answer.split())
    is_image = inputs["input_ids"][0] == TOKEN_IDS["<image>"]
    maps = torch.stack([layer[0, :, -num_answer:] for layer in attentions])
    maps = maps[..., is_image].mean(2).view(*maps.shape[:2], *GRID)
    coverage = Letterbox.square(scene.image.size).coverage(turn.box, GRID)
    return maps.float().numpy(), coverage


def probe(model: Any, processor: Any, num_scenes: int) -> dict[str, Any]:
    """Figures of every head, the best heads' joint precision, and the most attended background."""
    samples = [
        answer_attention(model, processor, HELD_OUT_SEED + 10_000 + index)
        for index in range(num_scenes)
    ]
    maps = np.stack([sample[0] for sample in samples])
    covered = np.stack([sample[1] for sample in samples])
    total = maps.sum((-1, -2)) + 1e-9
    inside = (maps * covered[:, None, None]).sum((-1, -2)) / total
    precision = np.stack([_precision(m, c) for m, c in zip(maps, covered, strict=True)])
    score = inside.mean(0) * total.mean(0)
    order = np.argsort(-score.ravel())
    heads = [(int(i) // maps.shape[2], int(i) % maps.shape[2]) for i in order]
    joint = np.mean([maps[:, layer, head] for layer, head in heads[:4]], axis=0)[:, None, None]
    background = (maps / total[..., None, None]) * (covered[:, None, None] < 0.05)
    return {
        "heads": [
            {
                "layer": layer,
                "head": head,
                "inside": round(float(inside[:, layer, head].mean()), 3),
                "precision": round(float(precision[:, layer, head].mean()), 3),
                "image": round(float(total[:, layer, head].mean()), 3),
            }
            for layer, head in heads[:10]
        ],
        "precision_of_best_four": round(
            float(np.mean([_precision(m, c)[0, 0] for m, c in zip(joint, covered, strict=True)])), 3
        ),
        "most_attended_background_cell": [
            round(float(layer.mean(0).mean(0).max()), 3) for layer in background.swapaxes(0, 1)
        ],
    }


def _precision(maps_LHhw: NDArray[Any], covered_hw: NDArray[Any]) -> NDArray[Any]:
    high = maps_LHhw > 0.2 * maps_LHhw.max((-1, -2), keepdims=True)
    precision: NDArray[Any] = (high & (covered_hw > 0.05)).sum((-1, -2)) / high.sum((-1, -2))
    return precision


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--num-scenes", type=int, default=60)
    arguments = parser.parse_args()
    model, processor = load_reference(arguments.model)
    model.set_attn_implementation("eager")
    figures = probe(model, processor, arguments.num_scenes)
    for head in figures.pop("heads"):
        print(json.dumps(head))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
