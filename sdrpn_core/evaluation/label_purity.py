"""How pure raw attention is as a label: what of it lies in the true box, threshold by threshold."""

from collections.abc import Sequence

import numpy as np

from data_contracts.results import PurityPoint
from sdrpn_core.evaluation.prediction_rows import Row, grid_of, letterbox_of, map_of, true_boxes_of
from sdrpn_core.evaluation.roi_quality import true_cells

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of a map's maximum; the paper's label thresholds are 0.1 and 0.2."""


def label_purity(rows: Sequence[Row]) -> tuple[PurityPoint, ...]:
    """Judge raw attention maps as they are: no sink removal, no box.

    Args:
        rows: with ``roi_map`` (raw grounding attention) and ``true_box``; others are left out.

    Returns:
        One point per threshold; none without a row that can be judged.
    """
    strengths, inside = [], []
    for row in rows:
        if row["true_box"] is None or row["roi_map"] is None:
            continue
        scores, letterbox, grid = map_of(row, "roi_map"), letterbox_of(row), grid_of(row)
        content = letterbox.content_mask(grid)
        peak = float(scores[content].max())
        if peak > 0:
            strengths.append(scores[content] / peak)
            inside.append(true_cells(true_boxes_of(row), letterbox, grid)[content])
    if not strengths:
        return ()
    strength, is_true = np.concatenate(strengths), np.concatenate(inside)
    points = []
    for threshold in THRESHOLDS:
        above = strength > threshold
        num_above = int(above.sum())
        num_below = len(above) - num_above
        points.append(
            PurityPoint(
                threshold=threshold,
                above_inside=float(is_true[above].mean()) if num_above else None,
                below_inside=float(is_true[~above].mean()) if num_below else None,
                num_above=num_above,
                num_below=num_below,
            )
        )
    return tuple(points)
