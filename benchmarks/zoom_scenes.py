"""What the zoom benchmarks share: a trained RPN, and held-out scenes with known answers."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from data_contracts.label_settings import RegionSettings
from sdrpn_core.geometry import BoxXYXY
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.reference.scenes import LAYOUTS, make_scene
from sdrpn_core.reference.vocabulary import SHORT_ANSWER_SUFFIX, normalise_answer

FIRST_SEED = 820_000_000
"""Far from the seeds of training, calibration and evaluation."""


@dataclass(frozen=True)
class Probe:
    """One question about one scene."""

    image: Image.Image
    question: str
    answer: str
    layout: str
    true_box: BoxXYXY

    def is_right(self, text: str) -> bool:
        """Whether an answer is exactly the scene's."""
        return normalise_answer(text) == normalise_answer(self.answer)


def parser(description: str | None, num_scenes: int) -> argparse.ArgumentParser:
    """Options of every zoom benchmark on the reference model."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--store", default="artifacts", help="store that holds the RPN")
    options.add_argument("--rpn", help="folder or train-rpn/<id>; the store's newest if not given")
    options.add_argument("--num-scenes", type=int, default=num_scenes, help="scenes per layout")
    options.add_argument("--batch-size", type=int, default=16, help="questions at once")
    options.add_argument("--max-new-tokens", type=int, default=16, help="most of an answer")
    options.add_argument("--device", default="auto", help="torch device, or auto")
    return options


def load_pipeline(options: argparse.Namespace) -> ZoomPipeline:
    """The reference model with the RPN that was asked for."""
    # Here, so that models of random weights are measured where no store can be read.
    from tasks.artifacts.store import ArtifactStore
    from tasks.rpn_files import find_checkpoint

    checkpoint = find_checkpoint(ArtifactStore(options.store), options.rpn)
    return ZoomPipeline.from_checkpoint(checkpoint, device=options.device)


def probes(num_per_layout: int, *, first_scene: int = 0) -> list[Probe]:
    """One question per scene, equally many of each layout, by turns."""
    found = []
    for index in range(first_scene, first_scene + num_per_layout):
        for layout in LAYOUTS:
            scene = make_scene(FIRST_SEED + index, layout=layout)  # type: ignore[arg-type]
            turn = scene.turns[0]
            question = turn.question + SHORT_ANSWER_SUFFIX
            found.append(Probe(scene.image, question, turn.answer, layout, turn.box))
    return found


def papers_way(regions: RegionSettings) -> RegionSettings:
    """Crops of full size beside the image in all layers; the tower sees all of them."""
    return regions.with_changes(crop_tokens=None, mask_tower=False, withdraw_image=False)


def shrunk(probe: Probe, side: int) -> Probe:
    """The same question about a picture whose longer side is ``side`` pixels."""
    scale = side / max(probe.image.size)
    width, height = (max(round(length * scale), 1) for length in probe.image.size)
    return Probe(
        image=probe.image.resize((width, height), Image.Resampling.BICUBIC),
        question=probe.question,
        answer=probe.answer,
        layout=f"{probe.layout}, {side} px",
        true_box=probe.true_box.scaled(scale, scale),
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A markdown table."""
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
