"""How long starts, saves and restarts took: the parts hold what was made slow, and their sum is what a clock shows."""

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from foundation.journal import TIMINGS_FILE, read_rows
from foundation.recipe import Recipe
from foundation.wandb_run import Wandb
from nanotron_ext.checkpoint import list_checkpoints
from nanotron_ext.train import persistence, step
from nanotron_ext.train import run as run_module
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

SLOW = 0.6  # seconds, on the second rank where both have the part
TOKENS = "{sequence_length: 16, train_steps: 8, micro_batch_size: 2, stop_step: %d}"


def slowed(owner: Any, name: str) -> None:
    function = getattr(owner, name)

    @functools.wraps(function)
    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(SLOW)
        return function(*arguments, **named)

    setattr(owner, name, slow)


def run_slowly(recipe: Recipe, wandb_file: Path) -> tuple[float, float]:
    """Seconds from the call to the first step's end, and of the run."""
    slowed(run_module, "agree")
    slowed(step, "build_model")
    slowed(persistence, "load_checkpoint")
    slowed(persistence, "save_shard")
    slowed(persistence, "finish_checkpoint")
    run_module.load_checkpoint = persistence.load_checkpoint
    log = Wandb.log

    def noted(wandb: Wandb, row: dict[str, Any]) -> None:
        with wandb_file.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")
        log(wandb, row)

    Wandb.log = noted  # type: ignore[method-assign]
    began, first = time.monotonic(), []
    record = run_module.Journal.record

    def recorded(*arguments: Any) -> None:
        record(*arguments)
        first.append(time.monotonic() - began)

    run_module.Journal.record = recorded  # type: ignore[method-assign]
    run_module.run(recipe)
    return (first or [0.0])[0], time.monotonic() - began


def test_starts_saves_and_restarts_are_measured(tmp_path: Path) -> None:
    prepare(tmp_path)
    first = tiny_recipe(tmp_path, tokens=TOKENS % 4)
    [(start_seconds, run_seconds), _] = run_ranks(run_slowly, 2, first, tmp_path / "wandb1")
    ended = time.time()
    time.sleep(1)
    second = tiny_recipe(tmp_path, tokens=TOKENS % 8)
    with (second.run_folder / TIMINGS_FILE).open("a") as file:
        file.write('{"step": 5, "ev')  # what a killed attempt left
    run_ranks(run_slowly, 2, second, tmp_path / "wandb2")
    started, saved, again, last = read_rows(second.run_folder / TIMINGS_FILE)
    assert [path.name for path in list_checkpoints(second.run_folder)] == ["4", "8"]
    events = [(row["step"], row["event"]) for row in (started, saved, again, last)]
    assert events == [(1, "start"), (4, "save"), (5, "start"), (8, "save")]

    parts = ["imports", "checks", "connect", "compare", "build model", "load", "prepare", "first step"]
    assert list(started["seconds"]) == list(again["seconds"]) == parts
    for part in ("compare", "build model"):
        assert started["seconds"][part] > SLOW and again["seconds"][part] > SLOW
    assert again["seconds"]["load"] > SLOW
    # Ranks are forks that live for some time before they call: that counts as imports.
    measured = sum(started["seconds"].values()) - started["seconds"]["imports"]
    assert measured == pytest.approx(start_seconds, abs=0.2)
    assert started["seconds_since_last_step"] is None
    assert 1 < again["seconds_since_last_step"] < time.time() - ended + run_seconds

    for row in (saved, last):
        assert list(row["seconds"]) == ["copy", "write", "commit"]
        assert row["seconds"]["write"] > SLOW and row["seconds"]["commit"] > SLOW  # three files, side by side
    told = [json.loads(line) for name in ("wandb1", "wandb2") for line in (tmp_path / name).read_text().splitlines()]
    steps = [row["step"] for row in told]
    assert steps == sorted(steps)  # wandb drops what comes late
    assert [row["start_seconds"]["load"] for row in told if "start_seconds" in row] == [
        row["seconds"]["load"] for row in (started, again)
    ]
    assert [row["save_seconds"]["total"] for row in told if "save_seconds" in row] == pytest.approx(
        [sum(row["seconds"].values()) for row in (saved, last)]
    )
