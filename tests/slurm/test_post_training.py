"""A job of post-training on a real Slurm that is told to stop, requeued, and goes on."""

import shutil
from pathlib import Path

import pytest

from foundation.launch import torchrun_command
from posttrain.tiny_data import write_sets
from slurm.attempts import read_attempts
from tests.posttrain.runs import FAST, SIZES, assert_same_training, metrics_of
from tests.posttrain.tiny_model import write_model
from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.long
OVERRIDES = [*FAST, "optimizer.num_train_epochs=60", "checkpoints.checkpoint_interval=1000"]
RUNS = ("apo", "apo_seed43")


def test_a_stop_in_the_second_run_of_a_job_costs_no_step(cluster: Cluster, tmp_path: Path) -> None:
    """The apo job on two nodes: both runs in one job, stopped in the second; the models are those of straight runs."""
    run, straight = tmp_path / "stopped", tmp_path / "straight"
    write_model(run / "hf" / "sft", positions=1024)
    write_sets(run / "posttrain_data", 0, SIZES)
    shutil.copytree(run, straight)
    recipes = [f"recipes/tiny/{name}.yaml" for name in RUNS]
    cluster.run(*torchrun_command(2, "-m", "posttrain.train", *recipes, *OVERRIDES), RUN=straight)

    options = ("--nodes=2", "--gres=none", "--time=30")
    job = cluster.sbatch(*options, "slurm/apo.sh", *OVERRIDES, RUN=run)
    cluster.wait_for("the second run", lambda: len(metrics_of(run / "apo_seed43" / "metrics.jsonl")) >= 2)
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))  # as --signal=B:USR1@600 does
    cluster.wait_for_end(job)

    attempts = read_attempts(run / "apo")
    assert [attempt.outcome for attempt in attempts] == ["stopped", "finished"]
    steps = [len(metrics_of(straight / name / "metrics.jsonl")) for name in RUNS]
    assert steps[0] + 2 <= attempts[0].step < attempts[1].step == sum(steps)
    assert cluster.field(job, "JobState") == "COMPLETED"
    for name in RUNS:
        assert_same_training(run / name, straight / name)
