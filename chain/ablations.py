"""The ablations of the announcement.

Trains `pretrain_ablation.yaml` of the profile as it is and with each overlay of recipes/ablations/, all under several
seeds, and compares each overlay with the base, seed by seed. Finished runs are not repeated; see RUN/ablations.
"""

import difflib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from chain.steps import ChainError
from foundation.intervals import t_interval
from foundation.journal import METRICS_FILE, last_rows
from foundation.project import recipe_place
from foundation.recipe import load_recipe
from foundation.secrets import for_jobs
from foundation.terminal import Terminal

OVERLAYS = Path("recipes/ablations")
BASE = "base"
_SET_FOR_EACH_RUN = ("general.seed", "data.seed", "general.runs_path", "general.run")
_LAST_STEPS = 10  # the training loss is a mean over so many steps


@dataclass(frozen=True)
class Outcome:
    """One run's end: losses in nats per token, held-out text in bits per byte (mean over the sources)."""

    variant: str
    seed: int
    training_loss: float
    bits_per_byte: float


@dataclass(frozen=True)
class Effect:
    """A variant's mean difference to the base over the seeds, with its 95 % interval; positive is worse."""

    variant: str
    measure: str
    base: float
    difference: float
    low: float
    high: float

    @property
    def conclusion(self) -> str:
        if self.low <= 0 <= self.high:
            return f"{self.variant}: no difference can be concluded from these runs; the interval contains 0"
        worse = "worse" if self.difference > 0 else "better"
        return f"{self.variant}: {worse} than the base at this size and length; the interval does not contain 0"


def effect_of(variant: str, measure: str, outcomes: Sequence[Outcome]) -> Effect:
    """Paired by seed: data order and initialisation are the same on both sides. Student's t over the differences.

    Raises:
        ChainError: with fewer than two seeds, which give no interval.
    """
    by_run = {(outcome.variant, outcome.seed): float(getattr(outcome, measure)) for outcome in outcomes}
    seeds = sorted(seed for name, seed in by_run if name == variant)
    if len(seeds) < 2:
        raise ChainError("An interval needs at least two seeds: --seeds 42,43,44")
    differences = [by_run[variant, seed] - by_run[BASE, seed] for seed in seeds]
    difference = t_interval(differences)
    base = statistics.fmean(by_run[BASE, seed] for seed in seeds)
    return Effect(variant, measure, base, difference.value, difference.low, difference.high)


def train(recipe: Path, variant: str, seed: int, folder: Path, overrides: Sequence[str]) -> Outcome:
    """Run one variant under one seed, unless it is done, and read its end.

    Raises:
        ChainError: when the run fails; its own words stand in the terminal.
    """
    run = f"{variant}-{seed}"
    arguments = ["--with", str(_overlay(variant))] if variant != BASE else []
    arguments += [f"general.seed={seed}", f"data.seed={seed}", f"general.runs_path={folder}", f"general.run={run}"]
    command = [sys.executable, "-m", "smollm3", "train", str(recipe), *arguments, *overrides]
    if subprocess.run(command, env=for_jobs()).returncode:
        raise ChainError(f"{run} failed: {' '.join(command[1:])}")
    rows = last_rows(folder / run / METRICS_FILE, _LAST_STEPS)
    held_out = rows[-1].get("validation_bits_per_byte")
    if not held_out:
        raise ChainError(f"{recipe} does not validate at its last step; set tokens.val_check_interval so that it does.")
    loss = statistics.fmean(row["loss"] for row in rows)
    return Outcome(variant, seed, loss, statistics.fmean(held_out.values()))


def _overlay(variant: str) -> Path:
    return recipe_place(OVERLAYS) / f"{variant}.yaml"


def show(effects: Sequence[Effect], seeds: Sequence[int], console: Console) -> None:
    table = Table(
        title=f"Difference to the base, seeds {', '.join(map(str, seeds))}", box=box.SIMPLE, title_justify="left"
    )
    for heading in ("variant", "measure", "base", "difference", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("variant", "measure") else "right")
    for effect in effects:
        interval = f"[{effect.low:+.4f}, {effect.high:+.4f}]"
        table.add_row(effect.variant, effect.measure, f"{effect.base:.4f}", f"{effect.difference:+.4f}", interval)
    console.print(table)
    for effect in effects:
        if effect.measure == "bits_per_byte":
            console.print(effect.conclusion)


def run_ablations(
    recipes: Path, run: Path, seeds: Sequence[int], variants: Sequence[str], overrides: Sequence[str]
) -> None:
    """Train what is missing, and write RUN/ablations/ablations.json.

    Raises:
        UserError: an unknown variant or a wrong recipe, before anything runs; or a run that failed.
    """
    if fixed := [override for override in overrides if override.partition("=")[0] in _SET_FOR_EACH_RUN]:
        raise ChainError(f"{fixed[0]}: every run is given its own {', '.join(_SET_FOR_EACH_RUN)}. Leave it out.")
    known = sorted(path.stem for path in recipe_place(OVERLAYS).glob("*.yaml"))
    unknown = [variant for variant in variants if variant not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}."
        raise ChainError(f"There is no ablation {unknown[0]!r} in {OVERLAYS}. {hint}")
    recipe, folder = recipes / "pretrain_ablation.yaml", run / "ablations"
    chosen = list(variants) or known
    for variant in chosen:
        load_recipe(recipe, [str(_overlay(variant)), *overrides])
    jobs = [(variant, seed) for seed in seeds for variant in (BASE, *chosen)]
    outcomes = []
    for number, (variant, seed) in enumerate(jobs, 1):
        print(f"== [{number}/{len(jobs)}] {variant}, seed {seed}", flush=True)
        outcomes.append(train(recipe, variant, seed, folder, overrides))
    effects = [effect_of(v, measure, outcomes) for v in chosen for measure in ("bits_per_byte", "training_loss")]
    document = {
        "format": "ablations/1",
        "seeds": list(seeds),
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "effects": [asdict(effect) | {"conclusion": effect.conclusion} for effect in effects],
    }
    (folder / "ablations.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(effects, seeds, Terminal())
    print(f"ablations: {folder / 'ablations.json'}; `smollm3 report` draws them.")
