"""A training process to be killed: resume points and the result go to a folder.

A resume point is a sub-folder that appears complete, under its final name, or not at all. A process
that is to stop tells of the point and waits there for the kill: ``step-8`` is right after step 8,
``save-21`` when the resume point of step 21 is half written.
"""

import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from data_contracts.label_settings import RegionSettings
from data_contracts.training import TrainingConfig
from sdrpn_core.models.loading import load_adapter
from sdrpn_core.rpn.training import train_rpn
from tests.rpn_scenes import bright_patch_examples, loader
from tests.tiny_models import tiny_llava

CONFIG = TrainingConfig(
    num_epochs=4, batch_size=4, learning_rate=1e-3, validation_ratio=0.2, checkpoint_every=3
)


def train(model: Path, folder: Path, stop: str | None, answer: Connection) -> None:
    """Body of the process: train from the latest resume point in ``folder``, and stop or end."""
    torch.set_num_threads(1)
    examples, images = bright_patch_examples(40)
    adapter = load_adapter(tiny_llava(model), device="cpu")

    def reach(point: str) -> None:
        if point == stop:
            answer.send(point)
            threading.Event().wait()

    def report(entry: dict[str, Any]) -> None:
        if entry["kind"] == "step":
            (folder / "steps.txt").open("a").write(f"{entry['step']}\n")
            reach(f"step-{entry['step']}")

    def save(step: int, files: dict[str, bytes]) -> None:
        partial = folder / f"partial-{step}"
        partial.mkdir(exist_ok=True)
        for name, data in files.items():
            (partial / name).write_bytes(data)
            reach(f"save-{step}")
        partial.rename(folder / f"step-{step:04d}")

    points = sorted(folder.glob("step-*"))
    checkpoint = train_rpn(
        adapter,
        examples,
        loader(images),
        CONFIG,
        shape=adapter.profile.rpn,
        regions=RegionSettings.preset("default"),
        label_set="merge-labels/0123456789abcdef0123",
        micro_batch_size=4,
        cache_bytes=2**30,
        resume={file.name: file.read_bytes() for file in points[-1].iterdir()} if points else None,
        save_checkpoint=save,
        on_metrics=report,
    )
    for name, data in checkpoint.to_files().items():
        (folder / name).write_bytes(data)
