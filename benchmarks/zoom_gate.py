"""What skipping the second stage saves and costs: ``python -m benchmarks.zoom_gate``.

The reference model on held-out scenes of every layout, and on the same scenes shrunk to what the
model sees of them anyway: without zoom, with zoom always, with each rule of the gate, with all; as
the RPN was made to answer and in the paper's way, with crops of full size beside the image. Cost is
relative to no zoom, the variants by turns: CPU time on a CPU, which a busy machine hardly distorts
(with OMP_NUM_THREADS=1).
"""

import time
from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import partial

from benchmarks.timing import paired_ratio, paired_seconds
from benchmarks.zoom_scenes import (
    Probe,
    load_pipeline,
    papers_way,
    parser,
    print_table,
    probes,
    shrunk,
)
from data_contracts.label_settings import RegionSettings
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.zoom.answers import ZoomAnswer

RULES = ("max_box_area_ratio", "min_peak_probability", "min_peak_to_mean", "max_seen_ratio")
NEVER = "never zoom"


def main() -> None:
    options = parser(__doc__, num_scenes=20)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    pipeline = load_pipeline(given)
    large = probes(given.num_scenes)
    asked = large + [shrunk(probe, pipeline.adapter.input_side) for probe in large]
    images, questions = zip(*((probe.image, probe.question) for probe in asked), strict=True)
    answered: dict[str, list[ZoomAnswer]] = {}

    def answer(name: str, gated: ZoomPipeline) -> None:
        answered[name] = gated.answer(
            images,
            questions,
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
        )

    clock = time.process_time if pipeline.adapter.device.type == "cpu" else time.perf_counter
    made_for = pipeline.regions
    ways = {"as the RPN was made for": made_for, "the paper's way": papers_way(made_for)}
    for way, regions in ways.items():
        runs = {}
        for name, settings in variants(regions).items():
            gated = copy(pipeline)
            gated.regions = settings
            runs[name] = partial(answer, name, gated)
        seconds = paired_seconds(runs, given.rounds, clock)
        rows = [
            (name, *_row(asked, answered[name], len(large)), paired_ratio(own, seconds[NEVER]))
            for name, own in seconds.items()
        ]
        print(f"\n## {way}\n")
        header = ("gate", "accuracy", "large images", "small images", "zoomed", "why not", "cost")
        print_table(header, rows)


def variants(regions: RegionSettings) -> dict[str, RegionSettings]:
    """Settings by name: no zoom at all, zoom always, one rule each, all rules.

    Rules that the checkpoint does not have are tried at their default.
    """
    default, values = RegionSettings.preset("default"), dict[str, float]()
    never: dict[str, None] = dict.fromkeys(RULES)
    ungated = regions.model_copy(update=never)
    found = {
        NEVER: ungated.model_copy(update={"max_seen_ratio": 1e-9}),
        "always zoom": ungated,
    }
    for rule in RULES:
        value = getattr(regions, rule)
        values[rule] = getattr(default, rule) if value is None else value
        found[f"{rule} {values[rule]:g}"] = ungated.model_copy(update={rule: values[rule]})
    return {**found, "all rules": ungated.model_copy(update=values)}


def _row(asked: Sequence[Probe], answers: Sequence[ZoomAnswer], num_large: int) -> tuple[str, ...]:
    right = [probe.is_right(answer.text) for probe, answer in zip(asked, answers, strict=True)]
    large, small = right[:num_large], right[num_large:]
    reasons = Counter(answer.decision.value for answer in answers if not answer.used_crop)
    zoomed = sum(answer.used_crop for answer in answers) / len(answers)
    accuracies = [f"{sum(part) / len(part):.3f}" for part in (right, large, small)]
    why = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
    return (*accuracies, f"{zoomed:.0%}", why or "-")


if __name__ == "__main__":
    main()
