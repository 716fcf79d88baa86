"""Stop runs by signals at named moments of their lives, and show that they end as if nothing had happened.

Part of `make chaos`. Each run is stopped twice, while it trains and at the next of the moments, by SIGTERM or SIGUSR1
to one rank or to all; every rank has to end with exit code 75 (0 when it was finished by then), leave only whole
checkpoints, one more than before if there was anything to save, and say so in outcome.json. Then it goes on to its end,
which has to equal that of the uninterrupted run bit for bit.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides, tiny_recipe
from tests.nanotron_ext.train.moments import FINISHED, MOMENTS, STOPPED, Moment, catches_sigterm, run_and_stop

IMPORTS = "imports"  # of a process as a user starts it; the others are forks of one that has done them
NAMES = (IMPORTS, *MOMENTS)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def stop_twice(root: Path, recipe: Recipe, changes: dict[str, object], name: str, steps: int, random: Random) -> str:
    """While the run trains, and at the moment `name`. Returns what was done; AssertionError if a rank ends wrongly."""
    training = dataclasses.replace(MOMENTS["training"], number=random.randint(1, steps // 3))
    done = [_stop(root, recipe, changes, "training", training, random)]
    if name == IMPORTS:
        done.append(_stop_imports(root, recipe, changes, random))
    else:
        done.append(_stop(root, recipe, changes, name, MOMENTS[name], random))
    ending = run_and_stop(root, recipe, changes, None, limit_seconds=300)
    assert set(ending.codes) == {FINISHED}, ending.log
    return "; ".join(done)


def _stop(root: Path, recipe: Recipe, changes: dict[str, object], name: str, moment: Moment, random: Random) -> str:
    before = _whole_steps(recipe)
    victim = 0 if moment.first_rank_only else random.randrange(recipe.parallelism.world_size)
    number, to_all = random.choice(SIGNALS), random.random() < 0.5
    ending = run_and_stop(root, recipe, changes, moment, number, victim, to_all, limit_seconds=300)
    whom = "all ranks" if to_all else f"rank {victim}"
    what = f"{number.name} to {whom} in {name} {moment.number}"
    if not ending.came_there:
        assert set(ending.codes) == {FINISHED}, ending.log
        return f"{what}, which did not come"
    assert set(ending.codes) == {moment.exit_code}, f"{what}: exit codes {ending.codes}: {ending.log}"
    after = _whole_steps(recipe)
    if moment.exit_code == STOPPED:
        assert (after[-1:] > before[-1:]) == moment.saves, f"{what}: {after} after {before}: {ending.log}"
        assert _outcome(recipe) in (None, "stopped") or not moment.saves, what
    else:
        assert _outcome(recipe) == "finished", what
    return what


def _stop_imports(root: Path, recipe: Recipe, changes: dict[str, object], random: Random) -> str:
    before, delay, number = _whole_steps(recipe), random.uniform(0, 0.6), random.choice(SIGNALS)
    command = [sys.executable, "-m", "nanotron_ext.train", RECIPE_PATH, *overrides(root, **changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not catches_sigterm(process.pid):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == STOPPED, output.decode()
    after = _whole_steps(recipe)  # on a fast machine it may train by then, and leave a newer one
    assert after[-1:] >= before[-1:], f"{after} after {before}: {output.decode()}"
    return f"{number.name} {delay:.1f} s behind the first line of a program that imports"


def _whole_steps(recipe: Recipe) -> list[int]:
    readers = [CheckpointReader(folder) for folder in list_checkpoints(recipe.run_folder)]
    assert not any(reader.damaged_files() for reader in readers)
    return [reader.step for reader in readers]


def _outcome(recipe: Recipe) -> Any:
    file = recipe.run_folder / "outcome.json"
    return json.loads(file.read_text())["outcome"] if file.is_file() else None


def _training(final: Any) -> Any:
    """Without what a stop adds: a checkpoint, and the data's state in its row."""
    state, metrics, samples, _ = final
    return state, [{key: value for key, value in row.items() if key != "data"} for row in metrics], samples


def stop_runs(chaos: Any, count: int) -> tuple[int, list[int]]:
    """So many runs of `chaos`; how many signals were sent, and the numbers of runs that ended differently."""
    from tests.chaos import LAYOUTS, STEPS, changes, final_state

    signals, failures = 0, []
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        layout = LAYOUTS[-1] if name == IMPORTS else LAYOUTS[number % len(LAYOUTS)]
        run_changes = changes(layout, f"stop{number}")
        run_changes["checkpoints"] = (
            str(run_changes["checkpoints"])[:-1] + f", remote_path: file://{chaos.root}/bucket}}"
        )
        recipe = tiny_recipe(chaos.root, **run_changes)
        try:
            reference = chaos.reference(layout)
            done = stop_twice(chaos.root, recipe, run_changes, name, STEPS, chaos.random)
            same = _training(final_state(recipe)) == _training(reference.outcome)
            assert same, "the end differs from the uninterrupted run"
        except AssertionError as error:
            failures.append(number)
            print(f"stops {number + 1}/{count}: FAILED: {error}", flush=True)
            continue
        signals += 2 - done.count("did not come")
        shutil.rmtree(recipe.run_folder)
        layout_name = " x ".join(f"{key} {value}" for key, value in layout.items())
        print(f"stops {number + 1}/{count}: {layout_name}: {done}: equal", flush=True)
    return signals, failures
