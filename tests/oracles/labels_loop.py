"""Pseudo-labels one cell at a time, as the method describes them. Python floats are float64."""

import math

import numpy as np

IGNORE, BACKGROUND, FOREGROUND = -100, 0, 1


def labels_llava(grounding, sink, sink_threshold=1e-3, fg=0.2, bg=0.1, max_ratio=0.5):
    """The LLaVA variant: no padding, box of the foreground as it is. Returns (h, w) ints."""
    return _labels(grounding, sink, sink_threshold, fg, bg, max_ratio, None, blur=False, gate=0.0)


def labels_qwen(
    grounding, sink, image_size=None, sink_threshold=1e-2, fg=0.2, bg=0.1, max_ratio=0.5
):
    """The Qwen variant: padding is background, box of the blurred foreground, gate of 5e-3."""
    padding = None if image_size is None else padding_of_square(image_size, len(grounding))
    return _labels(grounding, sink, sink_threshold, fg, bg, max_ratio, padding, True, 5e-3)


def padding_of_square(image_size, num_cells):
    """Whole cells of padding on a square grid of ``num_cells`` a side; list of rows of bools."""
    width, height = image_size
    wide, high = (
        max(int(side / max(image_size) * num_cells), 1) for side in (float(width), float(height))
    )
    x0, y0 = (num_cells - wide) // 2, (num_cells - high) // 2
    x1 = wide + math.ceil((num_cells - wide) / 2)
    y1 = high + math.ceil((num_cells - high) / 2)
    return [
        [not (x0 <= x < x1 and y0 <= y < y1) for x in range(num_cells)] for y in range(num_cells)
    ]


def blur_3x3(rows, sigma=1.0):
    """3x3 Gaussian, mirrored without repeating the edge (an axis of one cell is repeated)."""
    height, width = len(rows), len(rows[0])
    weights = [math.exp(-0.5 * (d / sigma) ** 2) for d in (-1, 0, 1)]
    weights = [value / sum(weights) for value in weights]

    def mirrored(index, length):
        if length == 1:
            return 0
        return -index if index < 0 else 2 * length - 2 - index if index >= length else index

    return [
        [
            sum(
                weights[dy + 1]
                * weights[dx + 1]
                * rows[mirrored(y + dy, height)][mirrored(x + dx, width)]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def _labels(grounding, sink, sink_threshold, fg, bg, max_ratio, padding, blur, gate):
    height, width = grounding.shape
    limit = sink.dtype.type(sink_threshold)
    clean = [[float(value) for value in row] for row in grounding]
    for y in range(height):
        for x in range(width):
            if sink[y, x] >= limit or (padding is not None and padding[y][x]):
                clean[y][x] = 0.0
    peak = max(max(row) for row in clean)
    strong = [[value if value > fg * peak else 0.0 for value in row] for row in clean]
    boxed = blur_3x3(strong) if blur else strong
    cells = [(y, x) for y in range(height) for x in range(width) if boxed[y][x] > 0]
    labels = np.full((height, width), IGNORE)
    if not cells or peak < gate:
        return labels
    top, left = min(y for y, _ in cells), min(x for _, x in cells)
    bottom, right = max(y for y, _ in cells), max(x for _, x in cells)
    if (bottom - top + 1) * (right - left + 1) >= max_ratio * height * width:
        return labels
    for y in range(height):
        for x in range(width):
            outside = not (top <= y <= bottom and left <= x <= right)
            if (outside and clean[y][x] < bg * peak) or (padding is not None and padding[y][x]):
                labels[y, x] = BACKGROUND
            if strong[y][x] > 0:
                labels[y, x] = FOREGROUND
    return labels
