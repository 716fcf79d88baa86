"""What is refused before the queue, with stand-ins for Slurm's commands that note what they were asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.small_profile import LAST_STEPS, write_profile

SQUEUE = """#!/bin/bash
cd "$(dirname "$0")"
[[ ! -f queue ]] || cat queue
"""
SBATCH = """#!/bin/bash
cd "$(dirname "$0")"
echo "$*" >>submitted
echo "${MODEL-} ${SUITE-}" >>evaluates
wc --lines <submitted
"""


class Login:
    """A login node: a profile, Slurm's commands, and no cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for name, text in {"squeue": SQUEUE, "sbatch": SBATCH}.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path.cwd()),
            "LOGIN_PYTHON": sys.executable,
            "PROFILE": "small",
            "RECIPES": str(root / "recipes"),
            "RUN": str(root / "runs"),
            "SMOLLM3_SITE": str(root / "site.sh"),
        }

    def submit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["slurm/submit", *arguments], env=self.environment | environment, capture_output=True, text=True
        )

    def submitted(self) -> list[str]:
        file = self.bin / "submitted"
        return file.read_text().splitlines() if file.is_file() else []

    def queue(self, job_id: int, name: str, state: str = "RUNNING") -> None:
        fields = f"{job_id:<20}{name:<60}{state:<20}{'None':<60}{self.root / 'runs'!s:<1000}\n"
        with (self.bin / "queue").open("a") as file:
            file.write(fields)


@pytest.fixture
def login(tmp_path: Path) -> Login:
    write_profile(tmp_path)
    return Login(tmp_path)


def finish_stage(login: Login, stage: str, step: int) -> None:
    folder = login.root / "runs" / stage / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")


def test_a_job_is_submitted_with_its_profiles_options_and_the_users_last(login: Login) -> None:
    answer = login.submit("pretrain_stage1", "--time=50", "--", "general.seed=3")
    assert answer.returncode == 0, answer.stderr
    [command] = login.submitted()
    assert command.split()[-2:] == [str(Path("slurm/pretrain_stage1.sh").resolve()), "general.seed=3"]
    assert command.index("--time=60") < command.index("--time=50")
    assert "--nodes=2" in command and "--gres=none" in command and "--dependency" not in command


def test_a_stage_waits_for_the_one_before_it(login: Login) -> None:
    login.queue(41, "pretrain_stage1")
    answer = login.submit("pretrain_stage2")
    assert "behind pretrain_stage1 (41)" in answer.stdout
    assert "--dependency=afterok:41 --kill-on-invalid-dep=yes" in login.submitted()[0]


def test_jobs_of_another_run_folder_are_not_waited_for(login: Login) -> None:
    login.queue(41, "pretrain_stage1")
    answer = login.submit("pretrain_stage2", RUN=str(login.root / "elsewhere"))
    assert answer.returncode == 2 and not login.submitted()


def refused(login: Login, message: str, *arguments: str, **environment: str) -> None:
    answer = login.submit(*arguments, **environment)
    assert answer.returncode == 2
    assert message in answer.stderr and "Traceback" not in answer.stderr
    assert not login.submitted()


def test_no_checkpoint_to_start_from(login: Login) -> None:
    refused(login, "pretrain_stage2: no checkpoint to start from", "pretrain_stage2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "smollm3-3b"], "--profile belongs before the job"),
        (["--run=elsewhere"], "--run belongs before the job"),
        (["--suite", "base"], "--suite belongs before the job"),
        (["tokens.stop_step=2"], "smollm3 submit pretrain_stage1 -- tokens.stop_step=2"),
    ],
)
def test_what_is_not_for_the_scheduler_is_not_given_to_it(login: Login, words: list[str], message: str) -> None:
    refused(login, message, "pretrain_stage1", *words)


@pytest.mark.parametrize("limit", ["10", "-t10", "-t 10", "00:10:00", "9:59", "0-0:10"])
def test_a_time_limit_within_the_warning_before_it_is_refused(login: Login, limit: str) -> None:
    """Slurm tells the job 600 s before its end to save; with a shorter limit it would do so at its start, for ever."""
    option = limit if limit.startswith("-") else f"--time={limit}"
    refused(login, "s before its end at which Slurm tells the job to save", "pretrain_stage1", *option.split())


@pytest.mark.parametrize(
    "options", [["--time=11"], ["--time=1-00"], ["--time=2", "--signal=B:USR1@60"], ["-t", "0:10:01"]]
)
def test_other_time_limits_are_not(login: Login, options: list[str]) -> None:
    assert login.submit("pretrain_stage1", *options).returncode == 0


def test_a_half_finished_stage_is_no_start(login: Login) -> None:
    finish_stage(login, "stage1", LAST_STEPS["stage1"] - 2)
    refused(login, f"stage1/checkpoints/{LAST_STEPS['stage1']}/checkpoint.json", "pretrain_stage2")
    finish_stage(login, "stage1", LAST_STEPS["stage1"])
    assert login.submit("pretrain_stage2").returncode == 0


def test_missing_data(login: Login) -> None:
    shutil.rmtree(login.root / "data" / "b")
    refused(login, "data/b/manifest.json. Finish data first", "pretrain_stage1")


def test_wrong_number_of_nodes(login: Login) -> None:
    for options in (["--nodes=3"], ["--nodes", "3"], ["-N3"], ["-N", "3"]):
        refused(login, "needs 2 processes (dp x pp x tp), which 3 nodes cannot share", "pretrain_stage1", *options)


def test_wrong_number_of_gpus(login: Login) -> None:
    (login.root / "recipes" / "cluster.yaml").unlink()
    (login.root / "site.sh").write_text("export SBATCH_ACCOUNT=physics\n")
    refused(login, "needs 2 GPUs (dp x pp x tp), but 48 nodes x 8 GPUs are 384", "pretrain_stage1")
    assert login.submit("pretrain_stage1", "--nodes=1", "--gres=gpu:h100:2").returncode == 0


def test_missing_site_file(login: Login) -> None:
    (login.root / "recipes" / "cluster.yaml").unlink()
    refused(login, "There is no site file", "pretrain_stage1", "--nodes=1", "--gres=gpu:2")


def test_recipe_that_does_not_exist(login: Login) -> None:
    refused(login, "There is no recipe", "long_context_32k")
    refused(login, "There is no profile 'recipes/none'", "pretrain_stage1", RECIPES="recipes/none")
    refused(login, "There is no job 'pretrain_stage4'", "pretrain_stage4")


def test_wrong_key_in_the_recipe(login: Login) -> None:
    refused(login, "Did you mean 'train_steps'?", "pretrain_stage1", "--", "tokens.trian_steps=3")


def test_wrong_cluster_file(login: Login) -> None:
    (login.root / "recipes" / "cluster.yaml").write_text(yaml.safe_dump({"devices": "cpu"}))
    refused(login, "cluster.yaml is not valid", "pretrain_stage1")


def test_prepared_data_is_submitted_again_only_to_rebuild_it(login: Login) -> None:
    """The profile comes with its data."""
    assert "data is done" in login.submit("data").stdout and not login.submitted()
    answer = login.submit("data", REBUILD="a b")
    assert answer.returncode == 0 and len(login.submitted()) == 1, answer.stderr
    assert "pretrain_stage1: job" in login.submit("pretrain_stage1", REBUILD="a b").stdout
    finish_stage(login, "stage1", LAST_STEPS["stage1"])
    assert "pretrain_stage1 is done" in login.submit("pretrain_stage1", REBUILD="a b").stdout


def model_of_the_site(login: Login) -> Path:
    """A model folder and an evaluation with two suites, whose data is there."""
    for folder in ("model", "data/sets"):
        (login.root / folder).mkdir(parents=True, exist_ok=True)
    (login.root / "model" / "config.json").write_text("{}")
    tree = {"extends": str(Path("recipes/tiny/eval.yaml").resolve()), "data": str(login.root / "data" / "sets")}
    (login.root / "recipes" / "eval.yaml").write_text(yaml.safe_dump(tree))
    return login.root / "model"


def test_the_job_evaluates_the_model_and_suites_that_it_was_submitted_with(login: Login) -> None:
    """The job plans again when it starts, from its environment."""
    model = model_of_the_site(login)
    answer = login.submit("--model", str(model), "--suite", "base", "--suite", "long", "eval", MODEL="other", SUITE="x")
    assert answer.returncode == 0, answer.stderr
    assert login.submit("eval_base", MODEL=str(model), SUITE="base").returncode == 0
    assert (login.bin / "evaluates").read_text().splitlines() == [f"{model} base long", f"{model} base"]


def test_a_model_for_a_job_that_evaluates_none_is_refused(login: Login) -> None:
    refused(login, "pretrain_stage1 is no evaluation", "--model", str(model_of_the_site(login)), "pretrain_stage1")
    refused(login, "pretrain_stage1 is no evaluation", "pretrain_stage1", SUITE="base")


def test_a_model_that_is_not_there_is_no_jobs_fault(login: Login) -> None:
    model_of_the_site(login)
    refused(login, f"eval: {login.root}/nope is no transformers folder", "--model", str(login.root / "nope"), "eval")


def test_a_job_of_this_machine_alone_is_not_looked_for_in_the_queues_scripts(login: Login) -> None:
    command = f"RUN={login.root}/runs smollm3 plan --profile {login.root}/recipes"
    refused(login, f"plan is no job of this scheduler; on this machine: {command} --out", "plan")


def test_the_whole_graph_evaluates_its_own_models(login: Login) -> None:
    command = [sys.executable, "-m", "smollm3", "cluster-run"]
    environment = login.environment | {"MODEL": "other", "SUITE": "base"}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert set((login.bin / "evaluates").read_text().splitlines()) == {" "}


def test_a_run_folder_is_the_same_by_any_path(login: Login) -> None:
    """Job scripts write the real path into the queue; a link to it on the command line was "not submitted"."""
    (login.root / "runs").mkdir(exist_ok=True)
    (login.root / "link").symlink_to("runs")
    login.queue(7, "pretrain_stage1")
    through = {"RUN": str(login.root / "link")}
    status = subprocess.run(
        [sys.executable, "-m", "smollm3", "cluster-status"],
        env=login.environment | through,
        capture_output=True,
        text=True,
    )
    [row] = [line for line in status.stdout.splitlines() if "pretrain_stage1" in line]
    assert "running" in row, status.stdout + status.stderr
    login.submit("pretrain_stage2", **through)
    assert f"--comment={login.root / 'runs'}" in login.submitted()[-1]


def test_a_job_that_is_queued_or_done_is_not_submitted_again(login: Login) -> None:
    finish_stage(login, "stage1", LAST_STEPS["stage1"])
    assert "pretrain_stage1 is done" in login.submit("pretrain_stage1").stdout
    login.queue(42, "pretrain_stage2", "PENDING")
    refused(login, "pretrain_stage2 is in the queue already, as job 42 (pending)", "pretrain_stage2")


def test_the_chain_is_one_graph_of_what_is_missing(login: Login) -> None:
    finish_stage(login, "stage1", LAST_STEPS["stage1"])
    answer = subprocess.run(
        [sys.executable, "-m", "smollm3", "cluster-run"], env=login.environment, capture_output=True, text=True
    )
    assert "3 jobs submitted" in answer.stdout, answer.stderr
    second, third, report = login.submitted()
    assert "--job-name=pretrain_stage2" in second and "--dependency" not in second
    assert "--job-name=pretrain_stage3" in third and "--dependency=afterok:1 " in third
    assert "--job-name=report" in report and "--dependency=afterok:2 " in report
