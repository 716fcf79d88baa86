"""The parts that a report is made of, the same for the page and for the Markdown text."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.charts import Series


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """`heat[i][j]` in [0, 1] colours a cell; None leaves it plain."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    heat: Sequence[Sequence[float | None]] | None = None
    text_columns: int = 1  # on the left; the others hold numbers


@dataclass(frozen=True)
class Chart:
    """A line chart under a caption; `name` is its file's name beside the Markdown."""

    name: str
    caption: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    boundaries: Sequence[tuple[float, str]] = ()
    y_from_zero: bool = False


@dataclass(frozen=True)
class Sample:
    """What a model wrote; `prompt` is shown before it in another colour."""

    label: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Missing:
    """Results that are not there, and the command that makes them."""

    what: str
    command: str


Block = Text | Table | Chart | Sample | Missing


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")
