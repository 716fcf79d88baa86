"""A line chart with error bars as an SVG file: enough for one curve per task over the mixing weight."""

from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 440, 64, 250, 40, 56

Point = tuple[float, float, float]  # x, y, standard error of y


def line_chart(title: str, x_label: str, y_label: str, curves: Mapping[str, Sequence[Point]]) -> str:
    """SVG text of the curves on common axes; x runs over the points, y over the values with their errors."""
    points = [point for curve in curves.values() for point in curve]
    x_low, x_high = min(x for x, _, _ in points), max(x for x, _, _ in points)
    y_low, y_high = min(y - e for _, y, e in points), max(y + e for _, y, e in points)
    margin = 0.05 * (y_high - y_low) or 0.05
    y_low, y_high = y_low - margin, y_high + margin

    def to_x(x: float) -> float:
        return _LEFT + (x - x_low) / ((x_high - x_low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def to_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="16">{escape(title)}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for tick in range(6):
        y = y_low + tick / 5 * (y_high - y_low)
        parts.append(f'<path d="M{_LEFT} {to_y(y):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{to_y(y) + 4:.1f}" text-anchor="end">{y:.2f}</text>')
    for x in sorted({x for x, _, _ in points}):
        parts.append(f'<text x="{to_x(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = ' stroke-dasharray="6 3"' if number >= len(_COLOURS) else ""
        line = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y, _ in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for x, y, error in curve:
            parts.append(
                f'<path d="M{to_x(x):.1f} {to_y(y - error):.1f}V{to_y(y + error):.1f}" stroke="{colour}"/>'
                f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="3" fill="{colour}"/>'
            )
        legend_x, legend_y = _WIDTH - _RIGHT + 16, _TOP + 18 * number
        parts.append(f'<path d="M{legend_x} {legend_y}h18" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{legend_x + 24}" y="{legend_y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
