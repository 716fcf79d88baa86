"""Which checkpoints get an evaluation job while training goes on; sbatch is a stand-in that notes its arguments."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.test_submission import Login, finish_stage, login

__all__ = ["login"]  # a fixture

EVALUATION = {
    "output": "eval",
    "data": "eval_data",
    "suites": {"base": {"tasks": {"piqa": {}}}, "talk": {"modes": ["think"], "tasks": {"gsm_plus": {}}}},
    "checkpoints": {"every_steps": 4, "suites": ["base"]},
}


@pytest.fixture
def run_folder(login: Login) -> Path:
    (login.root / "recipes" / "eval.yaml").write_text(yaml.safe_dump(EVALUATION))
    for step in (2, 4, 6, 8):
        finish_stage(login, "stage1", step)
    unfinished = login.root / "runs" / "stage1" / "checkpoints" / "12.tmp"
    unfinished.mkdir()
    return login.root / "runs" / "stage1"


def look(login: Login, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "slurm.checkpoint_evaluations", "pretrain_stage1"]
    inside = {"SLURM_JOB_ID": "3", "SLURM_NTASKS": "2"}
    return subprocess.run(
        command, env=login.environment | inside | environment, capture_output=True, text=True, timeout=60
    )


def test_each_due_checkpoint_is_submitted_once_and_survives_pruning(login: Login, run_folder: Path) -> None:
    assert "step 4: job 1\nstep 8: job 2" in look(login).stdout
    first, second = login.submitted()
    assert first.split()[-1] == str(Path("slurm/eval_checkpoint.sh").resolve())
    assert f"--export=ALL,CHECKPOINT={run_folder}/evaluations/4 " in first
    assert f"--export=ALL,CHECKPOINT={run_folder}/evaluations/8 " in second
    assert "--dependency=singleton" in first and "--job-name=eval_checkpoint_stage1" in first
    assert look(login).stdout == "" and len(login.submitted()) == 2
    shutil.rmtree(run_folder / "checkpoints" / "4")
    assert (run_folder / "evaluations" / "4" / "checkpoint" / "checkpoint.json").is_file()


def test_a_job_does_not_hand_down_what_slurm_told_it_about_itself(login: Login, run_folder: Path) -> None:
    (login.bin / "sbatch").write_text('#!/bin/bash\nenv >"$(dirname "$0")/environment"\necho 1\n')
    look(login)
    names = [line.partition("=")[0] for line in (login.bin / "environment").read_text().splitlines()]
    assert "RECIPES" in names and not [name for name in names if name.startswith("SLURM_J") or name == "SLURM_NTASKS"]


def test_a_checkpoint_stays_due_while_the_queue_is_full(login: Login, run_folder: Path) -> None:
    working = (login.bin / "sbatch").read_text()
    (login.bin / "sbatch").write_text("#!/bin/bash\necho 'Job violates QOS limit' >&2\nexit 1\n")
    answer = look(login)
    assert answer.returncode == 2 and "sbatch refused: Job violates QOS limit" in answer.stderr
    (login.bin / "sbatch").write_text(working)
    assert "step 4: job 1" in look(login).stdout


def test_suites_that_talk_do_not_fit_a_base_model(login: Login, run_folder: Path) -> None:
    recipe = EVALUATION | {"checkpoints": {"every_steps": 4, "suites": ["talk"]}}
    (login.root / "recipes" / "eval.yaml").write_text(yaml.safe_dump(recipe))
    assert "No suite 'talk' that runs without a chat template. Fitting: base." in look(login).stderr
