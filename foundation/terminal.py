"""The console that everything is printed on: what a model or a data set says is shown, and does nothing."""

from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from foundation.plain_text import plain


class Terminal(Console):
    """rich's, on which strings are text and not markup, and control characters of texts do not reach the terminal.

    Its own colours and cursor movements are rich's styles and control segments, not text.
    """

    def __init__(self, file: IO[str] | None = None, width: int | None = None) -> None:
        super().__init__(file=file, width=width, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            is_safe = segment.control or segment.text.isprintable()
            yield segment if is_safe else Segment(plain(segment.text), segment.style)
