"""The parts that a report is made of, the same for the page and for the Markdown text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Union

from foundation.charts import Series


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
    """Results that are not there, and the command that makes them; empty where the profile has no recipe for it."""

    what: str
    command: str

    @property
    def why(self) -> str:
        return "not there yet" if self.command else "this profile has no recipe for it"


Verdict = Literal["shown", "not shown at this size", "not measured"]


@dataclass(frozen=True)
class Finding:
    """A claim, whether the run bears it out, and the numbers behind that; `command` measures what is not measured."""

    verdict: Verdict
    claim: str
    numbers: Sequence[str]
    command: str = ""

    @property
    def lines(self) -> list[str]:
        """What stands below the claim."""
        return [*self.numbers, *([f"To measure it: {self.command}"] if self.command else [])]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until somebody opens them."""

    title: str
    blocks: Sequence["Block"]


Block = Union[Text, Table, Chart, Sample, Missing, Finding, Details]  # noqa: UP007 (one member is a forward reference)


@dataclass(frozen=True)
class Section:
    """`introduction` says in a sentence or two what one sees and why it matters."""

    title: str
    introduction: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")
