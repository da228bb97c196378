"""Figures: line charts and a matrix as SVG, small enough to be drawn by hand, and line charts as PNG.

Colours come from the page's CSS variables, with values for a file that stands alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw, ImageFont

INK, SOFT, LINE = "var(--ink, #1c2430)", "var(--soft, #5d6878)", "var(--line, #dfe4ea)"
ACCENT, SECOND = "var(--accent, #2b66d9)", "var(--second, #c2571a)"
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 24, 34, 44  # margins of a chart
_FONT_SIZE, _DOT, _DASH = 12, 3.5, (5, 4)
_FONT = f'font-family="system-ui, sans-serif" font-size="{_FONT_SIZE}"'
_FINE = 2  # pixels a unit of a PNG


@dataclass(frozen=True)
class Series:
    """Points of one curve."""

    name: str  # in the legend; "" is left out there
    points: Sequence[tuple[float, float]]
    colour: str = ACCENT
    width: float = 2.0
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


@dataclass(frozen=True)
class _Mark:
    """A part of a chart: a line through points, a dot, or words at a point."""

    points: Sequence[tuple[float, float]]
    colour: str
    width: float = 1.0  # of the line; 0 is a dot, or words
    words: str = ""
    anchor: str = "start"
    dashed: bool = False


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    logarithmic: bool = False,
    from_zero: bool = False,
    x_ticks: Sequence[float] | None = None,
    size: tuple[int, int] = (440, 280),
) -> str:
    """Curves over one axis, as an SVG element.

    Args:
        series: the curves; those drawn last lie on top.
        title: for screen readers.
        x_label, y_label: of the axes.
        logarithmic: the vertical axis; values must be above 0.
        from_zero: the vertical axis begins at 0.
        x_ticks: where to mark the horizontal axis, the first and last being its ends; found if None.
        size: width and height in the SVG's own units.
    """
    marks = _line_chart(series, x_label, y_label, logarithmic, from_zero, x_ticks, size)
    return _svg(title, *size, [_as_svg(mark) for mark in marks])


def line_charts_png(
    charts: Sequence[tuple[Sequence[Series], str, str, bool]], columns: int = 2, size: tuple[int, int] = (440, 280)
) -> bytes:
    """Several charts (series, x label, y label, whether logarithmic) on one white picture, as PNG."""
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    sheet = Image.new("RGB", (columns * size[0] * _FINE, rows * size[1] * _FINE), "white")
    for number, (series, x_label, y_label, logarithmic) in enumerate(charts):
        corner = (number % columns * size[0], number // columns * size[1])
        pen = ImageDraw.Draw(sheet)
        for mark in _line_chart(series, x_label, y_label, logarithmic, False, None, size):
            _draw(pen, mark, corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    logarithmic: bool,
    from_zero: bool,
    x_ticks: Sequence[float] | None,
    size: tuple[int, int],
) -> list[_Mark]:
    width, height = size
    xs = [x for curve in series for x, _ in curve.points] or [0.0, 1.0]
    ys = [y for curve in series for _, y in curve.points] or [1.0, 2.0]
    y_ticks = _log_ticks(min(ys), max(ys)) if logarithmic else _ticks(0.0 if from_zero else min(ys), max(ys))
    across = list(x_ticks or _ticks(min(xs), max(xs), wanted=4, outside=False))
    pad = 0.08 * (max(xs) - min(xs)) if x_ticks else 0.0
    least = 1e-9 * max(1.0, abs(min(xs)))  # so that one place is no division by nothing
    x = _Scale(min(xs) - pad, max(max(xs), min(xs) + least) + pad, _LEFT, width - _RIGHT)
    y = _Scale(y_ticks[0], y_ticks[-1], height - _BOTTOM, _TOP, logarithmic)

    marks = []
    for tick in y_ticks:
        marks.append(_Mark([(_LEFT, y(tick)), (width - _RIGHT, y(tick))], LINE))
        marks.append(_words(_LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    marks += [_words(x(tick), height - _BOTTOM + 18, f"{tick:,g}", "middle") for tick in across]
    marks.append(_words((_LEFT + width - _RIGHT) / 2, height - 6, x_label, "middle"))
    for curve in series:
        places = [(x(a), y(b)) for a, b in curve.points]
        if curve.width and len(places) > 1:
            marks.append(_Mark(places, curve.colour, curve.width, dashed=curve.dashed))
        if curve.dots or len(places) == 1:
            marks += [_Mark([place], curve.colour, 0) for place in places]
    return marks + _legend([curve for curve in series if curve.name], width, y_label)


def matrix(rows: Mapping[str, Mapping[str, int]], columns: Sequence[str], title: str, cell: int = 28) -> str:
    """Counts as shaded cells, as an SVG element: a row is what was asked for, a column what was seen."""
    left, top = 88, 74
    width, height = left + cell * len(columns) + 34, top + cell * len(rows) + 4
    parts = [_text(left - 8, top - 8, "asked for", "end", INK)]
    for k, name in enumerate(columns):
        place = left + cell * (k + 0.5)
        parts.append(
            f'<text x="{place:.1f}" y="{top - 8}" transform="rotate(-45 {place:.1f} {top - 8})" fill="{SOFT}"'
            f" {_FONT}>{escape(name)}</text>"
        )
    for j, (name, counts) in enumerate(rows.items()):
        total = max(1, sum(counts.values()))
        parts.append(_text(left - 8, top + cell * (j + 0.5) + 4, name, "end"))
        for k, seen in enumerate(columns):
            share = counts.get(seen, 0) / total
            a, b = left + cell * k, top + cell * j
            colour = ACCENT if seen == name else SECOND
            parts.append(
                f'<rect x="{a + 1}" y="{b + 1}" width="{cell - 2}" height="{cell - 2}" rx="3"'
                f' fill="{colour if share else LINE}" fill-opacity="{0.15 + 0.65 * share if share else 0.45:.2f}"/>'
            )
            if share:
                parts.append(_text(a + cell / 2, b + cell / 2 + 4, str(counts[seen]), "middle", INK))
    return _svg(title, width, height, parts)


def alone(svg: str) -> str:
    """An SVG element as a file of its own, on white."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1)


def _ticks(low: float, high: float, wanted: int = 5, outside: bool = True) -> list[float]:
    """Round numbers, about `wanted`, that span low..high; or that lie inside it."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    round_low, round_high = (math.floor, math.ceil) if outside else (math.ceil, math.floor)
    first, last = round_low(low / step - 1e-9 * (not outside)), round_high(high / step + 1e-9 * (not outside))
    return [round(k * step, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that span low..high; powers alone where those would be many."""
    low, high = max(low, 1e-12), max(high, 1e-12)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    all_ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    below = max((tick for tick in all_ticks if tick <= low), default=all_ticks[0])
    above = min((tick for tick in all_ticks if tick >= high), default=all_ticks[-1])
    ticks = [tick for tick in all_ticks if below <= tick <= above]
    if len(ticks) < 2:
        return [below, 2 * below]
    return ticks if len(ticks) <= 7 else [ticks[0], *ticks[1:-1][1::3], ticks[-1]]


def _legend(series: Sequence[Series], width: int, y_label: str) -> list[_Mark]:
    """Above the chart: the axis' name at the left, the curves' names at the right."""
    marks, right, row = [_words(8, 16, y_label, "start")], width - _RIGHT, 16
    for curve in reversed(series):
        marks.append(_words(right, row, curve.name, "end"))
        right -= 6.6 * len(curve.name) + 26
        if curve.width:
            ends = [(round(right), row - 4), (round(right) + 18, row - 4)]
            marks.append(_Mark(ends, curve.colour, curve.width, dashed=curve.dashed))
        if curve.dots:
            marks.append(_Mark([(round(right) + 9, row - 4)], curve.colour, 0))
        right -= 14
    return marks


def _words(x: float, y: float, words: str, anchor: str) -> _Mark:
    return _Mark([(x, y)], SOFT, 0, words, anchor)


def _as_svg(mark: _Mark) -> str:
    x, y = mark.points[0]
    if mark.words:
        return _text(x, y, mark.words, mark.anchor, mark.colour)
    if not mark.width:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" fill="{mark.colour}"/>'
    if mark.colour == LINE:
        (x1, y1), (x2, y2) = mark.points
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{LINE}"/>'
    dash = f' stroke-dasharray="{_DASH[0]} {_DASH[1]}"' if mark.dashed else ""
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in mark.points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{mark.colour}" stroke-width="{mark.width:g}"'
        f' stroke-linejoin="round"{dash}/>'
    )


def _draw(pen: ImageDraw.ImageDraw, mark: _Mark, corner: tuple[float, float]) -> None:
    """With PIL, `_FINE` pixels a unit, seen from a corner; dashes become a thin line."""
    colour = mark.colour[mark.colour.index("#") :].rstrip(")")  # what stands in var(--name, #...)
    places = [((corner[0] + x) * _FINE, (corner[1] + y) * _FINE) for x, y in mark.points]
    x, y = places[0]
    if mark.words:
        font = ImageFont.load_default(_FONT_SIZE * _FINE)
        pen.text((x, y), mark.words, colour, font, anchor={"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor])
    elif not mark.width:
        radius = _DOT * _FINE
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    else:
        width = 1 if mark.dashed else max(round(mark.width * _FINE), 1)
        pen.line(places, colour, width, joint="curve")


def _text(x: float, y: float, words: str, anchor: str, colour: str = SOFT) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {_FONT}>{escape(words)}</text>'


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
