"""What a shell offers for words that are names of ours: profiles, recipes and jobs; files where none of them fits."""

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from foundation.errors import UserError
from foundation.project import project_file, recipe_place
from foundation.recipe.phases import PHASES
from jobs.table import GROUPS, JOBS

PROFILES = Path("recipes")  # the folder of profiles


def known_profiles() -> list[str]:
    """Names of the user's own and of the shipped ones; recipes/ablations is none of them."""
    files = (file for place in (PROFILES, project_file(PROFILES)) for file in place.glob("*/*.yaml"))
    return sorted({file.parent.name for file in files if file.stem.startswith(PHASES)})


def profiles(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _offered(known_profiles(), incomplete, "dir")


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of the profile that the command line or a variable names."""
    profile = str(context.params.get("profile") or "")
    places = (recipe_place(PROFILES / profile), recipe_place(Path(profile)))
    try:
        names = [file.stem for place in places for file in place.glob("*.yaml")] if profile else []
    except (OSError, UserError):
        names = []
    return _offered(names, incomplete, "file")


def stages(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = [name for name, job in JOBS.items() if "chain" in job.places and job.in_graph]
    return _offered([*names, *GROUPS], incomplete)


def jobs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _offered((name for name, job in JOBS.items() if "cluster" in job.places and job.in_graph), incomplete)


def _offered(names: Iterable[str], incomplete: str, otherwise: str = "plain") -> list[CompletionItem]:
    """A shell completes paths of the kind `otherwise` where no name fits."""
    fitting = [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]
    return fitting or ([] if otherwise == "plain" else [CompletionItem(incomplete, type=otherwise)])
