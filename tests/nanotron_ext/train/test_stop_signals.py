"""A stop signal at any moment of a run's life leaves a whole checkpoint or the one before, and the right exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from foundation.journal import read_metrics
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints
from nanotron_ext.train.run import run
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides, prepare, tiny_recipe
from tests.nanotron_ext.train.moments import FINISHED, MOMENTS, STOPPED, catches_sigterm, run_and_stop

TOKENS = "{sequence_length: 16, train_steps: 24, micro_batch_size: 2, val_check_interval: 4, stop_step: %d}"
RESUMED, LAST = 4, 24


def changes(root: Path, name: str, stop_step: int = LAST) -> dict[str, object]:
    return {
        "general__run": name,
        "tokens": TOKENS % stop_step,
        "checkpoints": f"{{checkpoint_interval: 4, remote_path: file://{root}/bucket}}",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def straight(root: Path) -> Recipe:
    recipe = tiny_recipe(root, **changes(root, "straight"))
    run_ranks(run, 2, recipe)
    return recipe


@pytest.fixture(scope="module")
def begun(root: Path) -> Path:
    """Run folder of a run that has come to step 4."""
    recipe = tiny_recipe(root, **changes(root, "begun", RESUMED))
    run_ranks(run, 2, recipe)
    return recipe.run_folder


def assert_ends_as(recipe: Recipe, straight: Recipe) -> None:
    steps = [[row["loss"] for row in read_metrics(one.run_folder)] for one in (recipe, straight)]
    assert steps[0] == steps[1]
    mine, expected = (CheckpointReader(list_checkpoints(one.run_folder)[-1]) for one in (recipe, straight))
    assert mine.step == expected.step == LAST
    for kind in straight.optimizer.state_kinds:
        assert all(torch.equal(mine.read(kind, name), expected.read(kind, name)) for name in expected.names())


@pytest.mark.parametrize("name", MOMENTS)
def test_a_signal_at_any_moment(name: str, root: Path, straight: Recipe, begun: Path) -> None:
    moment = MOMENTS[name]
    victim = 0 if moment.first_rank_only else 1
    run_changes = changes(root, name.replace(" ", "-"))
    recipe = tiny_recipe(root, **run_changes)
    shutil.copytree(begun, recipe.run_folder)
    number = signal.SIGUSR1 if len(name) % 2 else signal.SIGTERM
    ending = run_and_stop(root, recipe, run_changes, moment, number, victim)
    assert ending.came_there, ending.log
    assert ending.codes == [moment.exit_code] * 2, ending.log
    saved = [CheckpointReader(folder) for folder in list_checkpoints(recipe.run_folder)]
    assert not any(reader.damaged_files() for reader in saved)
    newest = saved[-1].step
    if moment.exit_code == FINISHED:
        assert newest == LAST
    else:
        assert (newest > RESUMED) == moment.saves and newest < LAST
    told = json.loads((recipe.run_folder / "outcome.json").read_text())
    if name not in ("checks", "connecting", "comparing"):  # where nothing is written; it is that of the attempt before
        assert told["outcome"] == {STOPPED: "stopped", FINISHED: "finished"}[moment.exit_code]
        assert told["step"] == newest
    if moment.exit_code == STOPPED:
        ending = run_and_stop(root, recipe, run_changes, None)
        assert ending.codes == [0, 0], ending.log
    assert_ends_as(recipe, straight)


@pytest.mark.parametrize("module", ["nanotron_ext.train", "posttrain.train"])
@pytest.mark.parametrize(
    ("number", "delay_seconds"), [(signal.SIGTERM, 0.0), (signal.SIGUSR1, 0.2), (signal.SIGTERM, 0.5)]
)
def test_a_signal_during_imports(module: str, number: signal.Signals, delay_seconds: float, root: Path) -> None:
    arguments = overrides(root, general__run="imports", parallelism="{dp: 1}")
    path = RECIPE_PATH
    if module == "posttrain.train":
        path, arguments = "recipes/tiny/sft.yaml", []
    with subprocess.Popen(
        [sys.executable, "-m", module, path, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        while not catches_sigterm(process.pid):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(delay_seconds)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == STOPPED, errors
    assert f"Stopped by {number.name} before training began: there is nothing to save." in errors
    assert not (root / "runs" / "imports").exists()


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_a_signal_during_compilation(tmp_path: Path) -> None:
    """Compiling for a CPU takes most of a minute; the signal comes when the first kernel is being compiled."""
    prepare(tmp_path)
    stages = '[{"name": "one", "start_training_step": 1, "mixture": {"a": 1.0}}]'
    tokens = "{sequence_length: 16, train_steps: 100000, micro_batch_size: 2}"
    compiled: dict[str, object] = {"parallelism": "{dp: 1, compile: true}", "tokens": tokens, "data_stages": stages}
    command = [sys.executable, "-m", "nanotron_ext.train", RECIPE_PATH, *overrides(tmp_path, **compiled)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("cache/*/*.main.cpp")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == STOPPED, errors
    [checkpoint] = list_checkpoints(tmp_path / "runs" / "run")
    assert int(checkpoint.name) <= 2 and not CheckpointReader(checkpoint).damaged_files()
