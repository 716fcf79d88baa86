"""Line charts as SVG that needs nothing else: for the report's page, and as files of their own."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape as escape_marks

from foundation.plain_text import plain

# Okabe & Ito (2008), "Color universal design": told apart with every common colour vision; black and yellow left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 14, 14, 46
_CHARACTER = 7.2  # average width of 13 pixels' type
_TICKS = 5
_BOUNDARY_LABELS = 30  # two lines above the curves
_LEGEND_LINE = 20


@dataclass(frozen=True)
class Series:
    """One curve. `errors` are half-widths around y, one per point, or empty."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    marks: bool = False
    extents: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        errors = self.errors or [0.0] * len(self.y)
        object.__setattr__(
            self, "extents", (min(y - e for y, e in zip(self.y, errors, strict=True)),
                              max(y + e for y, e in zip(self.y, errors, strict=True))),
        )  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """A linear scale from data to pixels, with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        step = _round_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(raw: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    boundaries: Sequence[tuple[float, str]] = (),
    y_from_zero: bool = False,
    on_white: bool = False,
) -> str:
    """SVG of the curves on common axes, with a legend if they are several; `boundaries` are labelled vertical lines.

    The picture has the page's text colour and no background, or as a file of its own, `on_white`, a white one.
    A script in the page may read the curves from the attribute `data-series`; without one the picture is complete.
    """
    x_low, x_high = min(min(s.x) for s in series), max(max(s.x) for s in series)
    x_low = min([x_low, *(x for x, _ in boundaries)])
    y_low, y_high = min(s.extents[0] for s in series), max(s.extents[1] for s in series)
    if y_from_zero:
        y_low = min(0.0, y_low)
    margin = 0.05 * (y_high - y_low) or 0.05 * abs(y_high) or 0.05
    to_x = Axis(x_low, x_high if x_high > x_low else x_low + 1, _LEFT, _WIDTH - _RIGHT)
    top = _TOP + (_BOUNDARY_LABELS if boundaries else 0)
    to_y = Axis(y_low if y_from_zero else y_low - margin, y_high + margin, _HEIGHT - _BOTTOM, top)
    data = [{"name": s.name, "x": list(s.x), "y": list(s.y)} for s in series]
    scale = {"low": to_x.low, "high": to_x.high, "start": to_x.start, "end": to_x.end}
    legend = _legend([s.name for s in series]) if len(series) > 1 else []
    height = _HEIGHT + _LEGEND_LINE * (legend[-1][1] + 1) if legend else _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="lines" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(f"{y_label} over {x_label}")}" font-family="system-ui, sans-serif" font-size="13" '
        f"data-series='{escape(json.dumps(data))}' data-scale='{json.dumps(scale)}'>",
        *(['<rect width="100%" height="100%" fill="white"/>'] if on_white else []),
        *_axes(to_x, to_y, x_label, y_label),
    ]
    parts += _boundary_lines([(to_x(x), label) for x, label in boundaries if x <= to_x.high])
    for number, curve in enumerate(series):
        parts += _curve(curve, colour(number), to_x, to_y)
    for number, (name, (x, line)) in enumerate(zip((s.name for s in series), legend, strict=False)):
        y = _HEIGHT + _LEGEND_LINE * line
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="4" fill="{colour(number)}"/>')
        parts.append(_text(x + 20, y + 6, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def escape(text: str) -> str:
    return escape_marks(plain(text))


def _boundary_lines(places: Sequence[tuple[float, str]]) -> list[str]:
    """Dashed lines; a label that would run into the one before stands a line lower."""
    parts, lower, free_from = [], False, 0.0
    for x, label in places:
        start = min(x + 4, _WIDTH - _CHARACTER * len(label))
        lower = start < free_from and not lower
        free_from = start + _CHARACTER * len(label)
        y = _TOP + (26 if lower else 11)
        parts.append(
            f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="currentColor" opacity=".45" '
            f'stroke-dasharray="3 3"/><text x="{start:.1f}" y="{y}" fill="currentColor" '
            f'opacity=".75">{escape(label)}</text>'
        )
    return parts


def _legend(names: Sequence[str]) -> list[tuple[int, int]]:
    """(x, line) of every entry."""
    places, x, line = [], _LEFT, 0
    for name in names:
        width = 36 + round(_CHARACTER * len(name))
        if x + width > _WIDTH and x > _LEFT:
            x, line = _LEFT, line + 1
        places.append((x, line))
        x += width
    return places


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _axes(to_x: Axis, to_y: Axis, x_label: str, y_label: str) -> list[str]:
    base = _HEIGHT - _BOTTOM
    parts = []
    for tick in to_y.ticks:
        parts.append(f'<path d="M{_LEFT} {to_y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="currentColor" opacity=".15"/>')
        parts.append(_text(_LEFT - 7, to_y(tick) + 4, short_number(tick), "end"))
    for tick in to_x.ticks:
        parts.append(_text(to_x(tick), base + 17, short_number(tick), "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_label, "middle"))
    middle = (to_y.end + base) / 2
    parts.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle" fill="currentColor">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{escape(text)}</text>'


def _curve(curve: Series, stroke: str, to_x: Axis, to_y: Axis) -> list[str]:
    places = [(to_x(x), to_y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{line}" fill="none" stroke="{stroke}" stroke-width="1.8" stroke-linejoin="round"/>']
    for (x, _), y, error in zip(places, curve.y, curve.errors, strict=False):
        parts.append(f'<path d="M{x:.1f} {to_y(y - error):.1f}V{to_y(y + error):.1f}" stroke="{stroke}"/>')
    if curve.marks:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{stroke}"/>' for x, y in places]
    return parts


def short_number(value: float) -> str:
    """Four digits at most, thousands as k, M, G, T."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{value / divisor:.4g}{suffix}"
    return f"{value:.4g}"
