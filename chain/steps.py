"""The steps of a profile's chain on this machine: the jobs of the table that run here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foundation.errors import UserError
from jobs.plan import Plan
from jobs.profile import Profile
from jobs.table import GROUPS


class ChainError(UserError):
    """A chain that cannot run as asked; nothing was started."""


@dataclass(frozen=True)
class Step:
    """A job with the names of the steps whose results it needs; what these need themselves is left out."""

    plan: Plan
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.plan.name


def steps_of(profile: Profile) -> list[Step]:
    """All steps that the profile has recipes for, in order.

    Raises:
        UserError: when a recipe is wrong.
    """
    names = profile.jobs_in("chain")
    return [Step(profile.plan(name), profile.comes_after(name, names)) for name in names]


def select(steps: Sequence[Step], names: Iterable[str]) -> list[Step]:
    """The steps called `names`, which may be names of GROUPS, in the order of the chain.

    Raises:
        ChainError: for a name that is neither.
    """
    wanted: set[str] = set()
    known = [step.name for step in steps]
    for name in names:
        members = GROUPS.get(name, (name,))
        if not set(members) & set(known):
            raise ChainError(f"There is no stage {name!r}. Stages: {', '.join([*known, *GROUPS])}.")
        wanted |= set(members)
    return [step for step in steps if step.name in wanted]
