"""Making labels, batched and one cell at a time: ``python -m benchmarks.label_throughput``.

Both get the same 24 x 24 maps and must give the same labels; labels per second of CPU time are
printed.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data_contracts.label_settings import LabelSettings
from sdrpn_core.pseudo_labels import make_pseudo_labels
from tests.oracles.labels_loop import labels_qwen

GRID = 24
IMAGE_SIZE = (640, 480)
REPEATS = 5

Maps = NDArray[np.float32]


def attention_maps(num_samples: int) -> tuple[Maps, Maps]:
    """Grounding and sink maps (N, 24, 24) with one object each and a few sinks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:GRID, :GRID]
    centre = rng.uniform(4, 20, (2, num_samples, 1, 1))
    distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    grounding = 0.1 * np.exp(-distance / 8) + 0.002 * rng.random((num_samples, GRID, GRID))
    sink = 0.05 * (rng.random((num_samples, GRID, GRID)) > 0.99)
    return grounding.astype(np.float32), sink.astype(np.float32)


def least_seconds(make: Callable[[], object]) -> float:
    """CPU time of the quickest of some runs, which other work on the machine delayed least."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        make()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000, help="labels made at once")
    parser.add_argument("--loop-samples", type=int, default=50, help="labels made by the loop")
    options = parser.parse_args()
    settings = LabelSettings.preset("reference-qwen")
    grounding, sink = attention_maps(options.samples)
    sizes = np.tile(IMAGE_SIZE, (options.samples, 1))
    few = min(options.loop_samples, options.samples)

    def loop() -> list[NDArray[np.int8]]:
        return [labels_qwen(grounding[i], sink[i], IMAGE_SIZE) for i in range(few)]

    batched = make_pseudo_labels(grounding, sink, settings, sizes).labels[:few]
    np.testing.assert_array_equal(batched, loop())
    batched_rate = options.samples / least_seconds(
        lambda: make_pseudo_labels(grounding, sink, settings, sizes)
    )
    loop_rate = few / least_seconds(loop)
    print(f"batched, {options.samples:,} at once: {batched_rate:,.0f} labels/s")
    print(f"cell by cell: {loop_rate:,.1f} labels/s")


if __name__ == "__main__":
    main()
