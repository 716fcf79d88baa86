"""Pictures for README, as SVG: the first section of the demo's report, and its held-out text."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from foundation.charts import Series, line_chart
from tools.figure_blocks import effect_rows

_ROW, _WIDTH, _PAD = 26, 760, 16
_COLOURS = {"shown": "#009e73", "not shown": "#7f7f7f"}


def held_out(results: Mapping[str, Any]) -> str:
    """Bits per byte of every held-out source by step, with the borders of the stages."""
    rows = results["demo"]["validations"]
    names = rows[0]["bits_per_byte"]
    curves = [
        Series(
            name.removesuffix("-heldout"),
            [row["step"] for row in rows],
            [row["bits_per_byte"][name] for row in rows],
            marks=True,
        )
        for name in names
    ]
    borders = [(float(stage["first_step"]), stage["stage"]) for stage in results["demo"]["stages"]]
    return line_chart(curves, "steps", "bits per byte", boundaries=borders, on_white=True)


def verdicts(results: Mapping[str, Any]) -> str:
    """What the recipe is meant to do, and what the demo shows of it under several seeds."""
    rows = effect_rows(results["demo_seeds"])
    height = _ROW * (len(rows) + 1) + 2 * _PAD
    seeds = len(results["demo_seeds"]["seeds"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Effects and verdicts" font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        _line(_PAD + 14, f"Measured effect, mean over {seeds} seeds [95 % interval]", "", "", "#000000"),
    ]
    for number, (effect, _, mean, verdict) in enumerate(rows, 1):
        parts.append(_line(_PAD + 14 + _ROW * number, effect, mean, verdict, _COLOURS[verdict]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(y: int, effect: str, mean: str, verdict: str, colour: str) -> str:
    weight = "" if verdict else ' font-weight="bold"'
    mark = f'<rect x="{_PAD}" y="{y - 11}" width="12" height="12" rx="2" fill="{colour}"/>' if verdict else ""
    left = _PAD + 20 if verdict else _PAD
    return (
        f'{mark}<text x="{left}" y="{y}"{weight}>{escape(effect)}</text>'
        f'<text x="{_WIDTH - 110}" y="{y}" text-anchor="end">{escape(mean)}</text>'
        f'<text x="{_WIDTH - 92}" y="{y}" fill="{colour}">{verdict}</text>'
    )


PICTURES: dict[str, Callable[[Mapping[str, Any]], str]] = {"held_out": held_out, "verdicts": verdicts}
