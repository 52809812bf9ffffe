"""Charts as inline SVG. Colours come from the page's style by class, so they follow light and dark; a shape says what a colour says.

Rival: matplotlib's SVG. It draws letters as paths in one fixed ink and cannot follow a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 440  # narrow, so that letters stay readable when a phone shows the whole width
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 46
_SHAPES = ("circle", "square", "diamond", "triangle", "cross")


@dataclass(frozen=True)
class Point:
    """One mark: `series` decides colour and shape, `on_front` whether the front's line goes through it; `label` stands beside it."""

    x: float
    y: float
    label: str
    series: str
    on_front: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar: its length, what stands beside it, a class of the page's style (``good``, ``bad``, ``plain``), and a thin mark (0: none)."""

    label: str
    value: float
    text: str
    kind: str = "plain"
    mark: float = 0.0


def scatter(points: Sequence[Point], x_title: str, y_title: str, title: str) -> str:
    """A scatter plot; each series' front is a line; the x axis is logarithmic where the values span a decade. Points without
    a finite, positive x are left out; "" when none is left."""
    shown = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y) and point.x > 0]
    if not shown:
        return ""
    height = 320
    logarithmic = max(p.x for p in shown) >= 10 * min(p.x for p in shown)
    across = _Scale([p.x for p in shown], _LEFT, WIDTH - _RIGHT, logarithmic)
    down = _Scale([p.y for p in shown], height - _BOTTOM, _TOP, False)
    parts = [*_x_axis(across, height, x_title), *_y_axis(down, height, y_title)]
    series = list(dict.fromkeys(p.series for p in shown))
    for number, name in enumerate(series):
        front = sorted((p.x, p.y) for p in shown if p.on_front and p.series == name)
        if len(front) > 1:
            line = " ".join(f"{across.at(x):.1f},{down.at(y):.1f}" for x, y in front)
            parts.append(f'<polyline class="front f{number % 6}" points="{line}"/>')
    taken = [(across.at(p.x) - 6, across.at(p.x) + 6, down.at(p.y) + 4) for p in shown]
    for point in shown:
        number = series.index(point.series)
        x, y = across.at(point.x), down.at(point.y)
        parts.append(f'<g class="s{number % 6}"><title>{_safe(point.label)}: {point.x:.4g}, {point.y:.4g}</title>'
                     f"{_mark(_SHAPES[number % len(_SHAPES)], x, y)}</g>{_label(point.label, x, y, taken)}")
    return _figure(height, parts, title, _legend(series) if len(series) > 1 else "")


def bars(items: Sequence[Bar], title: str, note: str = "") -> str:
    """Horizontal bars from zero; "" when there is none."""
    if not items:
        return ""
    most = max(max(item.value, item.mark) for item in items) or 1.0
    room = min(190, 12 + 6.6 * max(len(item.label) for item in items))
    beside = 12 + 7 * max(len(item.text) for item in items)
    length = max(40, WIDTH - room - beside - 8)
    parts = []
    for index, item in enumerate(items):
        y, width = 6 + index * 26, max(1.0, length * item.value / most)
        parts.append(f'<text class="tick" x="{room - 6:.1f}" y="{y + 14}" text-anchor="end">{_safe(_short(item.label, 26))}</text>'
                     f'<rect class="{_safe(item.kind)}" x="{room:.1f}" y="{y}" width="{width:.1f}" height="18" rx="2"/>')
        end = width
        if item.mark:
            end = max(width, length * item.mark / most)
            parts.append(f'<rect class="mark" x="{room + length * item.mark / most:.1f}" y="{y}" width="2" height="18"/>')
        parts.append(f'<text class="tick" x="{room + end + 6:.1f}" y="{y + 14}">{_safe(item.text)}</text>')
    return _figure(12 + 26 * len(items), parts, title, f"<p>{_safe(note)}</p>" if note else "")


class _Scale:
    """From values to places, with room at both ends and round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, logarithmic: bool) -> None:
        self._log, self._start, self._end = logarithmic, start, end
        low, high = (self._of(min(values)), self._of(max(values)))
        room = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
        self._low, self._high = low - room, high + room

    def at(self, value: float) -> float:
        return self._start + (self._end - self._start) * (self._of(value) - self._low) / (self._high - self._low)

    def ticks(self) -> list[float]:
        if self._log:
            steps = [digit * 10.0**power for power in range(math.floor(self._low), math.ceil(self._high) + 1) for digit in (1, 2, 5)]
            return [step for step in steps if self._low <= math.log10(step) <= self._high]
        raw = (self._high - self._low) / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
        first = math.ceil(self._low / step)
        return [round(index * step, 12) for index in range(first, math.floor(self._high / step) + 1)]

    def _of(self, value: float) -> float:
        return math.log10(value) if self._log else value


def _x_axis(scale: _Scale, height: int, title: str) -> list[str]:
    y = height - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{y}" x2="{WIDTH - _RIGHT}" y2="{y}"/>']
    for tick in scale.ticks():
        x = scale.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{y}"/>'
                     f'<text class="tick" x="{x:.1f}" y="{y + 17}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="title" x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{height - 8}" text-anchor="middle">{_safe(title)}</text>')
    return parts


def _y_axis(scale: _Scale, height: int, title: str) -> list[str]:
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{height - _BOTTOM}"/>']
    for tick in scale.ticks():
        y = scale.at(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (_TOP + height - _BOTTOM) / 2
    parts.append(f'<text class="title" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{_safe(title)}</text>')
    return parts


def _label(text: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> str:
    """Beside the mark, where no mark and no earlier label lies; none without room: the mark tells it when pointed at."""
    width = 6.5 * len(text)
    for dx, dy in ((9, 4), (9, -9), (9, 17), (-9 - width, 4), (-9 - width, -9), (-9 - width, 17), (9, -22), (9, 30)):
        left, middle = x + dx, y + dy
        inside = left >= _LEFT and left + width <= WIDTH and middle >= _TOP
        if inside and all(abs(middle - other) > 12 or left > end or left + width < start for start, end, other in taken):
            taken.append((left, left + width, middle))
            return f'<text class="label" x="{left:.1f}" y="{middle:.1f}">{_safe(text)}</text>'
    return ""


def _mark(shape: str, x: float, y: float) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    corners = {"square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)), "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
               "triangle": ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
               "cross": ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2))}[shape]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _legend(series: Sequence[str]) -> str:
    found = "".join(f'<li><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true"><g class="s{number % 6}">'
                    f"{_mark(_SHAPES[number % len(_SHAPES)], 7, 7)}</g></svg> {_safe(name)}</li>" for number, name in enumerate(series))
    return f'<ul class="legend">{found}</ul>'


def _figure(height: int, parts: Sequence[str], title: str, under: str) -> str:
    return (f'<figure><figcaption>{_safe(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_safe(title)}">'
            f'{"".join(parts)}</svg>{under}</figure>')


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"...{text[3 - most:]}"


def _safe(text: str) -> str:
    return html.escape(text)
