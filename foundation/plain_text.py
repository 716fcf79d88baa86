"""What a model, a data set or a file's name says, made safe to show: the text stays, what would act on its reader goes.

A terminal obeys control sequences (the clipboard, the title, the screen), Markdown shows raw HTML and loads pictures,
and marks that turn the direction of writing make a line read other than it is. Every text from outside goes through
`plain` or `markdown` before it is shown; foundation/terminal.py does so for all that rich prints.
"""

_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - set(map(ord, "\n\t"))  # Unicode's category Cc
_DIRECTION = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # Unicode's Bidi_Control
_DROPPED: dict[int, str | None] = dict.fromkeys(_CONTROLS | _DIRECTION)
_DROPPED |= dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")  # halves of pairs cannot be written
# As entities, which Markdown shows as characters and never reads as marks.
_MARKS: dict[str, str | None] = {mark: f"&#{ord(mark)};" for mark in "&<[]`|*\\"}
_MARKDOWN = {**_DROPPED, **str.maketrans(_MARKS), ord("\n"): " "}


def plain(text: str) -> str:
    """`text` without control characters other than line break and tab, and without marks of writing direction."""
    return text.translate(_DROPPED)


def markdown(text: str) -> str:
    """`text` as Markdown that shows it as it is, in one line: no HTML, no links, no pictures, no end of a cell."""
    return text.translate(_MARKDOWN)
