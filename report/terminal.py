"""The report's most important tables in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text as RichText

from report.blocks import Finding, Sample, Section, Table

_SECTIONS = ("What happened", "Pretraining", "Held-out text", "Retrieval at length", "Capabilities", "Samples")
_SAMPLES = 4


def print_summary(sections: Sequence[Section], console: Console) -> None:
    """The verdicts, losses, held-out bits per byte, retrieval, capabilities, and a few samples of text."""
    for section in sections:
        if section.title not in _SECTIONS:
            continue
        for block in [block for block in section.blocks if isinstance(block, Table)]:
            table = RichTable(title=section.title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
            for column, heading in enumerate(block.header):
                table.add_column(heading, justify="left" if column < block.text_columns else "right")
            for row in block.rows:
                table.add_row(*map(RichText, row))
            console.print(table)
        for finding in [block for block in section.blocks if isinstance(block, Finding)]:
            console.print(RichText.assemble((f"{finding.verdict}: ", "bold"), finding.claim))
            for line in finding.lines:
                console.print(Padding(RichText(line, style="dim"), (0, 0, 0, 4)))
        for sample in [block for block in section.blocks if isinstance(block, Sample)][:_SAMPLES]:
            console.print(RichText(f"> {sample.prompt} {sample.text}\n"))
