"""Label making: the batched implementation against one cell at a time, in one process.

Run from the repository root: ``python -m benchmarks.label_throughput [--samples 2000]``. Both get
the same 24 x 24 maps and must give the same labels; the ratio of samples per second is printed.
"""

import argparse
import json
import time

import numpy as np

from data_contracts.label_settings import LabelSettings
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tests.oracles.labels_loop import labels_qwen

GRID = 24
IMAGE_SIZE = (640, 480)
REPEATS = 5


def attention_maps(num_samples):
    """Grounding and sink maps (N, 24, 24) with one object each and a few sinks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:GRID, :GRID]
    centre = rng.uniform(4, 20, (2, num_samples, 1, 1))
    distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    grounding = 0.1 * np.exp(-distance / 8) + 0.002 * rng.random((num_samples, GRID, GRID))
    sink = 0.05 * (rng.random((num_samples, GRID, GRID)) > 0.99)
    return grounding.astype(np.float32), sink.astype(np.float32)


def best_seconds(function, repeats):
    """Shortest of some runs, so that other work on the machine counts least."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000, help="batch size")
    parser.add_argument("--loop-samples", type=int, default=50, help="samples for the loop")
    options = parser.parse_args()
    settings = LabelSettings.preset("reference-qwen")
    grounding, sink = attention_maps(options.samples)
    sizes = np.tile(IMAGE_SIZE, (options.samples, 1))
    few = min(options.loop_samples, options.samples)

    batched = make_pseudo_labels(grounding, sink, settings, sizes).labels[:few]
    looped = [labels_qwen(grounding[i], sink[i], IMAGE_SIZE) for i in range(few)]
    np.testing.assert_array_equal(batched, looped)

    batch_rate = options.samples / best_seconds(
        lambda: make_pseudo_labels(grounding, sink, settings, sizes), REPEATS
    )
    loop_rate = few / best_seconds(
        lambda: [labels_qwen(grounding[i], sink[i], IMAGE_SIZE) for i in range(few)], 2
    )
    print(
        json.dumps(
            {
                "samples": options.samples,
                "batched_samples_per_second": round(batch_rate),
                "loop_samples_per_second": round(loop_rate, 1),
                "ratio": round(batch_rate / loop_rate, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
