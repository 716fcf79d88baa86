"""Verbs that pretrain, look after checkpoints, and turn them into model folders and back."""

import re
from pathlib import Path

import click

from foundation.errors import UserError
from foundation.plain_text import plain
from jobs.plan import typed
from jobs.profile import Profile
from smollm3.options import Place, refuse_other_phases, takes_profile, takes_recipes

_FOLDER = Place()


@click.command()
@takes_recipes()
def train(profile: Profile, recipes: list[Path], overrides: list[str]) -> None:
    """Pretrain RECIPEs on this machine, one after the other, each from the newest checkpoint of its run folder on.

    A RECIPE is a file or a name such as pretrain_stage1. Everything that can be checked is checked before a process
    starts; then as many processes as the layout needs share the machine's cores. On a cluster: smollm3 submit.
    """
    from nanotron_ext.launch import launch

    refuse_other_phases(recipes, "train")
    launch(recipes, overrides)


@click.command()
@click.argument("source", metavar="FROM", type=_FOLDER)
@click.argument("out", metavar="TO", type=_FOLDER)
@click.option("--tokenizer", type=_FOLDER, help="Tokenizer folder; default: the run's.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Default: the model's training dtype.")
@click.option("--yarn-factor", type=float, help="Declare the model for so many times its trained length.")
@click.option("--replace", is_flag=True, help="Overwrite the model that TO holds.")
def export(
    source: Path, out: Path, tokenizer: Path | None, dtype: str | None, yarn_factor: float | None, replace: bool
) -> None:
    """Write a checkpoint as a transformers folder, for every transformers release since 4.53.

    FROM is a checkpoint folder, or a run folder, which stands for its newest checkpoint.
    """
    from nanotron_ext.export import export as write

    written = write(source, out, tokenizer, dtype, replace, yarn_factor)
    click.echo(f"Wrote {written}. Load it with transformers.AutoModelForCausalLM.from_pretrained({str(written)!r}).")


@click.command("import")
@click.argument("model")
@click.argument("out", metavar="RUN_FOLDER", type=_FOLDER)
def import_model(model: str, out: Path) -> None:
    """Write a transformers SmolLM3 as a checkpoint to go on from.

    MODEL is a transformers folder of any release, or a hub name. The checkpoint holds weights and no optimizer state: a
    run that continues it starts Adam afresh.
    """
    from nanotron_ext.import_hf import import_hf, local_folder

    click.echo(f"Wrote {import_hf(local_folder(model), out)}.")


@click.group()
def checkpoints() -> None:
    """Look after the checkpoints of a run: list, verify, prune, upload."""


@checkpoints.command("list")
@click.argument("run_folder", type=_FOLDER)
def list_checkpoints(run_folder: Path) -> None:
    """Every checkpoint: step, size, the layout that wrote it, when, whether it is in use."""
    from nanotron_ext import checkpoint
    from nanotron_ext.inspection import describe

    checkpoint.resolve_checkpoint(run_folder)  # says so if there is none
    click.echo("     step       size        files  written by            when")
    for folder in checkpoint.list_checkpoints(run_folder):
        click.echo(plain(describe(folder)))
    for leftover in sorted((run_folder / "checkpoints").glob("*.*")):
        what = "not a checkpoint: a save or a deletion that is under way or was interrupted"
        click.echo(plain(f"{leftover.name:>9}  {what}"))


@checkpoints.command()
@click.argument("run_folder", type=_FOLDER)
@click.option("--step", type=int, help="Only this one.")
def verify(run_folder: Path, step: int | None) -> int:
    """Read everything: sizes, checksums, and that every parameter is whole. Exit code 1 if anything is damaged."""
    from nanotron_ext import checkpoint
    from nanotron_ext.inspection import problems_of

    one = [] if step is None else [checkpoint.checkpoint_folder(run_folder, step)]
    folders = one or checkpoint.list_checkpoints(run_folder)
    if not folders:
        checkpoint.resolve_checkpoint(run_folder)
    damaged = 0
    for folder in folders:
        problems = problems_of(folder)
        damaged += bool(problems)
        click.echo(plain(f"{folder}: {'; '.join(problems) or 'whole'}"))
    return 1 if damaged else 0


@checkpoints.command()
@click.argument("run_folder", type=_FOLDER)
@click.option("--keep-last", type=click.IntRange(1), required=True, help="How many of the newest stay.")
@click.option("--keep-every-steps", type=click.IntRange(1), help="Those of every n-th step stay for ever.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
def prune(run_folder: Path, keep_last: int, keep_every_steps: int | None, dry_run: bool) -> None:
    """Delete all but the last --keep-last and every --keep-every-steps-th; never one that is being read."""
    from nanotron_ext import checkpoint
    from nanotron_ext.retention import prune_checkpoints, superfluous

    checkpoint.resolve_checkpoint(run_folder)
    wanted = superfluous(run_folder, keep_last, keep_every_steps)
    gone = wanted if dry_run else prune_checkpoints(run_folder, keep_last, keep_every_steps)
    for folder in wanted:
        what = "kept, in use" if folder not in gone else "would be deleted" if dry_run else "deleted"
        click.echo(f"{folder}: {what}")
    left = len(checkpoint.list_checkpoints(run_folder)) - (len(gone) if dry_run else 0)
    click.echo(f"{left} {'checkpoint stays' if left == 1 else 'checkpoints stay'}.")


@checkpoints.command()
@click.argument("run_folder", type=_FOLDER)
def upload(run_folder: Path) -> None:
    """Copy to object storage (the run's checkpoints.remote_path) what is not there yet."""
    from foundation.recipe import load_recipe
    from nanotron_ext import checkpoint, storage

    checkpoint.resolve_checkpoint(run_folder)
    recipe = load_recipe(run_folder / checkpoint.RECIPE_FILE)
    if recipe.checkpoints.remote_path is None:
        raise UserError(f"{run_folder / checkpoint.RECIPE_FILE} has no checkpoints.remote_path to upload to.")
    remote = storage.RemoteCheckpoints(recipe)
    for folder in storage.not_uploaded(run_folder):
        storage.upload_patiently(remote, folder)
        click.echo(f"{folder}: uploaded to {remote.url}")


@click.command()
@click.argument("run_folder", type=_FOLDER)
@click.option("--to-step", type=int, required=True, help="Step of the checkpoint to continue from.")
@click.option("--skip-samples", metavar="FIRST-LAST", help="Samples to leave out; the range grows to whole batches.")
def rewind(run_folder: Path, to_step: int, skip_samples: str | None) -> None:
    """Continue a run from an earlier step, leaving out samples: the remedy for a loss spike.

    Nothing may train in RUN_FOLDER now, and nothing is trained here: the run's next start continues from that step.
    Samples are counted over the whole run, as messages about spikes give them. Later checkpoints and the metrics so far
    move to RUN_FOLDER/rewound/<n>/, also in object storage, and the ledger keeps account.
    """
    from nanotron_ext.rewind import rewind as go_back

    samples = None
    if skip_samples is not None:
        if not (match := re.fullmatch(r"(\d+)-(\d+)", skip_samples)):
            raise click.BadParameter(f"{skip_samples!r} is not a range like 1024-1279.", param_hint="--skip-samples")
        samples = int(match[1]), int(match[2])
    skipped = go_back(run_folder, to_step, samples)
    without = f" without samples {skipped[0]} to {skipped[0] + skipped[1] - 1}" if skipped else ""
    click.echo(f"The next start continues from step {to_step}{without}.")


@click.command()
@takes_profile
def summary(profile: Profile) -> None:
    """Losses of the stages, held-out bits per byte beside baselines, and a sample of text.

    Reads the stages' run folders and the exported model of the last one; writes eval/pretraining.json.
    """
    from eval.pretraining import summarise
    from foundation.recipe import load_recipe

    stages = [load_recipe(profile.recipes / f"{job}.yaml") for job in profile.jobs if job.startswith("pretrain")]
    if not stages:
        raise UserError(f"{profile.recipes} has no recipe pretrain_stage*.yaml.")
    model = profile.run / "hf" / stages[-1].general.run
    if not (model / "config.json").is_file():
        command = typed(profile, [("export", str(stages[-1].run_folder), str(model))])
        raise UserError(f"There is no model {model}. Write it: {command}")
    summarise([stage.run_folder for stage in stages], model, profile.run / "eval" / "pretraining.json")
