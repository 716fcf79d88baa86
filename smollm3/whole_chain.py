"""Verbs that run the whole chain of a profile on this machine, and measure what came out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from foundation.recipe.loading import names_and_overrides
from jobs.profile import Profile
from smollm3 import completing
from smollm3.options import Place, seeds_option, takes_profile


@contextmanager
def _stops_in_good_order() -> Iterator[None]:
    """What ends a chain early ends its running stage first, which saves."""
    from chain.run import signals_interrupt

    try:
        with signals_interrupt():
            yield
    except KeyboardInterrupt:
        click.echo("\nStopped in good order; the same command goes on from here.", err=True)
        raise click.exceptions.Exit(130) from None


@click.command()
@takes_profile
@click.argument("stages", nargs=-1, metavar="[STAGE...]", shell_complete=completing.stages)
@click.option("--dry-run", is_flag=True, help="Print what would run and why, and run nothing.")
def demo(profile: Profile, stages: tuple[str, ...], dry_run: bool) -> None:
    """Run the chain: data, pretraining, post-training, merge, evaluation, report.

    With STAGEs, such as sft or pretrain, only these. What is done and unchanged (recipe, data and code) is not done
    again; interrupted, the same command goes on. Results that a changed stage replaces are kept in RUN/replaced.
    """
    from chain.run import run_profile

    with _stops_in_good_order():
        run_profile(profile, stages, dry_run=dry_run)


@click.command("demo-seeds")
@takes_profile
@seeds_option(at_least=2)
def demo_seeds(profile: Profile, seeds: tuple[int, ...]) -> None:
    """Run what the report's verdicts need of the chain under several seeds, and measure its effects.

    Each chain runs in RUN-seeds/SEED and goes on where it was interrupted. RUN-seeds/seeds.json gets every effect under
    each seed, with mean and 95 % interval; smollm3 report shows them.
    """
    from chain.seeds import run_seeds

    with _stops_in_good_order():
        folder = run_seeds(profile.recipes, profile.run, seeds)
    _measure(folder, seeds)


@click.command("report-seeds")
@takes_profile
@click.argument("folder", required=False, type=Place(file_okay=False, exists=True))
@seeds_option(at_least=2)
def report_seeds(profile: Profile, folder: Path | None, seeds: tuple[int, ...]) -> None:
    """Measure the effects of chains that have run under several seeds, without running any.

    FOLDER holds a run folder for each seed; RUN-seeds unless given. smollm3 demo-seeds ends with the same.
    """
    _measure(folder or profile.run.with_name(f"{profile.run.name}-seeds"), seeds)


def _measure(folder: Path, seeds: tuple[int, ...]) -> None:
    from foundation.terminal import Terminal
    from report.seeds import measure_seeds

    click.echo(f"seeds: {measure_seeds(folder, seeds, Terminal())}; smollm3 report shows them.")


@click.command()
@takes_profile
@click.argument("arguments", nargs=-1, metavar="[VARIANT...] [section.key=value ...]")
@seeds_option(at_least=2)
def ablations(profile: Profile, arguments: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train the announcement's ablations and their base under several seeds, and compare them seed by seed.

    VARIANTs are names in recipes/ablations, all unless given; section.key=value holds for every run. The base is the
    profile's pretrain_ablation.yaml. Finished runs are not repeated. RUN/ablations/ablations.json gets the differences
    with 95 % intervals; smollm3 report draws them.
    """
    from chain.ablations import run_ablations

    variants, overrides = names_and_overrides(arguments)
    run_ablations(profile.recipes, profile.run, seeds, variants, overrides)


@click.command()
@takes_profile
def report(profile: Profile) -> None:
    """Write one page about the profile's whole chain: RUN/report/index.html, and report.md beside it.

    It is made of whatever lies in the run folder; what has not run yet is shown as missing, with the command for it.
    """
    import sys

    from foundation.terminal import Terminal
    from report.write import write_report

    folder = write_report(profile, Terminal() if sys.stdout.isatty() else Terminal(width=110))
    click.echo(f"report: {folder / 'index.html'} and {folder / 'report.md'}")
