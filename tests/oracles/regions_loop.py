"""The reference's boxes one cell at a time: flood fill, filters and growth as described."""

from tests.oracles.labels_loop import blur_3x3


def boxes_reference(rows, threshold, max_cells=225):
    """Half-open boxes (x0, y0, x1, y1) in row order of each component's first cell."""
    height, width = len(rows), len(rows[0])
    blurred = blur_3x3([[float(value) for value in row] for row in rows])
    boxes = []
    for cells in components(blurred, threshold):
        x0, x1 = min(x for _, x in cells), max(x for _, x in cells) + 1
        y0, y1 = min(y for y, _ in cells), max(y for y, _ in cells) + 1
        if len(cells) == 1 or len(cells) > max_cells:
            continue
        if len(cells) < 4:
            x_mid, y_mid = (x0 + x1) / 2, (y0 + y1) / 2
            w, h = max(3, x1 - x0 + 1), max(3, y1 - y0 + 1)
            x0, y0 = max(0, int(x_mid - w / 2)), max(0, int(y_mid - h / 2))
            x1, y1 = min(width - 1, int(x_mid + w / 2)), min(height - 1, int(y_mid + h / 2))
        boxes.append((x0, y0, x1, y1))
    return boxes if len(boxes) <= 2 else []


def components(blurred, threshold):
    """Cells (y, x) of each 8-connected region above the threshold, by flood fill."""
    height, width = len(blurred), len(blurred[0])
    seen = set()
    found = []
    for y in range(height):
        for x in range(width):
            if (y, x) in seen or not blurred[y][x] > threshold:
                continue
            stack, cells = [(y, x)], []
            seen.add((y, x))
            while stack:
                cy, cx = stack.pop()
                cells.append((cy, cx))
                for ny in range(max(cy - 1, 0), min(cy + 2, height)):
                    for nx in range(max(cx - 1, 0), min(cx + 2, width)):
                        if (ny, nx) not in seen and blurred[ny][nx] > threshold:
                            seen.add((ny, nx))
                            stack.append((ny, nx))
            found.append(cells)
    return found
