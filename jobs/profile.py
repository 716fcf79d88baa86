"""A profile: the rows of the table of jobs that it has recipes for, in its folders."""

from collections.abc import Container, Sequence
from functools import cached_property

from jobs.plan import Folders, JobError, Place, Plan, typed
from jobs.table import GROUPS, JOBS, job_of


class Profile(Folders):
    """Folders with jobs."""

    @cached_property
    def jobs(self) -> tuple[str, ...]:
        """Names of all jobs that this profile has recipes for, in the order of the table.

        Raises:
            UserError: when the folder or a recipe cannot be read.
        """
        self._check_folder()
        return tuple(name for name, job in JOBS.items() if job.in_graph and job.applies(self))

    def jobs_in(self, place: Place) -> tuple[str, ...]:
        """Those of the `jobs` that run there.

        Raises:
            JobError: when there are none.
            UserError: as `jobs`.
        """
        found = tuple(name for name in self.jobs if place in JOBS[name].places)
        if not found:
            raise JobError(f"{self.recipes} has a recipe of no job: pretrain.yaml, sft.yaml, eval.yaml and so on.")
        return found

    def comes_after(self, name: str, among: Container[str]) -> tuple[str, ...]:
        """The jobs `among` which `name` has to wait for, in order. A job that is not among them stands for those that
        it comes after itself; what comes before another of them is left out."""
        found: list[str] = []
        for before in job_of(name).after:
            found += [before] if before in among else self.comes_after(before, among)
        implied = {earlier for job in found for earlier in self._all_before(job)}
        return tuple(job for job in dict.fromkeys(found) if job not in implied)

    def _all_before(self, name: str) -> set[str]:
        after = job_of(name).after
        return set(after) | {earlier for before in after for earlier in self._all_before(before)}

    def command(self, *names: str) -> str:
        """What to type for these jobs, or groups of jobs, on this machine; empty where the profile has none of them.

        Raises:
            UserError: when a recipe is wrong.
        """
        jobs = [job for name in names for job in GROUPS.get(name, (name,)) if job in self.jobs]
        return typed(self, [command for job in jobs for command in self.plan(job).commands])

    def plan(self, name: str, overrides: Sequence[str] = ()) -> Plan:
        """Load the job's recipe.

        Raises:
            UserError: a RecipeError, or a JobError for an unknown job or folder.
        """
        job = job_of(name)
        self._check_folder()
        return job.plan(self, job, overrides)

    def _check_folder(self) -> None:
        if not self.recipes.is_dir():
            raise JobError(f"There is no folder of recipes {self.recipes}. PROFILE names a folder of recipes/.")
