"""One threshold for everything, or one per layout? ``python -m benchmarks.zoom_threshold``.

Sweeps the region threshold on held-out scenes of every layout, in both readings: a fixed
probability, and a share of the map's peak (with the peak-to-mean gate). Every crop that any
threshold proposes is answered once, at the cost that the RPN was made for; true boxes are shown at
full size beside the image. Prints accuracies, how far one threshold is from the best one
of each layout, the threshold that training chose without seeing these scenes among them, the share
of the oracle's gain that it recovers, and how honest the probabilities are; writes the sweep as an
SVG. The scenes are others than those that the RPN's shape and the gate were chosen on.
"""

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.zoom_scenes import Probe, load_pipeline, papers_way, parser, print_table, probes
from data_contracts.label_settings import RegionSettings
from sdrpn_core.generation.greedy import greedy_decode
from sdrpn_core.pipeline import ZoomPipeline
from sdrpn_core.reference.scenes import LAYOUTS
from sdrpn_core.reference.views import margin_box
from sdrpn_core.regions import Region
from sdrpn_core.report.charts import Series, line_chart
from sdrpn_core.rpn.threshold import CANDIDATES
from sdrpn_core.statistics import recovered_share_interval
from sdrpn_core.zoom.crop_masks import masked_crops
from sdrpn_core.zoom.first_stage import first_stage
from sdrpn_core.zoom.gate import decide_zoom
from sdrpn_core.zoom.second_stage import second_stage_prefill
from tasks.artifacts.store import ArtifactStore
from tasks.rpn_files import find_checkpoint

FIRST_SCENE = 1000
"""Behind those of the other benchmarks."""
ORACLE_MARGIN = 0.1
_NUM_RESAMPLES = 10_000
_STYLE = (
    "<style>text{font:11px sans-serif;fill:#444}.line{fill:none;stroke-width:2}.grid{stroke:#ddd}"
    ".axis{stroke:#888}.series-0{stroke:#c2185b}.series-1{stroke:#00796b;stroke-dasharray:6 3}"
    '</style><rect width="100%" height="100%" fill="white"/>'
)

Regions = tuple[Region, ...]
Key = tuple[int, Regions]
"""A question, and what of the image it is shown closer."""


@dataclass(frozen=True)
class Sweep:
    """Accuracy of one reading of the threshold."""

    name: str
    thresholds: tuple[float, ...]
    right: NDArray[np.float64]
    """(thresholds, questions) 1 where the answer is right."""
    layouts: NDArray[np.str_]
    """(questions,)"""

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(thresholds, layouts)"""
        columns = [self.right[:, self.layouts == layout].mean(axis=1) for layout in LAYOUTS]
        return np.stack(columns, axis=1)

    @property
    def best(self) -> int:
        """Threshold with the best mean over layouts; the lowest of equals."""
        return int(self.accuracy.mean(axis=1).argmax())


class Answers:
    """Whether the answer with given crops is right; each pair of question and crops runs once."""

    def __init__(
        self, pipeline: ZoomPipeline, asked: Sequence[Probe], batch_size: int, max_new_tokens: int
    ) -> None:
        self.pipeline = pipeline
        self.asked = asked
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.known: dict[Key, bool] = {}

    def at_best(self) -> "Answers":
        """The same questions, with crops of full size beside the image in all layers."""
        best = copy(self.pipeline)
        best.regions = papers_way(best.regions)
        return Answers(best, self.asked, self.batch_size, self.max_new_tokens)

    def find(self, wanted: Sequence[Key]) -> list[bool]:
        """Whether each is right; what is not known yet is answered."""
        unknown = dict.fromkeys(key for key in wanted if key not in self.known)
        new = sorted(unknown, key=lambda key: (len(key[1]), key[0]))
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self.known.update(zip(batch, self._answer(batch), strict=True))
            print(f"\ranswered {start + len(batch)} of {len(new)}", end="", file=sys.stderr)
        print(file=sys.stderr)
        return [self.known[key] for key in wanted]

    @torch.inference_mode()
    def _answer(self, batch: Sequence[Key]) -> list[bool]:
        adapter, rows = self.pipeline.adapter, [self.asked[index] for index, _ in batch]
        images = [probe.image for probe in rows]
        features = adapter.encode_images(images)
        first = first_stage(
            adapter, self.pipeline.rpn, features, [probe.question for probe in rows]
        )
        settings = self.pipeline.regions
        crops = masked_crops(adapter, images, [own for _, own in batch], settings)
        start = second_stage_prefill(adapter, first, crops, withdraw_image=settings.withdraw_image)
        said = greedy_decode(adapter, start, self.max_new_tokens)
        return [probe.is_right(text.text) for probe, text in zip(rows, said, strict=True)]


def main() -> None:
    options = parser(__doc__, num_scenes=30)
    options.add_argument(
        "--first-scene", type=int, default=FIRST_SCENE, help="number of the first scene"
    )
    options.add_argument(
        "--thresholds", type=float, nargs="+", default=CANDIDATES, help="few are quick"
    )
    options.add_argument("--plot", type=Path, default=Path("zoom-threshold.svg"))
    given = options.parse_args()
    pipeline = load_pipeline(given)
    asked = probes(given.num_scenes, first_scene=given.first_scene)
    maps = roi_maps(pipeline, asked, given.batch_size)
    answers = Answers(pipeline, asked, given.batch_size, given.max_new_tokens)
    readings = {
        "fixed probability": pipeline.regions.model_copy(
            update={"threshold_is_peak_ratio": False, "min_peak_to_mean": None}
        ),
        "share of the peak": pipeline.regions.model_copy(update={"threshold_is_peak_ratio": True}),
    }
    tried = tuple(given.thresholds)
    sweeps = [sweep(name, pipeline, s, tried, asked, maps, answers) for name, s in readings.items()]
    shipped = sweep(
        "default", pipeline, pipeline.regions, (pipeline.threshold,), asked, maps, answers
    )
    report(sweeps, shipped, asked, answers)
    report_honesty(given.store, given.rpn)
    given.plot.write_text(draw(sweeps), encoding="utf-8")
    print(f"\nsweep drawn in {given.plot}")


@torch.inference_mode()
def roi_maps(
    pipeline: ZoomPipeline, asked: Sequence[Probe], batch_size: int
) -> list[NDArray[np.float32]]:
    """Calibrated RoI map of every question."""
    maps = []
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        features = pipeline.adapter.encode_images([probe.image for probe in batch])
        questions = [probe.question for probe in batch]
        first = first_stage(pipeline.adapter, pipeline.rpn, features, questions)
        maps += [pipeline.score_calibration.probability(m).numpy() for m in first.roi_logits]
    return maps


def sweep(
    name: str,
    pipeline: ZoomPipeline,
    settings: RegionSettings,
    thresholds: tuple[float, ...],
    asked: Sequence[Probe],
    maps: Sequence[NDArray[np.float32]],
    answers: Answers,
) -> Sweep:
    """Answer with the crops of every threshold."""
    letterboxes = [pipeline.adapter.letterbox(probe.image.size) for probe in asked]
    wanted = [
        (index, decide_zoom(roi_map, threshold, settings, letterbox).regions)
        for threshold in thresholds
        for index, (letterbox, roi_map) in enumerate(zip(letterboxes, maps, strict=True))
    ]
    right = np.array(answers.find(wanted), dtype=np.float64).reshape(len(thresholds), len(asked))
    return Sweep(name, thresholds, right, np.array([probe.layout for probe in asked]))


def report(
    sweeps: Sequence[Sweep], shipped: Sweep, asked: Sequence[Probe], answers: Answers
) -> None:
    """Print the table: base, oracle, the checkpoint's own threshold, and both readings."""
    oracle = [(i, (Region(margin_box(p.true_box, ORACLE_MARGIN)),)) for i, p in enumerate(asked)]
    base: list[Key] = [(index, ()) for index in range(len(asked))]
    bounds: list[NDArray[np.float64]] = []
    rows = []
    for name, asker, wanted in (("base", answers, base), ("oracle", answers.at_best(), oracle)):
        right = np.array(asker.find(wanted), dtype=np.float64)
        means = [right[shipped.layouts == layout].mean() for layout in LAYOUTS]
        rows.append((name, "", *(f"{mean:.3f}" for mean in means), f"{np.mean(means):.3f}", ""))
        bounds.append(right)
    best = np.max([item.accuracy.max(axis=0) for item in sweeps], axis=0)
    (one,) = shipped.accuracy
    rows.append(
        (
            "default, as training chose it",
            f"{shipped.thresholds[0]:g}",
            *(f"{value:.3f}" for value in one),
            f"{one.mean():.3f}",
            f"{(best - one).max():.3f}",
        )
    )
    for item in sweeps:
        own = item.accuracy.max(axis=0)
        one = item.accuracy[item.best]
        rows.append(
            (
                f"{item.name}, one for all",
                f"{item.thresholds[item.best]:g}",
                *(f"{value:.3f}" for value in one),
                f"{one.mean():.3f}",
                f"{(own - one).max():.3f}",
            )
        )
        rows.append(
            (
                f"{item.name}, best of each",
                ", ".join(f"{item.thresholds[i]:g}" for i in item.accuracy.argmax(axis=0)),
                *(f"{value:.3f}" for value in own),
                f"{own.mean():.3f}",
                "0",
            )
        )
    print_table(("threshold", "at", *LAYOUTS, "mean", "most lost to a layout's best"), rows)
    base_right, oracle_right = bounds
    recovered = recovered_share_interval(
        shipped.right[0], base_right, oracle_right, num_resamples=_NUM_RESAMPLES, seed=0
    )
    if recovered is not None:
        print(
            f"\nthe default recovers {recovered.value:.1%} of what the oracle gains over the base "
            f"(95 % interval {recovered.low:.1%} to {recovered.high:.1%})"
        )


def report_honesty(store: str, rpn: str | None) -> None:
    """Print the calibration error that training measured on held-out pseudo-labels."""
    config = find_checkpoint(ArtifactStore(store), rpn).config
    if config.validation is None:
        print("\nan imported RPN: how honest its probabilities are was not measured")
        return
    before, after = config.validation.calibration, config.validation.calibrated
    fitted = config.score_calibration
    print(f"\nexpected calibration error {before.expected_calibration_error:.4f} before", end="")
    if after is not None:
        print(f", {after.expected_calibration_error:.4f} after", end="")
    print(f" (scale {fitted.scale:.3f}, offset {fitted.offset:.3f})")


def draw(sweeps: Sequence[Sweep]) -> str:
    """The sweep as a picture of its own; mean over layouts."""
    lines = [
        Series(
            item.name, list(zip(item.thresholds, item.accuracy.mean(axis=1).tolist(), strict=True))
        )
        for item in sweeps
    ]
    chart = line_chart(
        lines,
        title="Accuracy by region threshold, mean over layouts",
        x_label="threshold",
        y_label="accuracy",
        y_range=(0.0, 1.0),
    )
    chart = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return chart.replace(">", f">{_STYLE}", 1)


if __name__ == "__main__":
    main()
