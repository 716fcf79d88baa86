"""How a wrong recipe is reported: every problem at once, each with its key, its file and line, and the fix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from foundation.errors import UserError

Location: TypeAlias = str  # "recipes/tiny/pretrain.yaml:12" or "command line"
KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the dotted key it hangs on and a full sentence that ends in the fix."""

    key: KeyPath
    message: str


class RecipeError(UserError):
    """A recipe that cannot be used. The message lists every problem, one screen at most."""

    MAX_SHOWN = 15

    def __init__(self, recipe_name: str, problems: list[Problem], locations: Mapping[KeyPath, Location]) -> None:
        self.problems = problems
        lines = [f"{recipe_name}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
        for problem in problems[: self.MAX_SHOWN]:
            where = _nearest_location(problem.key, locations)
            dotted = ".".join(str(part) for part in problem.key) or "(whole file)"
            lines.append(f"  {dotted}{f'  [{where}]' if where else ''}\n    {problem.message}")
        if len(problems) > self.MAX_SHOWN:
            lines.append(f"  ... and {len(problems) - self.MAX_SHOWN} more")
        super().__init__("\n".join(lines))


def _nearest_location(key: KeyPath, locations: Mapping[KeyPath, Location]) -> Location | None:
    """The line of the key, or of the closest section above it that the files mention."""
    for length in range(len(key), 0, -1):
        if key[:length] in locations:
            return locations[key[:length]]
    return None
