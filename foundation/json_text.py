"""JSON from outside: whatever the text is, a value or one kind of error."""

import json
from typing import Any

DEEPEST = 100  # levels; Python's own parser and printer give up near 1,000, with another error than for bad JSON


def loads(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, or has more than 100 levels, or numbers of more digits than Python converts.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if not _is_shallow(value):
        raise ValueError(_TOO_DEEP)
    return value


_TOO_DEEP = f"it is nested in more than {DEEPEST} levels"


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False
