"""Memory over many steps: ``python -m benchmarks.long_runs [--model qwen3-vl-4b] [--steps 100]``.

Extraction, training and zoom inference run one after another on a random model of the named one's
shape, and what is held after every step is measured: on a GPU its allocated memory, on a CPU the
process's. A loop that keeps something from step to step shows as growth. Whole models are for a
GPU, in bfloat16; ``--size tiny`` runs the same on a CPU in seconds.
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.random_llava import SEVEN_B, TINY, fast_dtype, random_llava, random_zoom
from benchmarks.random_qwen import QWEN2_5_VL_7B, QWEN3_VL_4B, random_qwen
from data_contracts.enums import QuestionKind
from data_contracts.label_settings import RegionSettings
from data_contracts.training import TrainingConfig
from sdrpn_core.extraction.generated_answers import Request, extract_attention
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import resolve_device
from sdrpn_core.rpn.data import TrainingExample
from sdrpn_core.rpn.training import train_rpn

QUESTION = "what is the small red word ?"
GRID = 24
WARM_UP = 0.2
"""Share of the steps in which buffers and caches of libraries still fill."""

LLAVA = "llava-1.5-7b"
QWENS = {qwen.profile: qwen for qwen in (QWEN2_5_VL_7B, QWEN3_VL_4B)}
MODELS = (LLAVA, *QWENS)

Run = Callable[[ModelAdapter, argparse.Namespace, Callable[[], None]], None]


def extraction(
    adapter: ModelAdapter, given: argparse.Namespace, after_step: Callable[[], None]
) -> None:
    for step in range(given.steps):
        batch = [Request(i, QUESTION, QuestionKind.NATURAL) for i in images(step, given.batch_size)]
        extract_attention(adapter, batch, max_new_tokens=given.max_new_tokens)
        after_step()


def training(
    adapter: ModelAdapter, given: argparse.Namespace, after_step: Callable[[], None]
) -> None:
    labels = np.zeros((GRID, GRID), np.int8)
    labels[8:12, 8:12] = 1
    # A tenth is held out for validation.
    number = -(-given.steps * given.batch_size * 10 // 9)
    examples = [
        TrainingExample(f"{index:020x}", f"{index}", f"{index}", QUESTION, labels)
        for index in range(number)
    ]
    train_rpn(
        adapter,
        examples,
        lambda example: images(int(example.image_uri), 1)[0],
        TrainingConfig(batch_size=given.batch_size),
        shape=adapter.profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/" + "0" * 20,
        micro_batch_size=given.batch_size,
        cache_bytes=0,
        on_metrics=lambda entry: after_step() if entry["kind"] == "step" else None,
    )


def zoom(adapter: ModelAdapter, given: argparse.Namespace, after_step: Callable[[], None]) -> None:
    pipeline = random_zoom(adapter)
    for step in range(given.steps):
        pipeline.answer(
            images(step, given.batch_size),
            [QUESTION] * given.batch_size,
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
        )
        after_step()


def images(seed: int, count: int) -> list[Image.Image]:
    """Noise of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(200, 800, (count, 2))
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def held_mib(device: torch.device) -> float:
    """What is in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib(device: torch.device) -> float:
    """Most that was in use; on a CPU since the process started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_growth(name: str, run: Run, adapter: ModelAdapter, given: argparse.Namespace) -> None:
    device, held = adapter.device, []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    run(adapter, given, lambda: held.append(held_mib(device)))
    seconds = (time.perf_counter() - start) / len(held)
    settled = held[int(WARM_UP * len(held)) :]
    grown = settled[-1] - settled[0]
    print(
        f"{name:<12}{len(held):4d} steps {seconds:7.3f} s each   "
        f"held {settled[0]:8.0f} -> {settled[-1]:8.0f} MiB ({grown:+.1f})   "
        f"peak {peak_mib(device):8.0f} MiB"
    )


def random_model(name: str, *, is_tiny: bool, device: torch.device) -> ModelAdapter:
    """A random model of one of ``MODELS``' shapes; bfloat16 on a GPU."""
    dtype = fast_dtype(device)
    if name in QWENS:
        return random_qwen(QWENS[name], is_tiny=is_tiny, device=str(device), dtype=dtype)
    return random_llava(size=TINY if is_tiny else SEVEN_B, device=str(device), dtype=dtype)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default=LLAVA)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    device = resolve_device(given.device)
    adapter = random_model(given.model, is_tiny=given.size == "tiny", device=device)
    print(
        f"{given.model} ({given.size}) on {device} in {adapter.dtype}, batch {given.batch_size}, "
        f"held {held_mib(device):.0f} MiB"
    )
    for name, run in {"extraction": extraction, "training": training, "zoom": zoom}.items():
        print_growth(name, run, adapter, given)


if __name__ == "__main__":
    main()
