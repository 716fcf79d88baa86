"""The report as Markdown; its charts are SVG files in a folder beside it."""

from collections.abc import Sequence
from pathlib import Path

from foundation.charts import line_chart
from foundation.plain_text import markdown, plain
from report.blocks import Block, Chart, Details, Finding, Missing, Sample, Section, Table, Text

CHART_FOLDER = "charts"


def write_markdown(file: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the text, and its charts to the folder `charts` beside it."""
    folder = file.parent / CHART_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", markdown(subtitle)]
    for section in sections:
        parts += [f"## {section.title}", markdown(section.introduction)]
        parts += [_block(block, folder) for block in section.blocks]
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _block(block: Block, folder: Path) -> str:
    match block:
        case Text():
            return markdown(block.text)
        case Missing():
            command = plain(block.command).replace("`", "")
            return f"*{markdown(block.what)}: {block.why}.{f' `{command}` makes it.' if command else ''}*"
        case Sample():
            said = plain(f"{block.prompt}\n{block.text}").strip()
            indented = "\n".join(f"    {line}" for line in said.splitlines())
            return f"{markdown(block.label)}:\n\n{indented}"
        case Finding():
            return "\n".join(
                [f"- **{markdown(block.claim)}** {block.verdict}", *(f"  - {markdown(line)}" for line in block.lines)]
            )
        case Details():
            return "\n\n".join([f"**{markdown(block.title)}**", *(_block(inner, folder) for inner in block.blocks)])
        case Table():
            return _table(block)
        case Chart():
            svg = line_chart(
                block.series, block.x_label, block.y_label,
                boundaries=block.boundaries, y_from_zero=block.y_from_zero, on_white=True,
            )  # fmt: skip
            (folder / f"{block.name}.svg").write_text(svg, encoding="utf-8")
            caption = markdown(block.caption)
            return f"![{caption}]({CHART_FOLDER}/{block.name}.svg)\n\n*{caption}*"


def _table(table: Table) -> str:
    columns = len(table.header)
    rules = ["---"] * table.text_columns + ["---:"] * (columns - table.text_columns)
    lines = [_row(table.header), _row(rules), *(_row(row) for row in table.rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"
