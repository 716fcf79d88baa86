"""The report as one HTML file that loads nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from foundation.charts import line_chart
from foundation.plain_text import plain
from report.blocks import Chart, Section

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def to_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Render the page; its style and its script stand inside it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["chart"] = _chart
    environment.finalize = _plain
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections)


def _plain(value: Any) -> Any:
    return plain(value) if type(value) is str else value  # a chart is Markup, made of what was plain


def _chart(chart: Chart) -> Markup:
    svg = line_chart(
        chart.series, chart.x_label, chart.y_label, boundaries=chart.boundaries, y_from_zero=chart.y_from_zero
    )
    return Markup(svg)  # line_chart escapes what it is given
