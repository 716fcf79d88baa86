"""Taking apart text that a model or the author of some data set wrote: in time linear in its length, whatever it says.

A model that loops writes thousands of line breaks behind an opening tag by itself. An expression such as
`<tag>\\s*(.*?)\\s*</tag>` then tries every way to share them out: 4,000 took 16 s, and time grows with the cube.
"""

from typing import Any

from foundation.json_text import loads


def cut_out(text: str, opening: str, closing: str) -> tuple[list[str], str]:
    """What stands between each `opening` and the next `closing`, in order, and the text without these blocks.

    A block that is never closed is ordinary text.
    """
    contents, others, position = [], [], 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        contents.append(text[start + len(opening) : end])
        others.append(text[position:start])
        position = end + len(closing)
    return contents, "".join([*others, text[position:]])


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is; None if it is none, or one of more than 100 levels."""
    try:
        value = loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
