"""How deep must an RPN be, and where must it branch off? ``python -m benchmarks.rpn_shapes``.

Trains one RPN of each shape on the labels of the built-in model, in a store of its own (``predict``
takes the newest RPN of a store; what is there already is not made again), and answers held-out
scenes with each: accuracy by layout, and CPU time relative to one pass at the same batch size (set
OMP_NUM_THREADS=1). Each answers as the run's configuration says, and as the paper does, with crops
of full size beside the image in all layers.

    OMP_NUM_THREADS=1 python -m benchmarks.rpn_shapes --num-scenes 120 --shapes 4x3 2x2
"""

import argparse
import time
from collections.abc import Sequence
from copy import copy
from functools import partial

import numpy as np

from benchmarks.timing import paired_parts, paired_ratio
from benchmarks.zoom_scenes import Probe, papers_way, parser, print_table, probes
from benchmarks.zoom_throughput import ONE_PASS, Run, answered, one_pass, parts
from data_contracts.configs import ModelConfig
from data_contracts.enums import Stage
from data_contracts.profiles import RpnShape
from data_contracts.runtime import RuntimeConfig
from flows.config_files import load_config
from flows.execution import LocalExecution
from flows.wiring import Pipeline
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.reference.scenes import LAYOUTS
from tasks.models import profile_of
from tasks.rpn_files import stored_checkpoint

DEFAULT_SHAPES = ("4x3", "3x2", "2x2", "2x1", "1x3", "1x2", "1x1")
ROUNDS = 5
NUM_TIMED = 96
"""Questions that are timed, in whole batches."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, num_scenes=30)
    options.set_defaults(store="artifacts-shapes")
    options.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        default=[_shape(text) for text in DEFAULT_SHAPES],
        metavar="BxR",
        help="branch layer and depth",
    )
    given = options.parse_args(arguments)
    if given.rpn is not None:
        options.error("RPNs are trained here: leave out --rpn")
    asked = probes(given.num_scenes)
    zooms = {}
    for shape in given.shapes:
        name = f"{shape.branch_layer} x {shape.depth}"
        zooms[name, "as configured"] = zoom = trained(shape, given)
        zooms[name, "paper's"] = paper = copy(zoom)
        paper.regions = papers_way(zoom.regions)
    report(zooms, asked, given.batch_size, given.max_new_tokens)


def trained(shape: RpnShape, given: argparse.Namespace) -> ZoomPipeline:
    """The built-in model with an RPN of this shape."""
    config = load_config("reference")
    profile = profile_of(config.model)
    wanted = profile.rpn.with_changes(branch_layer=shape.branch_layer, depth=shape.depth)
    model = ModelConfig(profile=profile.model_copy(update={"rpn": wanted}))
    execution = LocalExecution(RuntimeConfig(store=given.store, device=given.device))
    pipeline = Pipeline(config.model_copy(update={"model": model}), execution)
    pipeline.make(Stage.TRAIN_RPN)
    checkpoint = stored_checkpoint(execution.store, pipeline.rpn())
    return ZoomPipeline.from_checkpoint(checkpoint, device=given.device)


def report(
    zooms: dict[tuple[str, str], ZoomPipeline],
    asked: Sequence[Probe],
    batch_size: int,
    max_new_tokens: int,
) -> None:
    """Print accuracy and speed of each."""
    images, questions = [probe.image for probe in asked], [probe.question for probe in asked]
    timed = min(NUM_TIMED, len(asked)) // batch_size * batch_size or len(asked)
    batches = parts((images[:timed], questions[:timed]), batch_size)
    length = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    runs: dict[str, Run] = {
        " ".join(name): partial(answered, zoom, **length) for name, zoom in zooms.items()
    }
    runs[ONE_PASS] = partial(one_pass, next(iter(zooms.values())), **length)
    seconds = paired_parts(runs, batches, ROUNDS, time.process_time)
    layouts = np.array([probe.layout for probe in asked])
    rows = []
    for name, zoom in zooms.items():
        answers = zoom.answer(images, questions, **length)
        right = np.array([p.is_right(a.text) for p, a in zip(asked, answers, strict=True)])
        means = [right[layouts == layout].mean() for layout in LAYOUTS]
        rows.append(
            (
                *name,
                *(f"{mean:.3f}" for mean in (*means, np.mean(means))),
                paired_ratio(seconds[ONE_PASS], seconds[" ".join(name)]),
            )
        )
    print_table(("branch x depth", "zoom", *LAYOUTS, "mean", f"speed, batch {batch_size}"), rows)


def _shape(text: str) -> RpnShape:
    branch_layer, depth = text.split("x")
    return RpnShape(branch_layer=int(branch_layer), depth=int(depth))


if __name__ == "__main__":
    main()
