"""What the verbs' parameters have in common: profile and run folder, recipes and overrides, JSON."""

import difflib
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from foundation.errors import UserError
from foundation.project import recipe_place
from foundation.recipe.loading import names_and_overrides
from foundation.recipe.phases import PHASES
from jobs.plan import default_run
from jobs.profile import Profile
from smollm3 import completing
from smollm3.completing import PROFILES

DEFAULT_PROFILE = "tiny"
VERB_OF_PHASE = {
    "pretrain": "train", "long_context": "train", "midtrain": "posttrain", "sft": "posttrain", "apo": "posttrain",
    "synthetic": "synthesize", "merge": "merge", "eval": "eval",
}  # fmt: skip
Function = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


class Place(click.Path):
    """A path, given as a `Path`. An empty one, such as a variable that is not set, would be the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not str(value):
            self.fail("It is empty, as of a variable that is not set. Give a path, or leave it out.")
        return super().convert(value, parameter, context)


class FolderForResults(Place):
    """A folder that is there, or can be made."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        folder: Path = super().convert(value, parameter, context)
        nearest = next((place for place in (folder, *folder.parents) if place.exists()), folder)
        if not nearest.is_dir() and nearest.exists():
            self.fail(f"{nearest} is a file. Results need a folder.")
        return folder


class Seeds(click.ParamType):
    """`42,43,44`: so many different seeds, or more."""

    name = "seeds"

    def __init__(self, at_least: int) -> None:
        self.at_least = at_least

    def convert(
        self, value: str | tuple[int, ...], parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            seeds = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of seeds. Separate them by commas, without spaces: 42,43,44.")
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            self.fail(f"{value!r} are not different numbers from 0 on, such as 42,43,44.")
        if len(seeds) < self.at_least:
            self.fail(f"An interval needs at least {self.at_least} seeds, such as 42,43,44.")
        return seeds


def seeds_option(at_least: int) -> Callable[[Function], Function]:
    """Adds --seeds; the function is given `seeds`, a tuple of `at_least` different ones or more."""
    return click.option(
        "--seeds", type=Seeds(at_least), default="42,43,44", show_default=True, metavar="SEED,SEED,...",
        help="Different seeds, separated by commas.",
    )  # fmt: skip


class ArgumentError(UserError):
    """Arguments that cannot be understood; nothing was done."""


def takes_profile(function: Function) -> Function:
    """Adds --profile and --run; the function is given `profile`, a Profile. See `choose_profile`."""

    @_profile_options
    @functools.wraps(function)
    def command(*, profile: str, run: Path | None, **options: Any) -> Any:
        return function(profile=choose_profile(profile_folder(profile), run), **options)

    return command


def takes_recipes(*defaults: str, several: bool = True) -> Callable[[Function], Function]:
    """Adds recipes and overrides as arguments, beside --profile and --run.

    The function is given `profile`, `recipes` (list of files) and `overrides` (list of strings for `load_recipe`).
    Without a recipe on the command line it gets the profile's recipes that match `defaults`, patterns such as
    "pretrain_stage*.yaml", in that order; without `defaults` one must be given. The profile of a recipe that is given
    as a file is its folder, unless --profile says otherwise; then recipes of several folders are refused, whose results
    would share a run folder.
    """

    def decorate(function: Function) -> Function:
        recipe = "RECIPE..." if several else "RECIPE"
        metavar = f"[{recipe}] [section.key=value ...]" if defaults else f"{recipe} [section.key=value ...]"

        @click.argument("arguments", nargs=-1, metavar=metavar, shell_complete=completing.recipes)
        @click.option(
            "--with", "overlays", multiple=True, metavar="FILE", type=Place(exists=True, dir_okay=False),
            help="YAML file whose keys replace the recipe's; may be repeated.",
        )  # fmt: skip
        @_profile_options
        @functools.wraps(function)
        def command(
            *, profile: str, run: Path | None, arguments: tuple[str, ...], overlays: tuple[Path, ...], **options: Any
        ) -> Any:
            named, overrides = names_and_overrides(arguments)
            overrides = [*map(str, overlays), *overrides]
            folder = _folder_of(named)
            by_variable = click.get_current_context().get_parameter_source("run") == ParameterSource.ENVIRONMENT
            chosen = choose_profile(folder or profile_folder(profile), run, says_so=folder is None or by_variable)
            folder = chosen.recipes
            recipes = [recipe_file(folder, name) for name in named]
            if not recipes:
                recipes = list(dict.fromkeys(file for pattern in defaults for file in sorted(folder.glob(pattern))))
            _check_number(folder, recipes, defaults, several)
            return function(profile=chosen, recipes=recipes, overrides=overrides, **options)

        return command

    return decorate


def choose_profile(recipes: Path, run: Path | None, *, says_so: bool = True) -> Profile:
    """The profile of this folder of recipes, named on stderr where variables may have chosen it.

    The run folder (default: runs/<name of the folder>) becomes the environment's RUN, which recipes write as ${RUN};
    job scripts also read the profile from the environment.
    """
    profile = Profile(recipes, run or default_run(recipes))
    os.environ |= {"RUN": str(profile.run), "RECIPES": str(recipes), "PROFILE": default_run(recipes).name}
    if says_so:
        click.echo(f"profile {profile.recipes}, results in {profile.run}", err=True)
    return profile


def profile_folder(profile: str) -> Path:
    """The folder of recipes called `profile`, or at that path: tiny is a name, ./tiny and recipes/tiny are paths.

    Raises:
        ArgumentError: when there is none, or it holds no recipe.
    """
    is_name = Path(profile).name == profile and profile not in ("", "..")
    for folder in (*([recipe_place(PROFILES / profile)] if is_name else []), recipe_place(Path(profile))):
        if profile and folder.is_dir():
            if not any(folder.glob("*.yaml")):
                raise ArgumentError(f"The folder {folder} holds no recipe (*.yaml), so it is no profile.")
            return folder
    known = completing.known_profiles()
    close = difflib.get_close_matches(profile, known, 1)
    raise ArgumentError(
        f"There is no profile {profile!r}: neither a folder of {PROFILES} nor a folder of its own. "
        + (f"Did you mean {close[0]}?" if close else f"Profiles: {', '.join(known)}.")
    )


def recipe_file(folder: Path, name: str) -> Path:
    """The file `name`, or the recipe of that name in the profile's folder (`pretrain_stage1`).

    Raises:
        ArgumentError: when there is neither.
    """
    for file in (recipe_place(Path(name)), folder / f"{name}.yaml"):
        if file.is_file():
            return file
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    close = difflib.get_close_matches(Path(name).stem, known, 1)
    raise ArgumentError(
        f"There is no recipe {name}: neither a file nor a recipe of {folder}. "
        + (f"Did you mean {close[0]}?" if close else f"It has {', '.join(known)}.")
    )


def refuse_other_phases(recipes: Sequence[Path], verb: str) -> None:
    """Raises ArgumentError for a recipe that another verb trains; a file whose name says no phase may be of any."""
    for recipe in recipes:
        phase = next((phase for phase in PHASES if recipe.stem.startswith(phase)), None)
        if phase is not None and VERB_OF_PHASE[phase] != verb:
            raise ArgumentError(f"{recipe} is a recipe of {phase}: smollm3 {VERB_OF_PHASE[phase]} {recipe}")


def _profile_options(function: Function) -> Function:
    profile = click.option(
        "--profile", envvar=["RECIPES", "PROFILE"], default=DEFAULT_PROFILE, show_default=True, metavar="NAME",
        shell_complete=completing.profiles,
        help="Folder of recipes/, or any folder of recipes; the variables PROFILE and RECIPES do the same.",
    )  # fmt: skip
    run = click.option(
        "--run", envvar="RUN", type=FolderForResults(), metavar="FOLDER",
        help="Where results go; default: runs/NAME. The variable RUN does the same.",
    )  # fmt: skip
    return profile(run(function))


def _folder_of(names: Sequence[str]) -> Path | None:
    """The folder of the recipes that are given as files, if the command line names no profile.

    Raises:
        ArgumentError: for recipes of several folders.
    """
    if click.get_current_context().get_parameter_source("profile") == ParameterSource.COMMANDLINE:
        return None
    folders = {file.parent.resolve(): file.parent for name in names if (file := recipe_place(Path(name))).is_file()}
    if len(folders) > 1:
        raise ArgumentError(
            f"The recipes are of several profiles, {' and '.join(map(str, folders.values()))}, whose results would go "
            f"to one run folder. Give those of one profile, or say which with --profile."
        )
    return next(iter(folders.values()), None)


def _check_number(folder: Path, recipes: Sequence[Path], defaults: Sequence[str], several: bool) -> None:
    if not recipes and not defaults:
        raise click.UsageError("No recipe given.")
    if not recipes:
        raise ArgumentError(f"{folder} has no {' or '.join(defaults)}. Give a recipe, or another --profile.")
    if len(recipes) > 1 and not several:
        raise click.UsageError(f"One recipe at a time; {len(recipes)} were given: {', '.join(map(str, recipes))}.")
