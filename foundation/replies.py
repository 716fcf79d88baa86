"""Taking apart text that a model or the author of some data set wrote: in time linear in its length, whatever it says.

A model that loops writes thousands of line breaks behind an opening tag by itself. An expression such as
`<tag>\\s*(.*?)\\s*</tag>` then tries every way to share them out: 4,000 took 16 s, and time grows with the cube.
"""

import json
from typing import Any

_DEEPEST_JSON = 100  # levels; Python's own parser and printer give up near 1,000, with another error than for bad JSON


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
        value = json.loads(text)
    except (ValueError, RecursionError):  # also numbers of more digits than Python converts, and deeper nesting
        return None
    return value if isinstance(value, dict) and _is_shallow(value) else None


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST_JSON):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False
