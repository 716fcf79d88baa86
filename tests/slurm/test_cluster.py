"""Jobs on a real Slurm of four nodes: the chain, and what may happen to a job on the way."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.attempts import read_attempts
from tests.slurm.conftest import Cluster
from tests.slurm.small_profile import LAST_STEPS, losses, master_weights

HANDICAPPED = Path("tests/slurm/handicapped_stage1.sh")


def test_the_chain_trains_as_one_machine_does_and_is_submitted_once(
    cluster: Cluster, profile: Path, straight: Path
) -> None:
    run = {"RECIPES": profile / "recipes", "RUN": profile / "runs"}
    first = cluster.run(sys.executable, "-m", "smollm3", "cluster-run", **run).stdout
    assert "data               done" in first and "4 jobs submitted" in first
    assert "pretrain_stage3" in first and "after pretrain_stage2" in first
    again = cluster.run(sys.executable, "-m", "smollm3", "cluster-run", **run).stdout
    assert "0 jobs submitted" in again
    jobs = [int(job_id) for job_id in re.findall(r"job (\d+)", first)]
    status = cluster.run(sys.executable, "-m", "smollm3", "cluster-status", **run).stdout
    assert f"job {jobs[2]}" in status and "pending (Dependency)" in status
    cluster.wait_for_end(*jobs)
    assert [cluster.field(job, "JobState") for job in jobs] == ["COMPLETED"] * 4
    assert (profile / "runs" / "report" / "index.html").is_file()
    assert "0 jobs submitted" in cluster.run(sys.executable, "-m", "smollm3", "cluster-run", **run).stdout

    stitched = {step: loss for stage in LAST_STEPS for step, loss in losses(profile / "runs" / stage).items()}
    assert stitched == losses(straight)
    assert master_weights(profile / "runs" / "stage3", 12) == master_weights(straight, 12)
    [logs] = (profile / "runs" / "stage1" / "logs").iterdir()
    assert {log.stem for log in logs.glob("n*.log")} >= {"n1", "n2"}


def test_a_node_that_fails_its_check_is_excluded_beside_those_of_the_user(
    cluster: Cluster, profile: Path, tmp_path: Path
) -> None:
    run = tmp_path / "check"
    site = cluster.site(tmp_path, "NODE_CHECK_OPTIONS=(--pretend-slow n2 --tflops 0.001 --min-free-gb 0.1)")
    environment = {"RECIPES": profile / "recipes", "RUN": run, "SMOLLM3_SITE": site}
    job = cluster.sbatch("--exclude=n3", HANDICAPPED, f"general.runs_path={run}", **environment)
    cluster.wait_for("the end of the attempt", lambda: any(a.outcome for a in read_attempts(run / "stage1")))
    cluster.wait_for("the exclusion", lambda: set(cluster.field(job, "ExcNodeList").split(",")) == {"n2", "n3"})
    cluster.run("scancel", str(job))
    message = read_attempts(run / "stage1")[0].message
    assert message.startswith("nodes that do not answer or fail their check: n2 (the CPU multiplies matrices at "), (
        message
    )


def test_a_check_that_fails_everywhere_stops_the_job_and_excludes_nobody(
    cluster: Cluster, profile: Path, tmp_path: Path
) -> None:
    """With the command that a user would type, and what the check says where PyTorch for CPUs is installed."""
    site = cluster.site(tmp_path, "NODE_CHECK=(bash -c 'echo 0 of 8 GPUs are visible; exit 1')")
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "SMOLLM3_SITE": site}
    job = cluster.sbatch("--nodes=2", "slurm/pretrain_stage1.sh", f"general.runs_path={tmp_path}", **environment)
    cluster.wait_for_end(job)
    assert (cluster.field(job, "JobState"), cluster.field(job, "Restarts")) == ("FAILED", "0")
    assert cluster.field(job, "ExcNodeList") == "(null)"
    output = cluster.output(job)
    assert "the check itself is suspect: n1 (0 of 8 GPUs are visible), n2 (0 of 8 GPUs are visible)." in output
    assert f"NODE_CHECK in {site} (NODE_CHECK=() goes without)" in output
    [attempt] = read_attempts(tmp_path / "stage1")
    assert attempt.outcome == "failed" and "The node check fails on all 2 nodes" in attempt.message
    assert not losses(tmp_path / "stage1")


def test_a_check_that_does_not_finish_excludes_nobody_and_the_job_trains(
    cluster: Cluster, profile: Path, tmp_path: Path
) -> None:
    site = cluster.site(tmp_path, "NODE_CHECK=(sleep 600)", "NODE_CHECK_SECONDS=3")
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "SMOLLM3_SITE": site}
    job = cluster.sbatch("--nodes=2", "slurm/pretrain_stage1.sh", f"general.runs_path={tmp_path}", **environment)
    cluster.wait_for_end(job)
    assert (cluster.field(job, "JobState"), cluster.field(job, "Restarts")) == ("COMPLETED", "0")
    assert cluster.field(job, "ExcNodeList") == "(null)"
    assert re.search(r"did not finish in time on n\d .*, n\d .*; they take part nevertheless", cluster.output(job))
    assert len(losses(tmp_path / "stage1")) == LAST_STEPS["stage1"]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--nodes=3",), {}, "needs 2 processes (dp x pp x tp), which 3 nodes cannot share evenly"),
        ((), {"RECIPES": "recipes/none"}, "There is no folder of recipes recipes/none"),
        (("--", "tokens.trian_steps=3"), {}, "Did you mean 'train_steps'?"),
    ],
)
def test_plain_sbatch_fails_at_once_and_says_why(
    cluster: Cluster,
    profile: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    message: str,
) -> None:
    run = {"RECIPES": profile / "recipes", "RUN": tmp_path} | environment
    split = arguments.index("--") if "--" in arguments else len(arguments)
    job = cluster.sbatch("--nodes=2", *arguments[:split], HANDICAPPED, *arguments[split + 1 :], **run)
    cluster.wait_for_end(job)
    assert cluster.field(job, "JobState") == "FAILED"
    assert message in cluster.output(job)


def test_a_second_job_in_a_folder_is_refused_and_leaves_the_first_ones_account(
    cluster: Cluster, profile: Path, tmp_path: Path
) -> None:
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "STEP_SECONDS": "1"}
    arguments = ("--nodes=2", HANDICAPPED, f"general.runs_path={tmp_path}")
    first = cluster.sbatch(*arguments, **environment)
    folder = tmp_path / "stage1"
    cluster.wait_for("the first step", lambda: bool(losses(folder)))
    second = cluster.sbatch(*arguments, **environment)
    cluster.wait_for_end(first, second)
    assert cluster.field(second, "JobState") == "FAILED"
    assert f"error: job {first} is at work in {folder} already" in cluster.output(second)
    [attempt] = read_attempts(folder)
    assert (attempt.job_id, attempt.outcome) == (first, "finished")
    assert cluster.field(first, "JobState") == "COMPLETED"


def test_shell_scripts_are_clean() -> None:
    others = ("slurm/submit", "slurm/dev-cluster", "tools/find-python", ".ci/run")
    scripts = [*map(str, Path("slurm").glob("*.sh*")), *others]
    try:
        answer = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("shellcheck not found (apt-get install shellcheck)")
    assert answer.returncode == 0, answer.stdout
