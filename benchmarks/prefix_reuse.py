"""What prefix reuse saves: ``python -m benchmarks.prefix_reuse``.

Times one-pass answering, two-stage answering with the image's keys, values and hidden states
reused, and two-stage answering recomputed from scratch as the reference does.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image

from benchmarks.random_llava import random_llava
from benchmarks.timing import paired_seconds, print_ratios
from sdrpn_core.generation.greedy import answer_plain, greedy_decode
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.rpn.network import RegionProposalNetwork
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.second_stage import second_stage_prefill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    adapter = random_llava()
    rpn = RegionProposalNetwork.from_adapter(adapter, adapter.profile.rpn).eval()
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8))
        for _ in range(options.batch_size)
    ]
    crops = [BoxXYXY(40, 40, 160, 160).crop(image) for image in images]
    questions = ["what is the small red word ?"] * len(images)

    def one_pass() -> object:
        rows = [[image] for image in adapter.encode_images(images)]
        return answer_plain(adapter, questions, rows, max_new_tokens=options.max_new_tokens)

    def reused() -> object:
        first = first_stage(adapter, rpn, adapter.encode_images(images), questions)
        rows = [[crop] for crop in adapter.encode_images(crops)]
        return greedy_decode(
            adapter, second_stage_prefill(adapter, first, rows), options.max_new_tokens
        )

    def recomputed() -> object:
        features = adapter.encode_images(images)
        first_stage(adapter, rpn, features, questions)
        again = adapter.encode_images(images)
        rows = [[i, c] for i, c in zip(again, adapter.encode_images(crops), strict=True)]
        return answer_plain(adapter, questions, rows, max_new_tokens=options.max_new_tokens)

    with torch.inference_mode():
        seconds = paired_seconds(
            {
                "one pass": one_pass,
                "two stages, prefix reused": reused,
                "two stages, recomputed": recomputed,
            },
            options.rounds,
            time.process_time,
        )
    print_ratios(seconds, "one pass")


if __name__ == "__main__":
    main()
