"""Two stages against one pass at the same batch size: ``python -m benchmarks.zoom_throughput``.

On the reference model with a trained RPN, or ``--random`` for a LLaVA of random weights that needs
none: of medium size, or with ``--size 7b`` as large as LLaVA-1.5-7B, on a GPU in bfloat16. One pass
is measured twice: by this project's own code, and by the stock processor and ``generate``, which is
what people run today. Prints the ratios, where the time goes, and what several questions about one
image cost, at each of ``--batch-sizes``: of what the RPN was made for and of the paper's way,
with masked crops of full size beside the image; ``--crop-tokens`` lists further budgets,
``--withdraw`` tries every budget with the image withdrawn as well, ``--whole-boxes`` all with crops
that are not masked; ``--mask-tower`` leaves what masked crops hide out of the tower in all of them.
``--shown`` is the share of their boxes that the regions planted beside random weights fill, before
their margin. On a CPU, ratios are of CPU time, which a busy machine hardly distorts (with
OMP_NUM_THREADS=1); shares of phases are wall-clock time.

    python -m benchmarks.zoom_throughput --random --size 7b --device cuda --num-scenes 11 \
        --batch-sizes 1 8 32 --max-batches 3
    python -m benchmarks.zoom_throughput --random --size 7b-narrow --num-scenes 3 --rounds 3 \
        --crop-tokens 324 144 --withdraw
"""

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import torch
from PIL import Image

from benchmarks.random_llava import SIZES, fast_dtype, random_llava, random_zoom
from benchmarks.timing import paired_parts, paired_ratio
from benchmarks.zoom_scenes import Probe, load_pipeline, parser, print_table, probes
from data_contracts.label_settings import RegionSettings
from sdrpn_core.attention.capture import ATTENTION_NAME
from sdrpn_core.generation.greedy import answer_plain
from sdrpn_core.models.base import ModelAdapter
from sdrpn_core.models.devices import resolve_device
from sdrpn_core.models.llava import LlavaAdapter
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.zoom.answers import ZoomAnswer
from sdrpn_core.zoom.encoded_images import batches_by_image, encoded_batches

Inputs = tuple[Sequence[Image.Image], Sequence[str]]
Run = Callable[[Inputs], object]
QUESTIONS_PER_IMAGE = 4
STOCK, ONE_PASS = "stock generate", "one pass"
COPIES = "two stages, a copy for each question"
ZOOMED, CROP_SIZE = "share zoomed", "crop size"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, num_scenes=8)
    options.add_argument("--random", action="store_true", help="random weights instead")
    options.add_argument("--size", choices=SIZES, default="medium", help="of the random weights")
    options.add_argument(
        "--batch-sizes", type=int, nargs="*", default=[], help="instead of --batch-size"
    )
    options.add_argument("--crop-tokens", type=int, nargs="*", default=[])
    options.add_argument("--withdraw", action="store_true")
    options.add_argument("--whole-boxes", action="store_true")
    options.add_argument("--mask-tower", action="store_true")
    options.add_argument("--shown", type=float, default=0.4, help="of the random weights' boxes")
    options.add_argument("--max-batches", type=int, help="of each batch size; all if not given")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args(arguments)
    asked = probes(given.num_scenes)
    batch_sizes = given.batch_sizes or [given.batch_size]
    if (largest := max(given.batch_sizes, default=0)) > len(asked):
        options.error(f"{len(asked)} questions fill no batch of {largest}: raise --num-scenes")
    full = _random_pipeline(given) if given.random else load_pipeline(given)
    inputs = ([probe.image for probe in asked], [probe.question for probe in asked])
    if given.random:
        inputs = (inputs[0], ["what is the small red word ?"] * len(inputs[1]))
    else:
        _print_accuracy(_variants(full, given), asked, given)
    for batch_size in batch_sizes:
        whole = _whole_batches(inputs, batch_size, given.max_batches)
        kernel = full.adapter.decoder.kernel
        print(f"\n## {kernel}, {len(whole[0])} questions in batches of {batch_size}\n")
        _measure(full, whole, batch_size, given)


def _whole_batches(inputs: Inputs, batch_size: int, max_batches: int | None) -> Inputs:
    """Without the last, smaller batch, which would count as one of this size."""
    images, questions = inputs
    num_batches = len(images) // batch_size or 1
    count = batch_size * min(num_batches, max_batches or num_batches)
    return images[:count], questions[:count]


def _variants(full: ZoomPipeline, given: argparse.Namespace) -> dict[str, ZoomPipeline]:
    """By name: what was asked for, and what the RPN was made for."""
    own = full.regions
    masks = (None, own.mask_threshold_ratio) if given.whole_boxes else (own.mask_threshold_ratio,)
    tried = [
        own.with_changes(
            crop_tokens=budget,
            withdraw_image=withdraw,
            mask_threshold_ratio=mask,
            mask_tower=given.mask_tower,
        )
        for mask in masks
        for withdraw in ((False, True) if given.withdraw else (False,))
        for budget in (None, *given.crop_tokens)
    ]
    found = {}
    for regions in (*tried, own):
        found[_name(regions)] = variant = copy(full)
        variant.regions = regions
    return found


def _name(regions: RegionSettings) -> str:
    name = "two stages"
    name += "" if regions.crop_tokens is None else f", {regions.crop_tokens} crop tokens"
    if regions.mask_threshold_ratio is None:
        name += ", whole boxes"
    elif regions.mask_tower:
        name += ", tower masked"
    return name + (", image withdrawn" if regions.withdraw_image else "")


def _print_accuracy(
    pipelines: dict[str, ZoomPipeline], asked: Sequence[Probe], given: argparse.Namespace
) -> None:
    rows = []
    for name, pipeline in pipelines.items():
        answers = pipeline.answer(
            [probe.image for probe in asked],
            [probe.question for probe in asked],
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
        )
        right = sum(p.is_right(a.text) for p, a in zip(asked, answers, strict=True))
        rows.append((name, f"{right / len(asked):.3f}"))
    print_table((f"{len(asked)} questions", "accuracy"), rows)


def _measure(
    full: ZoomPipeline, inputs: Inputs, batch_size: int, given: argparse.Namespace
) -> None:
    pipelines = _variants(full, given)
    phases: dict[str, dict[str, list[float]]] = {}
    tokens = given.max_new_tokens
    runs: dict[str, Run] = {
        STOCK: lambda part: stock(full, part, batch_size, tokens),
        ONE_PASS: lambda part: one_pass(full, part, batch_size, tokens),
    }
    for name, pipeline in pipelines.items():
        phases[name] = defaultdict(list)
        runs[name] = _two_stages(pipeline, batch_size, tokens, phases[name])
    on_cpu = full.adapter.device.type == "cpu"
    timed = partial(
        paired_parts,
        num_rounds=given.rounds,
        clock=time.process_time if on_cpu else time.perf_counter,
    )
    # On a GPU, the next batch's images must be there to be prepared meanwhile: it takes them all.
    part_size = math.lcm(batch_size, QUESTIONS_PER_IMAGE) if on_cpu else len(inputs[1])
    _print_speeds(timed(runs, parts(inputs, part_size)), len(inputs[1]))
    for name, seconds in phases.items():
        _print_phases(name, seconds)
    images, questions = inputs
    shared = [images[index // QUESTIONS_PER_IMAGE] for index in range(len(images))]
    sharing = _sharing(pipelines, batch_size, tokens)
    per_image = min(QUESTIONS_PER_IMAGE, len(questions))
    print(f"\n{per_image} questions per image, given as one object:\n")
    _print_speeds(timed(sharing, parts((shared, questions), part_size)), len(questions))


def parts(inputs: Inputs, size: int) -> list[Inputs]:
    """Questions in order, so many at a time."""
    images, questions = inputs
    starts = range(0, len(questions), size)
    return [(images[start : start + size], questions[start : start + size]) for start in starts]


def _random_pipeline(given: argparse.Namespace) -> ZoomPipeline:
    device = resolve_device(given.device)
    model = random_llava(size=SIZES[given.size], device=str(device), dtype=fast_dtype(device))
    return random_zoom(model, given.shown)


@torch.inference_mode()
def one_pass(
    pipeline: ZoomPipeline, inputs: Inputs, batch_size: int, max_new_tokens: int
) -> list[str]:
    """Images are prepared ahead and encoded once, as by the zoom."""
    images, questions = inputs
    batches = batches_by_image(images, batch_size)
    found: dict[int, str] = {}
    for batch, rows in zip(
        batches, encoded_batches(pipeline.adapter, images, batches), strict=True
    ):
        answers = answer_plain(
            pipeline.adapter,
            [questions[index] for index in batch],
            [[row.features] for row in rows],
            max_new_tokens=max_new_tokens,
        )
        found.update(zip(batch, (answer.text for answer in answers), strict=True))
    return [found[index] for index in range(len(questions))]


@torch.inference_mode()
def stock(
    pipeline: ZoomPipeline, inputs: Inputs, batch_size: int, max_new_tokens: int
) -> list[str]:
    """One pass as people run it today: the stock processor and ``generate`` of transformers."""
    adapter = pipeline.adapter
    images, questions = inputs
    adapter.model.set_attn_implementation({"text_config": "sdpa"})
    try:
        return [
            text
            for start in range(0, len(images), batch_size)
            for text in _generated(
                adapter,
                images[start : start + batch_size],
                questions[start : start + batch_size],
                max_new_tokens,
            )
        ]
    finally:
        adapter.model.set_attn_implementation({"text_config": ATTENTION_NAME})


def _generated(
    adapter: ModelAdapter,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Answers of one batch."""
    assert isinstance(adapter, LlavaAdapter)
    canvases = [
        adapter.letterbox(image.size).paste(image, adapter.fill, (adapter.input_side,) * 2)
        for image in images
    ]
    pixels = adapter.image_processor(
        canvases, do_resize=False, do_center_crop=False, return_tensors="pt"
    )["pixel_values"]
    places = adapter.image_placeholder() * adapter.grid.num_cells
    prompt = adapter.profile.prompt.replace("{images}", places)
    tokens = adapter.tokenizer(
        [prompt.replace("{question}", question) for question in questions],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(adapter.device)
    generated = adapter.model.generate(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        pixel_values=pixels.to(adapter.device, adapter.dtype),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=[adapter.image_token_id],
    )
    return [adapter.decode_tokens(row) for row in generated[:, tokens.input_ids.shape[1] :]]


def _two_stages(
    pipeline: ZoomPipeline, batch_size: int, max_new_tokens: int, phases: dict[str, list[float]]
) -> Run:
    def run(part: Inputs) -> object:
        answers = answered(pipeline, part, max_new_tokens=max_new_tokens, batch_size=batch_size)
        for phase in answers[0].seconds:
            phases[phase].append(sum(answer.seconds[phase] for answer in answers))
        zoomed = [answer for answer in answers if answer.used_crop]
        phases[ZOOMED] += [float(answer.used_crop) for answer in answers]
        phases[CROP_SIZE] += [a.num_crop_tokens / a.roi_map.size / len(a.boxes) for a in zoomed]
        return answers

    return run


def _print_speeds(seconds: dict[str, list[float]], num_questions: int) -> None:
    bases = [name for name in (STOCK, ONE_PASS) if name in seconds]
    rows = []
    for name, values in seconds.items():
        speeds = [paired_ratio(seconds[base], values) for base in bases]
        rows.append((name, f"{1000 * statistics.median(values) / num_questions:.1f}", *speeds))
    print_table(("", "ms per question", *(f"relative to {base}" for base in bases)), rows)


def _print_phases(name: str, phases: dict[str, list[float]]) -> None:
    means = {phase: statistics.mean(values or [0.0]) for phase, values in phases.items()}
    zoomed, size = means.pop(ZOOMED), means.pop(CROP_SIZE)
    total = sum(means.values())
    shares = ", ".join(f"{phase} {value / total:.0%}" for phase, value in means.items())
    print(f"\n{name}, {zoomed:.0%} zoomed, a crop is {size:.0%} of an image's tokens: {shares}")


def _sharing(
    pipelines: dict[str, ZoomPipeline], batch_size: int, max_new_tokens: int
) -> dict[str, Run]:
    """What answers several questions about each image."""
    full = next(iter(pipelines.values()))
    length = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    copies: dict[int, list[Image.Image]] = {}
    runs: dict[str, Run] = {
        ONE_PASS: lambda part: one_pass(full, part, batch_size, max_new_tokens),
        COPIES: lambda part: answered(full, _apart(part, copies), **length),
    }
    for name, pipeline in pipelines.items():
        runs[name] = partial(answered, pipeline, **length)
    return runs


def _apart(part: Inputs, copies: dict[int, list[Image.Image]]) -> Inputs:
    """The same questions, each with an image of its own, which is copied in the warm-up round."""
    images, questions = part
    if id(part) not in copies:
        copies[id(part)] = [image.copy() for image in images]
    return copies[id(part)], questions


def answered(pipeline: ZoomPipeline, part: Inputs, **length: int) -> list[ZoomAnswer]:
    """Two stages; ``length`` as of ``ZoomPipeline.answer``."""
    return pipeline.answer(*part, **length)


if __name__ == "__main__":
    main()
