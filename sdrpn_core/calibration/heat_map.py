"""Head scores as one SVG picture: a panel per question kind, layers down, heads across."""

from collections.abc import Mapping, Sequence
from html import escape

from data_contracts.enums import QuestionKind
from sdrpn_core.calibration.scoring import HeadScore, HeadSet

_MARGIN = 44
_LEFT = 64
"""Room for the layers' names."""
_LEAST_WIDTH = 250
"""Room for a panel's title, however few heads there are."""
_CELL_MAX, _CELL_MIN = 36, 14


def render_heat_map(
    scores: Mapping[QuestionKind, Sequence[HeadScore]], chosen: Mapping[QuestionKind, HeadSet]
) -> str:
    """SVG text; darker is a better foreground F1, chosen heads are outlined.

    Args:
        scores: every head's score per kind.
        chosen: grounding heads per kind.
    """
    num_layers = len({score.layer for kind in scores.values() for score in kind})
    num_heads = 1 + max(score.head for kind in scores.values() for score in kind)
    cell = max(min(640 // max(num_heads, num_layers), _CELL_MAX), _CELL_MIN)
    panel_width = _LEFT + max(num_heads * cell + _MARGIN, _LEAST_WIDTH)
    height = num_layers * cell + 2 * _MARGIN
    panels = [
        _panel(kind, scores[kind], chosen[kind], index * panel_width, cell)
        for index, kind in enumerate(scores)
    ]
    width = panel_width * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _panel(
    kind: QuestionKind, scores: Sequence[HeadScore], chosen: HeadSet, left: int, cell: int
) -> str:
    x0, y0 = left + _LEFT, _MARGIN
    parts = [
        f'<text x="{x0}" y="{y0 - 26}" font-weight="bold">'
        f"{escape(kind.value)} questions: foreground F1</text>"
    ]
    # Layers without heads take no room.
    rows = {layer: row for row, layer in enumerate(sorted({score.layer for score in scores}))}
    heads = sorted({score.head for score in scores})
    parts += [
        _label(x0 - 8, y0 + (row + 0.65) * cell, f"layer {layer}", "end")
        for layer, row in rows.items()
    ]
    parts += [_label(x0 + (head + 0.5) * cell, y0 - 8, str(head), "middle") for head in heads]
    # Outlines last, so that no neighbour paints over them.
    parts += [_cell(score, x0, y0 + rows[score.layer] * cell, cell) for score in scores]
    parts += [
        f'<rect x="{x0 + head * cell + 1}" y="{y0 + rows[layer] * cell + 1}" width="{cell - 2}" '
        f'height="{cell - 2}" fill="none" stroke="#d62728" stroke-width="2.5"/>'
        for layer, head in chosen
    ]
    return "\n".join(parts)


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#555555">{text}</text>'


def _cell(score: HeadScore, x0: int, y: int, cell: int) -> str:
    f1 = score.foreground.f1
    red, green, blue = (round(247 + (dark - 247) * f1) for dark in (8, 48, 107))
    title = (
        f"layer {score.layer} head {score.head}: F1 {f1:.2f}, centre precision "
        f"{score.foreground.centre_precision:.2f}, recall {score.foreground.recall:.2f}, "
        f"points inside {score.points_inside:.2f}, mass inside {score.mass_inside:.2f}"
    )
    x = x0 + score.head * cell
    return (
        f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" '
        f'fill="rgb({red},{green},{blue})" stroke="#ffffff"><title>{title}</title></rect>'
    )
