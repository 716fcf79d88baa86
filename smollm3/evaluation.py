"""Verbs that evaluate models, and compare what came out."""

from pathlib import Path
from typing import Any

import click

from foundation.errors import UserError
from foundation.paths import plain_name
from foundation.plain_text import plain
from foundation.recipe.loading import names_and_overrides
from jobs.profile import Profile
from smollm3.models import final_model, model_folder
from smollm3.options import DEFAULT_PROFILE, Place, recipe_file, takes_profile, takes_recipes

_FILE = Place(dir_okay=False)
_FOLDER = Place(file_okay=False)
_suite_option = click.option(
    "--suite", "suites", multiple=True, metavar="SUITE", help="Only this suite (may be repeated); default: all."
)
_tolerance_option = click.option(
    "--tolerance", type=click.FloatRange(0), default=2.0, show_default=True, help="In standard errors."
)


@click.command("eval")
@takes_recipes("eval.yaml", several=False)
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Default: RUN/hf/merged; may be repeated.")
@click.option("--name", help="Of the one model in results and tables; default: its folder's.")
@_suite_option
@click.option("--dry-run", is_flag=True, help="Resolve tasks, data and prompts, load no weights.")
def evaluate(
    profile: Profile, recipes: list[Path], overrides: list[str], models: tuple[str, ...], name: str | None,
    suites: tuple[str, ...], dry_run: bool,
) -> None:  # fmt: skip
    """Evaluate models on the suites of RECIPE, the profile's eval.yaml unless given.

    MODEL is a transformers folder, or the name of one in RUN/hf; without --suite it gets every suite that it can take.
    What is finished is not repeated. The data must be on disk (smollm3 eval-data); the tiny profile's is written first.
    """
    if name and len(models) > 1:
        raise click.UsageError("--name is for one --model; several are called like their folders.")
    folders = [model_folder(profile, model) for model in models] or [final_model(profile)]
    if len({folder.name for folder in folders}) < len(folders):
        raise UserError("Two models of one name would write the same results. Evaluate one at a time, with --name.")
    if name is not None:
        plain_name(name)  # it becomes a folder of the results
    from eval.data import write_edition
    from eval.evaluate import evaluate as run
    from eval.recipe import load_eval_recipe

    recipe = load_eval_recipe(recipes[0], overrides)
    data = Path(recipe.data)
    if profile.recipes.name == DEFAULT_PROFILE and not (data.is_dir() and any(data.iterdir())):
        click.echo(f"{data}: {write_edition(recipe, 'small')} sets of our own items")
    for folder in folders:
        run(recipe, folder, name, suites or None, dry_run=dry_run)


@click.command("eval-data")
@takes_recipes("eval.yaml", several=False)
@click.option(
    "--edition", type=click.Choice(["small", "full"]), default="small", show_default=True,
    help="Our own items in each set's schema, or the real sets from the hub.",
)  # fmt: skip
@_suite_option
@click.option("--mirror", type=_FOLDER, help="Folder with copies of the hub's repositories, OWNER/NAME.")
@click.option("--replace", is_flag=True, help="Real sets that are there may be replaced.")
@click.option("--pack", type=_FILE, metavar="FILE", help="Also write everything into one tar file.")
def eval_data(
    profile: Profile, recipes: list[Path], overrides: list[str], edition: Any, suites: tuple[str, ...],
    mirror: Path | None, replace: bool, pack: Path | None,
) -> None:  # fmt: skip
    """Put the data of RECIPE's suites on disk, so that evaluating never needs a network.

    RECIPE is the profile's eval.yaml unless given. Our own items, a few dozen of each set, are marked in every table. A
    real set that is there is never replaced by them or by another revision unless --replace says so.
    """
    from eval.data import write_edition
    from eval.recipe import load_eval_recipe

    recipe = load_eval_recipe(recipes[0], overrides)
    count = write_edition(recipe, edition, suites or None, mirror=mirror, replace=replace, pack_into=pack)
    click.echo(f"{count} datasets, edition {edition}, in {recipe.data}")
    if pack:
        click.echo(f"packed: {pack}. On a machine without network: mkdir -p DATA && tar -xf {pack} -C DATA")


@click.command("eval-curve")
@takes_profile
@click.argument("arguments", nargs=-1, metavar="[RUN_FOLDER...] [section.key=value ...]")
@click.option("--recipe", default="eval", metavar="RECIPE", help="Evaluation recipe; default: the profile's eval.yaml.")
@click.option("--suite", "suites", multiple=True, metavar="SUITE", help="May be repeated; default: base.")
@click.option("--reference", type=_FILE, help="curve.json of the run to be held against.")
@_tolerance_option
def eval_curve(
    profile: Profile, arguments: tuple[str, ...], recipe: str, suites: tuple[str, ...], reference: Path | None,
    tolerance: float,
) -> int:  # fmt: skip
    """Evaluate every checkpoint of pretraining runs, and draw the scores against tokens.

    RUN_FOLDERs are folders or names such as stage1, the profile's stages unless given. What is evaluated already is not
    repeated, so the same command follows a run that is still going. With --reference the exit code is 1 if a score lies
    more than --tolerance standard errors below the other run's at the same number of tokens.
    """
    from eval.curve import below_band, follow, read_curve
    from eval.recipe import load_eval_recipe

    held_against = read_curve(reference) if reference else None
    folders, overrides = names_and_overrides(arguments)
    loaded = load_eval_recipe(recipe_file(profile.recipes, recipe), overrides)
    runs = [_run_folder(profile, folder) for folder in folders] or _stage_runs(profile)
    curve = follow(loaded, runs, suites or ("base",))
    return _report(below_band(curve, held_against, tolerance) if held_against else [])


def _run_folder(profile: Profile, name: str) -> Path:
    """The folder at the path `name`, or of that name in the profile's run folder."""
    return Path(name) if Path(name).is_dir() else profile.run / name


def _stage_runs(profile: Profile) -> list[Path]:
    runs = [profile.plan(job).folder for job in profile.pretraining if job.startswith("pretrain_")]
    begun = [run for run in runs if (run / "checkpoints").is_dir()]
    if not begun:
        raise UserError(f"No stage of {profile.recipes} has a checkpoint in {profile.run} yet. Give a RUN_FOLDER.")
    return begun


def _report(failures: list[str]) -> int:
    for failure in failures:
        click.echo(plain(failure), err=True)
    return 1 if failures else 0


@click.command("eval-report")
@takes_profile
@click.argument("results", required=False, type=_FOLDER)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model (may be repeated).")
@click.option("--reference", metavar="NAME", help="The model that the others are held against.")
@_tolerance_option
def eval_report(
    profile: Profile, results: Path | None, models: tuple[str, ...], reference: str | None, tolerance: float
) -> int:
    """Show all evaluations so far side by side, and beside the announced scores.

    RESULTS is the output folder of an evaluation recipe, RUN/eval unless given; table.md and table.html are written
    there. With --reference the exit code is 1 if a score of another model lies more than --tolerance standard errors of
    the difference below that model's.
    """
    from eval.tables import build_table, of_models, read_results, regressions, write_tables

    results = results or profile.run / "eval"
    found = read_results(results)
    table = build_table(of_models(found, models) if models else found)
    failures = regressions(table, reference, tolerance) if reference else []
    click.echo(write_tables(results, table))
    return _report(failures)


@click.command("eval-checkpoint")
@click.argument("folder", type=_FOLDER)
@click.option("--model", type=_FOLDER, required=True, help="The exported model, removed in the end.")
def eval_checkpoint(folder: Path, model: Path) -> None:
    """Join a checkpoint's evaluation to its run; the job slurm/eval_checkpoint.sh ends with it.

    FOLDER is RUN_FOLDER/evaluations/STEP. Its results go to RUN_FOLDER/evaluations.jsonl and to wandb under the same
    step; then the copies of the weights are removed.
    """
    from eval.checkpoint import join_checkpoint

    join_checkpoint(folder, model)
