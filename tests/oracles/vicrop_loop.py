"""ViCrop's box by brute force: every window of every size is summed on its own."""

import numpy as np


def vicrop_square(attention, image_size, base_side):
    """(x0, y0, x1, y1) in pixels of an unpadded image; None where the first window is the grid."""
    height, width = attention.shape
    cell_w, cell_h = image_size[0] / width, image_size[1] / height
    best = None
    for ratio in (1, 1.2, 1.4, 1.6, 1.8, 2):
        side = base_side * ratio
        w = min(max(int(side / cell_w), 1), width)
        h = min(max(int(side / cell_h), 1), height)
        if (w, h) == (width, height):
            if ratio == 1:
                return None
            continue
        sums = {
            (x, y): attention[y : y + h, x : x + w].sum(dtype=np.float64)
            for x in range(width - w + 1)
            for y in range(height - h + 1)
        }
        x, y = max(sums, key=lambda place: sums[place])
        near = [sums[p] for p in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)) if p in sums]
        sharpness = (sums[x, y] - np.mean(near)) / (w * h)
        if best is None or sharpness > best[0]:
            best = sharpness, (x + w / 2) * cell_w, (y + h / 2) * cell_h, side
    _, x_mid, y_mid, side = best
    corners = []
    for middle, limit in ((x_mid, image_size[0]), (y_mid, image_size[1])):
        length = min(side, limit)
        start = min(max(middle - length / 2, 0), limit - length)
        corners.append((start, start + length))
    return corners[0][0], corners[1][0], corners[0][1], corners[1][1]
