"""Verbs about recipes: can they run, what will they need, how do they differ."""

import json
from pathlib import Path
from typing import Any

import click

from foundation.errors import UserError
from foundation.plain_text import plain
from jobs.profile import Profile
from smollm3.options import FolderForResults, Place, json_option, recipe_file, takes_recipes

_ALL = (
    "pretrain*.yaml", "long_context*.yaml", "midtrain*.yaml", "sft*.yaml", "apo*.yaml", "synthetic*.yaml",
    "merge*.yaml", "eval*.yaml", "*.yaml",
)  # fmt: skip


@click.command()
@takes_recipes(*_ALL)
@click.option("--data", is_flag=True, help="Also look at data, checkpoints and disk space.")
def check(profile: Profile, recipes: list[Path], overrides: list[str], data: bool) -> int:
    """Validate recipes of every phase, without a GPU, in seconds.

    Without RECIPE: all of the profile, and its cluster.yaml. Looks at keys and what must hold between them, at sources
    against the registry, at the recipe that a run starts from, and at the Slurm script's nodes and GPUs against the
    layout. With --data also at what a pretraining run finds on disk: shards, tokenizer, checkpoint to start from, run
    folder and space, and at what a post-training run starts from: its model and local sets are there and not empty.
    Of the hub's it names those that no cache of this machine has; with HF_HUB_OFFLINE they are missing.
    """
    from check.recipes import check as check_recipe

    failures = 0
    for recipe in recipes:
        try:
            click.echo(plain(f"{recipe}: {check_recipe(recipe, data, overrides)}"))
        except UserError as error:
            failures += 1
            said = str(error)
            click.echo(plain(said if said.startswith(f"{recipe}:") else f"{recipe}: {said}"), err=True)
    return 2 if failures else 0


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@json_option
def diff(first: str, second: str, as_json: bool) -> int:
    """Compare two recipes key by key, with their bases, variables and defaults.

    A and B are recipes of any phase, or configurations in nanotron's own schema, whose keys and names of sources are
    translated: what SmolLM3's team published, for example. The exit code is 0 where nothing differs, 1 where something
    does; --json prints a list of {key, left, right}.
    """
    from check.diff import as_json as to_json
    from check.diff import as_text, differences

    a, b = (recipe_file(Path(name).parent, name) for name in (first, second))
    found = differences(a, b)
    text = as_text(Path(first), Path(second), found)
    click.echo(json.dumps([to_json(one) for one in found], indent=1) if as_json else plain(text))
    return 1 if found else 0


@click.command()
@takes_recipes("pretrain_stage*.yaml")
@click.option("--gpu", help="GPU of nanotron_ext/plan/devices.py, or cpu (this machine); default: h100, of tiny cpu.")
@click.option("--nodes", type=click.IntRange(1), help="Nodes of 8 GPUs; default: what the recipe's layout needs.")
@click.option("--price", type=click.FloatRange(0), help="Of a device-hour, in any currency.")
@click.option(
    "--document-tokens",
    type=click.IntRange(1),
    help="Mean document length, weighted by tokens; default: the whole window.",
)
@click.option("--measured", type=Place(exists=True, dir_okay=False), help="A step that bench/step.py measured there.")
@click.option(
    "--trainer", type=click.Choice(["ours", "nanotron"]), default="ours", show_default=True, help="Whose memory."
)
@click.option("--layouts", type=click.IntRange(0), default=8, show_default=True, help="How many other layouts to list.")
@click.option("--out", type=FolderForResults(), metavar="FOLDER", help="Also write FOLDER/<recipe>.json.")
@json_option
def plan(
    profile: Profile, recipes: list[Path], overrides: list[str], gpu: str | None, as_json: bool, **options: Any
) -> None:
    """Predict memory, speed, days, cost and storage of pretraining recipes.

    The figures are for each recipe's layout; then the fastest other layouts that fit follow. --gpu cpu times the
    kernels of this machine. How good the predictions are: docs/planning.md.
    """
    from nanotron_ext.plan.recipes import Options, plan_recipes

    gpu = gpu or ("cpu" if profile.recipes.name == "tiny" else "h100")
    plan_recipes(recipes, overrides, Options(gpu=gpu, as_json=as_json, **options))
