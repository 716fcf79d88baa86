"""The effects of a chain that ran under several seeds.

Reads the runs RUN-seeds/<seed> with the recipes that lie in them, and writes RUN-seeds/seeds.json: the effects that the
report's verdicts are about, per seed, with mean and interval. The report of RUN shows them.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from foundation.files import write_atomically
from foundation.intervals import t_interval
from jobs.profile import Profile
from report.collect import SEEDS_FILE, collect
from report.effects import Claim, measure


def gather(found: Mapping[int, Sequence[Claim]]) -> dict[str, Any]:
    """The typed JSON: every effect that all seeds have, with mean and 95 % interval (Student's t)."""
    by_seed = [
        {(claim.key, effect.name): effect for claim in claims for effect in claim.effects} for claims in found.values()
    ]
    effects = []
    for key, effect in by_seed[0].items():
        if all(key in other for other in by_seed):
            values = [other[key].value for other in by_seed]
            mean = t_interval(values)
            numbers = {"values": values, "mean": mean.value, "low": mean.low, "high": mean.high}
            effects.append({"claim": key[0], "effect": key[1], "unit": effect.unit, "null": effect.null, **numbers})
    return {
        "format": "chain-seeds/1",
        "seeds": list(found),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "effects": effects,
    }


def show(document: Mapping[str, Any], console: Console) -> None:
    seeds = document["seeds"]
    table = Table(title=f"Effects under the seeds {', '.join(map(str, seeds))}", box=box.SIMPLE, title_justify="left")
    for heading in ("claim", "effect", "unit", *map(str, seeds), "mean", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("claim", "effect", "unit") else "right")
    for effect in document["effects"]:
        numbers = [*(f"{value:.2f}" for value in effect["values"]), f"{effect['mean']:.2f}"]
        interval = f"[{effect['low']:.2f}, {effect['high']:.2f}]"
        table.add_row(effect["claim"], effect["effect"], effect["unit"], *numbers, interval)
    console.print(table)


def measure_seed(folder: Path) -> list[Claim]:
    """The effects of the chain that ran in `folder`, whose recipes lie in its folder recipes.

    Raises:
        UserError: when a recipe or a result cannot be read.
    """
    os.environ["RUN"] = str(folder)  # for ${RUN} in recipes
    return measure(collect(Profile(folder / "recipes", folder)))


def measure_seeds(folder: Path, seeds: Sequence[int], console: Console) -> Path:
    """Measure the chains in `folder`, one under each seed, write seeds.json there and print it; returns the file.

    Raises:
        UserError: when a chain is absent, or a recipe or result cannot be read.
    """
    document = gather({seed: measure_seed(folder / str(seed)) for seed in seeds})
    file = folder / SEEDS_FILE
    write_atomically(file, json.dumps(document, indent=1) + "\n")
    show(document, console)
    return file
