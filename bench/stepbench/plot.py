"""Tokens per second and peak memory of all variants and sizes, relative to this trainer, as bars in one SVG file."""

from html import escape
from typing import Any

from stepbench.variants import OURS

_BAR, _GAP, _LEFT, _WIDTH, _SCALE = 16, 4, 300, 860, 200
_COLOURS = ("#0072b2", "#d55e00")


def bars(content: dict[str, Any]) -> str:
    """`content` is what the benchmark writes as JSON."""
    parts, y = [], 24
    parts.append(_text(8, y, f"{content['machine']}, {content['date']}: tokens/s (blue), peak memory (orange)"))
    for size, result in content["results"].items():
        y += 30
        parts.append(_text(8, y, f"{size}, {result['work']['dtype']}, sequence {result['work']['sequence_length']}"))
        ours = result["variants"][OURS]
        for variant, figures in result["variants"].items():
            y += _GAP
            if figures.get("error"):
                y += _BAR
                parts.append(_text(24, y, f"{variant}: {figures['error'][:90]}"))
                continue
            parts.append(_text(24, y + _BAR + 4, variant))
            values = [
                (figures[key], ours.get(key, figures[key]), f"{figures[key]:,.0f} {unit}")
                for key, unit in (("tokens_per_second", "tokens/s"), ("peak_megabytes", "MB"))
            ]
            for (value, reference, label), colour in zip(values, _COLOURS, strict=True):
                length = min(value / reference * _SCALE, _WIDTH - _LEFT - 110)
                parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR - 2}" fill="{colour}"/>')
                parts.append(_text(_LEFT + length + 6, y + _BAR - 4, label))
                y += _BAR
    style = "font: 12px sans-serif"
    size_attributes = f'viewBox="0 0 {_WIDTH} {y + 20}" width="{_WIDTH}" height="{y + 20}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size_attributes} style="{style}">{"".join(parts)}</svg>\n'


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
