"""Small charts as inline SVG: lines, and bars with intervals.

Colours come from CSS classes (``series-0`` ...), so that charts follow the page's light or dark
mode. Every chart says in words what it shows (``aria-label``); the numbers are in tables beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 42
_BAR_VALUE_WIDTH, _BAR_HEIGHT = 76, 30
_CHARACTER_WIDTH = 7.0
"""Width of a character in labels, about; a wide font is 12 pixels high."""


@dataclass(frozen=True)
class Series:
    """One line: a name and its points in order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    has_markers: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar, with an interval if there is one."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    style: int = 0
    """Number of the colour class."""


@dataclass(frozen=True)
class Point:
    """One named point."""

    name: str
    x: float
    y: float
    style: int = 1
    """Number of the colour class."""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    marker: tuple[float, str] | None = None,
) -> Markup:
    """Draw lines over a common x axis.

    Args:
        series: lines; those without points are left out.
        title: what the chart shows, read to those who cannot see it.
        x_label: name of the x axis.
        y_label: name of the y axis.
        y_range: limits of the y axis; taken from the data if None.
        marker: x position and text of a vertical line.

    Returns:
        An ``<svg>`` element, or an empty text if there is no point at all.
    """
    shown = [line for line in series if line.points]
    if not shown:
        return Markup()
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    axes = _Axes(_padded(min(xs), max(xs)), y_range or _padded(0.0, max(ys)))
    parts = [_grid_lines(axes), _axis_labels(x_label, y_label)]
    if marker is not None:
        parts.append(_marker(axes, *marker))
    parts += [_polyline(axes, line, index) for index, line in enumerate(shown)]
    if len(shown) > 1:
        parts.append(_legend([line.name for line in shown]))
    return _svg(WIDTH, HEIGHT, title, "".join(parts))


def point_chart(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> Markup:
    """Draw points with their names beside them, both axes from 0.

    Args:
        points: in any order.
        title: what the chart shows, read to those who cannot see it.
        x_label: name of the x axis.
        y_label: name of the y axis.

    Returns:
        An ``<svg>`` element, or an empty text without points.
    """
    if not points:
        return Markup()
    axes = _Axes(
        _padded(0.0, 1.1 * max(point.x for point in points)),
        _padded(0.0, 1.1 * max(point.y for point in points)),
    )
    parts = [_grid_lines(axes), _axis_labels(x_label, y_label)]
    heights: list[float] = []
    for point in sorted(points, key=lambda point: point.y):
        x, y = axes.x(point.x), axes.y(point.y)
        # Names of close points are stacked, so that none covers another.
        heights.append(min(y + 4, heights[-1] - 12) if heights else y + 4)
        side, anchor = (7, "start") if x < WIDTH * 0.6 else (-7, "end")
        parts.append(
            f'<circle class="dot series-{point.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
            f'<text class="tick" x="{x + side:.1f}" y="{heights[-1]:.1f}" '
            f'text-anchor="{anchor}">{escape(point.name)}</text>'
        )
    return _svg(WIDTH, HEIGHT, title, "".join(parts))


def bar_chart(bars: Sequence[Bar], *, title: str, maximum: float | None = None) -> Markup:
    """Draw horizontal bars, values written at their right.

    Args:
        bars: from top to bottom; values not negative.
        title: what the chart shows, read to those who cannot see it.
        maximum: value of a full bar; the largest value or interval end if None.

    Returns:
        An ``<svg>`` element, or an empty text if there are no bars.
    """
    if not bars:
        return Markup()
    full = maximum or max(max(bar.value, bar.high or 0.0) for bar in bars) or 1.0
    left = round(_CHARACTER_WIDTH * max(len(bar.label) for bar in bars)) + 8
    room = WIDTH - left - _BAR_VALUE_WIDTH
    rows = [
        _bar_row(bar, left, index * _BAR_HEIGHT + 4, lambda value: room * min(value / full, 1.0))
        for index, bar in enumerate(bars)
    ]
    return _svg(WIDTH, len(bars) * _BAR_HEIGHT + 8, title, "".join(rows))


@dataclass(frozen=True)
class _Axes:
    """Data ranges of the plot area, and where they land."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        inside = min(max(value, low), high)
        return HEIGHT - _BOTTOM - (inside - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers within [low, high], about ``target`` of them."""
    raw = (high - low) / target
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * m for m in (1, 2, 2.5, 5, 10) if magnitude * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range that is never empty."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid_lines(axes: _Axes) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in ticks(*axes.y_range):
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in ticks(*axes.x_range):
        place = f'x="{axes.x(value):.1f}" y="{bottom + 16}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{value:g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _axis_labels(x_label: str, y_label: str) -> str:
    middle_x, middle_y = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + HEIGHT - _BOTTOM) / 2
    return (
        f'<text class="label" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(13 {middle_y}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )


def _marker(axes: _Axes, value: float, text: str) -> str:
    x = axes.x(value)
    side, anchor = (6, "start") if x < WIDTH * 0.6 else (-6, "end")
    return (
        f'<line class="marker" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        f'<text class="label" x="{x + side:.1f}" y="{HEIGHT - _BOTTOM - 8}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _polyline(axes: _Axes, line: Series, index: int) -> str:
    places = [(axes.x(x), axes.y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line series-{index}" points="{path}"/>']
    if line.has_markers or len(places) == 1:
        parts += [
            f'<circle class="dot series-{index}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
            for x, y in places
        ]
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    """Names above the plot, from the right edge leftwards."""
    parts = []
    x = float(WIDTH - _RIGHT)
    for index, name in reversed(list(enumerate(names))):
        x -= _CHARACTER_WIDTH * len(name) + 26
        parts.append(
            f'<line class="line series-{index}" x1="{x:.0f}" x2="{x + 14:.0f}" y1="7" y2="7"/>'
            f'<text class="tick" x="{x + 18:.0f}" y="11">{escape(name)}</text>'
        )
    return "".join(parts)


def _bar_row(bar: Bar, left: int, top: int, length: Callable[[float], float]) -> str:
    height = _BAR_HEIGHT - 12
    middle = top + height / 2
    end = left + length(bar.value)
    parts = [
        f'<text class="bar-label" x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">'
        f"{escape(bar.label)}</text>",
        f'<rect class="bar series-{bar.style}" x="{left}" y="{top}" rx="2" '
        f'width="{max(end - left, 1):.1f}" height="{height}"/>',
    ]
    text_x = end
    if bar.low is not None and bar.high is not None:
        low, high = left + length(bar.low), left + length(bar.high)
        text_x = max(text_x, high)
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}'
            f'M{low:.1f} {middle - 5:.1f}v10M{high:.1f} {middle - 5:.1f}v10"/>'
        )
    parts.append(
        f'<text class="bar-value" x="{text_x + 8:.1f}" y="{middle + 4:.1f}">'
        f"{escape(bar.text)}</text>"
    )
    return "".join(parts)


def _svg(width: int, height: int, title: str, body: str) -> Markup:
    """For a page as it is: every text that a chart is given is escaped in it."""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{body}</svg>'
    )
