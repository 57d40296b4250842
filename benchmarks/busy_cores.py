"""How training on a CPU fares beside other work: ``python -m benchmarks.busy_cores``.

Trains layers like those of the built-in model's RPN in processes of their own, by turns with the
waiting of GNU OpenMP as it comes and as the command line sets it, on quiet cores and with a busy
loop for each core beside them. Prints steps per second, medians over rounds, relative to the first.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from benchmarks.zoom_scenes import print_table
from flows import SPIN_COUNT

_TRAIN = """
import sys, time, torch
layer = torch.nn.TransformerEncoderLayer(128, 4, 384, batch_first=True)
network = torch.nn.TransformerEncoder(layer, 3)
hidden, optimizer = torch.randn(16, 170, 128), torch.optim.AdamW(network.parameters())
start, steps = 0.0, -3
while steps < 1 or time.perf_counter() < start + float(sys.argv[1]):
    if steps == 0:
        start = time.perf_counter()
    optimizer.zero_grad()
    network(hidden).square().mean().backward()
    optimizer.step()
    steps += 1
print(steps / (time.perf_counter() - start))
"""
_LOOP = "while True: pass"
WAITING: dict[str, dict[str, str]] = {
    "as it comes": {},
    "as the command line sets it": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5.0, help="of each training")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    speeds: dict[tuple[bool, str], list[float]] = {}
    for _ in range(given.rounds):
        for is_busy in (False, True):
            for name, variables in WAITING.items():
                with _others(is_busy):
                    speed = _steps_per_second(variables, given.seconds)
                speeds.setdefault((is_busy, name), []).append(speed)
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    first = next(iter(medians.values()))
    rows = [
        (name, *(f"{medians[is_busy, name] / first:.2f}x" for is_busy in (False, True)))
        for name in WAITING
    ]
    print_table(("threads wait", "quiet", "busy"), rows)


def _steps_per_second(variables: Mapping[str, str], seconds: float) -> float:
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"}
    own = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", _TRAIN, str(seconds)]
    done = subprocess.run(
        command, env={**own, **variables}, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


@contextmanager
def _others(are_busy: bool) -> Iterator[None]:
    count = len(os.sched_getaffinity(0)) if are_busy else 0
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
