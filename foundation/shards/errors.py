"""How unusable data is reported: every problem at once, each naming the file and the fix."""

from collections.abc import Sequence

from foundation.errors import UserError


class ShardError(UserError):
    """Data that cannot be trained on as the recipe asks. The message lists every problem, one screen at most."""

    MAX_SHOWN = 15

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = [f"The training data cannot be used: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
        lines += [f"  {problem}" for problem in problems[: self.MAX_SHOWN]]
        if len(problems) > self.MAX_SHOWN:
            lines.append(f"  ... and {len(problems) - self.MAX_SHOWN} more")
        super().__init__("\n".join(lines))
