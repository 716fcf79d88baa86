"""A save that takes longer than the time-out for hangs completes, seen from outside: fsync and write are slow."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from foundation.journal import TIMINGS_FILE, read_metrics, read_rows
from foundation.launch import torchrun_command
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides, prepare, tiny_recipe

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a slow disk needs a C compiler")


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("slow_disk") / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def start(
    root: Path, slow_disk: Path, path_part: str, seconds: int, write_seconds: int = 0, **changes: object
) -> subprocess.Popen[str]:
    """The run as a user starts it, where a flush of anything with `path_part` in its path takes so many seconds, and
    each write to it `write_seconds`."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path.cwd()),
        "LD_PRELOAD": str(slow_disk),
        "SLOW_PATH": path_part,
        "SLOW_FLUSH_SECONDS": str(seconds),
        "SLOW_WRITE_SECONDS": str(write_seconds),
    }
    processes = tiny_recipe(root, **changes).parallelism.world_size
    command = torchrun_command(processes, "-m", "nanotron_ext.train", RECIPE_PATH, *overrides(root, **changes))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]


def whole_checkpoints(recipe: Recipe) -> list[int]:
    readers = [CheckpointReader(folder) for folder in list_checkpoints(recipe.run_folder)]
    assert not any(reader.damaged_files() for reader in readers)
    return [reader.step for reader in readers]


def test_saves_slower_than_the_time_out_complete(tmp_path: Path, slow_disk: Path) -> None:
    """Two in a row, so that the second waits for the first and the end for the second; half of the time is start-up."""
    prepare(tmp_path)
    changes: dict[str, object] = {
        "parallelism": "{dp: 2, hang_timeout_seconds: 2}",
        "tokens__stop_step": 2,
        "checkpoints__checkpoint_interval": 1,
    }
    process = start(tmp_path, slow_disk, "exp_avg_sq", 5, **changes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    recipe = tiny_recipe(tmp_path, **changes)
    assert json.loads((recipe.run_folder / "outcome.json").read_text())["outcome"] == "finished"
    assert whole_checkpoints(recipe) == [1, 2]
    assert "for 34 s while it waits for disks or storage" in output
    for step in (1, 2):
        assert re.search(rf"Still writing checkpoint {step}: 0\.00 of 0\.00 GB, \d+ s; waiting for rank \d", output), (
            output
        )


def stop_after_first_step(process: subprocess.Popen[str], recipe: Recipe, how: str) -> None:
    """SIGUSR1 to one rank, or SIGTERM to torchrun, as at a time limit or a preemption."""
    while not read_metrics(recipe.run_folder):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    if how == "SIGTERM":
        process.terminate()
        return
    ranks = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
    os.kill(int(ranks.split()[-1]), signal.SIGUSR1)


ENDLESS = {"tokens__train_steps": 200_000, "data_stages__1__start_training_step": 100_000}


@pytest.mark.parametrize("how", ["SIGUSR1", "SIGTERM"])
def test_a_last_save_slower_than_the_time_out_completes(how: str, tmp_path: Path, slow_disk: Path) -> None:
    """Half of the time is start-up."""
    prepare(tmp_path)
    changes: dict[str, object] = {**ENDLESS, "parallelism": "{dp: 2, hang_timeout_seconds: 2}"}
    recipe = tiny_recipe(tmp_path, **changes)
    process = start(tmp_path, slow_disk, "exp_avg", 3, 1, **changes, checkpoints__checkpoint_interval=10**6)
    stop_after_first_step(process, recipe, how)
    output, _ = process.communicate(timeout=300)
    outcome = json.loads((recipe.run_folder / "outcome.json").read_text())
    assert outcome["outcome"] == "stopped", output
    assert whole_checkpoints(recipe) == [outcome["step"]]
    [saved] = [row for row in read_rows(recipe.run_folder / TIMINGS_FILE) if row["event"] == "save"]
    assert saved["seconds"]["write"] > 2 * (3 + 1)  # so the disk was slow indeed


def test_a_save_that_truly_hangs_is_ended(tmp_path: Path, slow_disk: Path) -> None:
    """The limit for disks is 17 times the time-out, so this takes 34 s and a start; less fails on a busy machine."""
    prepare(tmp_path)
    changes: dict[str, object] = {"parallelism": "{dp: 2, hang_timeout_seconds: 2}", "tokens__stop_step": 2}
    process = start(tmp_path, slow_disk, "exp_avg_sq", 600, **changes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, None)
    assert re.search(r"error: Rank 0 is stuck in step 2 \(writing checkpoint 2: 0\.00 of 0\.00 GB\)", output), output
    recipe = tiny_recipe(tmp_path, **changes)
    assert whole_checkpoints(recipe) == []
    assert json.loads((recipe.run_folder / "outcome.json").read_text())["outcome"] == "crashed"


@pytest.mark.long
@pytest.mark.parametrize("how", ["at the end", "SIGUSR1", "SIGTERM"])
def test_a_save_of_minutes_with_the_default_time_out(how: str, tmp_path: Path, slow_disk: Path) -> None:
    """Six flushes of 45 s, one after the other: 270 s, where nothing but a disk's answer says that anything goes on."""
    prepare(tmp_path)
    changes: dict[str, object] = {"tokens__stop_step": 2} if how == "at the end" else dict(ENDLESS)
    recipe = tiny_recipe(tmp_path, **changes)
    process = start(tmp_path, slow_disk, "/checkpoints", 45, **changes, checkpoints__checkpoint_interval=10**6)
    if how != "at the end":
        stop_after_first_step(process, recipe, how)
    output, _ = process.communicate(timeout=600)
    outcome = json.loads((recipe.run_folder / "outcome.json").read_text())
    assert outcome["outcome"] == ("finished" if how == "at the end" else "stopped"), output
    assert whole_checkpoints(recipe) == [outcome["step"]]
