"""Verbs that make data and look at it."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from foundation.errors import UserError
from jobs.profile import Profile
from smollm3.options import Place, json_option, takes_recipes


@click.command()
@takes_recipes("pretrain.yaml", "long_context_*.yaml")
@click.option(
    "--workers", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True, help="Tasks at a time."
)
@click.option("--verify", is_flag=True, help="Read prepared shards again and check them in full.")
@click.option(
    "--raw", type=Place(exists=True, file_okay=False), help="Folder with copies of hub datasets, as RAW/<owner>/<name>."
)
@click.option("--benchmarks", type=Place(file_okay=False), help="Folder with evaluation sets, as <benchmark>.jsonl.")
@click.option(
    "--rebuild",
    multiple=True,
    metavar="SOURCE",
    help="Replace this source if it is no longer what is asked for (may be repeated); all: every such source.",
)
@click.option("--dry-run", is_flag=True, help="Say of each source what is done and what is not, then stop.")
@click.option("--executor", type=click.Choice(["local", "slurm"]), default="local", help="Where tasks run.")
@click.option("--partition", envvar="SBATCH_PARTITION", help="Slurm's; default: $SBATCH_PARTITION.")
@click.option(
    "--time",
    "time_limit",
    envvar="SBATCH_TIMELIMIT",
    default="1-00:00:00",
    help="Slurm's limit for a task.",
    show_default=True,
)
@click.option("--qos", envvar="SBATCH_QOS", default="", help="Slurm's; default: $SBATCH_QOS.")
@click.option(
    "--cpus-per-task",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="In Slurm; more than one only for their memory.",
)
@click.option("--mem-per-cpu", type=click.IntRange(1), default=4, show_default=True, metavar="GB", help="In Slurm.")
def data(
    profile: Profile,
    recipes: list[Path],
    overrides: list[str],
    workers: int,
    verify: bool,
    raw: Path | None,
    benchmarks: Path | None,
    rebuild: tuple[str, ...],
    dry_run: bool,
    executor: str,
    **slurm: Any,
) -> None:
    """Prepare what recipes train on: the tokenizer and the token shards of all sources.

    Running it again does only what is missing. What is prepared already and no longer what the recipes ask for is kept,
    and the command refuses with what changed, until --rebuild names the source.
    """
    from datatrove.utils.logging import logger as datatrove_logger

    from datapipes.prepare import prepare, summary_table
    from foundation.recipe import load_recipe
    from foundation.terminal import Terminal

    datatrove_logger.remove()  # its lines go to the tasks' log files
    console, start = Terminal(), time.monotonic()
    loaded = [load_recipe(recipe, overrides) for recipe in recipes]
    settings = _slurm_settings(**slurm) if executor == "slurm" else None
    try:
        summaries = prepare(loaded, console, workers, verify, raw, benchmarks, settings, rebuild, dry_run)
    except OSError as error:  # a full disk, a source that cannot be read
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("The same command goes on where it stopped; jobs that Slurm has run on meanwhile.", err=True)
        raise
    if not dry_run:
        console.print(summary_table(summaries))
        tokens = sum(row.tokens_out for row in summaries)
        console.print(f"{tokens:,} tokens in {loaded[0].data.path} ({time.monotonic() - start:.1f} s)")


def _slurm_settings(partition: str | None, time_limit: str, qos: str, cpus_per_task: int, mem_per_cpu: int) -> Any:
    from datapipes.executors import SlurmSettings

    if partition is None:
        raise UserError("--executor slurm needs --partition (or SBATCH_PARTITION): `sinfo` lists the cluster's.")
    return SlurmSettings(partition, time_limit, cpus_per_task, mem_per_cpu, qos)


_MAX_EPOCHS = 4.0  # up to here, repeated data is worth almost as much as new data (Muennighoff et al. 2023)


@click.command()
@takes_recipes("pretrain.yaml", several=False)
@click.option(
    "--samples", type=click.IntRange(0), default=0, show_default=True, help="Decoded training samples to print."
)
@click.option(
    "--max-epochs",
    type=click.FloatRange(0, min_open=True),
    default=_MAX_EPOCHS,
    show_default=True,
    help="Warn about more repetitions than that.",
)
@click.option(
    "--lint-windows",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Windows per source to judge; 0: none.",
)
@json_option
def audit(
    profile: Profile,
    recipes: list[Path],
    overrides: list[str],
    samples: int,
    max_epochs: float,
    lint_windows: int,
    as_json: bool,
) -> int:
    """Show what a recipe trains on: the mixture as a tree, samples as the model sees them, a lint of windows.

    The exit code is 2 if the data cannot be trained on; warnings leave it alone.
    """
    import check.audit
    from foundation.recipe import load_recipe
    from foundation.shards.errors import ShardError
    from foundation.terminal import Terminal

    recipe = load_recipe(recipes[0], overrides)
    try:
        result = check.audit.audit(recipe, lint_windows, max_epochs)
        if as_json:
            click.echo(json.dumps(asdict(result), indent=2))
        else:
            console = Terminal()
            console.width = max(console.width, check.audit.MIN_WIDTH)
            check.audit.print_audit(result, max_epochs, console)
            if not result.problems:
                check.audit.print_samples(recipe, samples, console)
    except OSError as error:
        raise UserError(str(error)) from error
    if result.problems:
        raise ShardError(result.problems)
    return 0


@click.command()
@takes_recipes(several=False)
def synthesize(profile: Profile, recipes: list[Path], overrides: list[str]) -> None:
    """Have a teacher answer the prompts of a recipe (synthetic*.yaml). Interrupted, the same command goes on."""
    from datapipes.synthetic.build import build, print_report
    from datapipes.synthetic.recipe import load_recipe
    from foundation.terminal import Terminal

    recipe = load_recipe(recipes[0], overrides)
    report = build(recipe)
    print_report(report, Terminal())
    click.echo(f"{recipe.output_folder / 'train.jsonl'}: {report.rows} rows")
