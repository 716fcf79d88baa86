"""What may happen to a job on a real Slurm: stops, preemption, dying nodes, its time limit, a repeated crash."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from slurm.attempts import read_attempts
from tests.slurm.conftest import Cluster
from tests.slurm.small_profile import losses, master_weights
from tests.slurm.test_checkpoint_evaluations import EVALUATION
from tests.slurm.test_cluster import HANDICAPPED

pytestmark = pytest.mark.long
INTERVAL = 2  # steps between checkpoints


def test_a_job_survives_stop_requeue_and_the_loss_of_either_node(
    cluster: Cluster, profile: Path, straight: Path, tmp_path: Path
) -> None:
    """Four attempts are ended in four ways; the weights in the end are those of a run that nothing happened to."""
    run, recipes = tmp_path / "survivor", tmp_path / "recipes"
    folder = run / "stage1"
    shutil.copytree(profile / "recipes", recipes)
    # The small profile's tokenizer is none that transformers could load.
    evaluation = EVALUATION | {"data": str(tmp_path), "output": str(tmp_path / "eval")}
    (recipes / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    overrides = (f"general.runs_path={run}", "tokens.stop_step=12", f"checkpoints.checkpoint_interval={INTERVAL}")
    environment = {"RECIPES": recipes, "RUN": run, "STEP_SECONDS": "2", "EVALUATION_POLL_SECONDS": "2"}
    job = cluster.sbatch(HANDICAPPED, *overrides, **environment)

    def steps() -> int:
        return max(losses(folder), default=0)

    def is_training(attempt: int) -> bool:
        attempts = read_attempts(folder)
        return len(attempts) == attempt and attempts[-1].outcome is None and steps() > before

    before = 0
    cluster.wait_for("the first step", lambda: is_training(1))
    cluster.run("scancel", "--batch", "--signal=USR1", str(job))  # as --signal=B:USR1@600 does
    cluster.wait_for("the end of the attempt", lambda: read_attempts(folder)[0].outcome is not None)
    before = steps()
    cluster.wait_for("the second attempt", lambda: is_training(2))
    cluster.run("scontrol", "requeue", str(job))
    cluster.wait_for("the end of the attempt", lambda: read_attempts(folder)[1].outcome is not None)
    before = steps()
    cluster.wait_for("the third attempt", lambda: is_training(3))
    head, other = cluster.run("scontrol", "show", "hostnames", cluster.field(job, "NodeList")).stdout.split()
    cluster.run("slurm/dev-cluster", "kill", other)
    cluster.wait_for("the end of the attempt", lambda: read_attempts(folder)[2].outcome is not None)
    before = steps()
    cluster.wait_for("the fourth attempt", lambda: is_training(4))
    cluster.run("slurm/dev-cluster", "start", other)
    head = cluster.run("scontrol", "show", "hostnames", cluster.field(job, "NodeList")).stdout.split()[0]
    cluster.run("slurm/dev-cluster", "kill", head)
    cluster.wait_for("the fifth attempt", lambda: len(read_attempts(folder)) == 5)
    cluster.run("slurm/dev-cluster", "start", head)
    cluster.wait_for_end(job)

    attempts = read_attempts(folder)
    outcomes = [attempt.outcome for attempt in attempts]
    assert outcomes[:2] == ["stopped", "interrupted"] and outcomes[3:] == ["interrupted", "finished"]
    assert outcomes[2] in ("lost nodes", "interrupted")  # whether this job or Slurm noticed first
    assert cluster.field(job, "JobState") == "COMPLETED"
    assert losses(folder) == losses(straight)
    assert master_weights(folder, 12) == master_weights(straight, 12)

    logs = assert_little_is_done_twice(folder)
    for attempt, of_attempt in zip(attempts, logs, strict=True):
        nodes = {file.name: file.read_text() for file in (of_attempt / "ranks").iterdir()}
        assert nodes.keys() == {"0", "1"} and len(set(nodes.values())) == 2, attempt

    evaluations = [folder / "evaluations" / str(step) for step in (4, 8, 12)]
    for evaluation_folder in evaluations:
        cluster.wait_for("the evaluation", lambda of=evaluation_folder: any(a.outcome for a in read_attempts(of)))
    assert {read_attempts(of)[0].outcome for of in evaluations} <= {"failed", "crashed"}
    assert not (folder / "evaluations.jsonl").exists()


def test_a_time_limit_costs_no_step(cluster: Cluster, profile: Path, straight: Path, tmp_path: Path) -> None:
    """12 steps of at least 6 s under a limit of two minutes, of which Slurm leaves one for saving."""
    folder = tmp_path / "stage1"
    options = ("--time=2", "--signal=B:USR1@60")
    overrides = (f"general.runs_path={tmp_path}", "tokens.stop_step=12", "checkpoints.checkpoint_interval=12")
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "STEP_SECONDS": "6"}
    job = cluster.sbatch(*options, HANDICAPPED, *overrides, **environment)
    cluster.wait_for_end(job, seconds=400)
    attempts = read_attempts(folder)
    assert len(attempts) >= 2 and attempts[-1].outcome == "finished"
    assert {attempt.outcome for attempt in attempts[:-1]} == {"stopped"}
    assert_little_is_done_twice(folder)
    assert losses(folder) == losses(straight)
    assert master_weights(folder, 12) == master_weights(straight, 12)


def test_a_deterministic_crash_ends_the_chain_with_its_reason(cluster: Cluster, profile: Path, tmp_path: Path) -> None:
    run = tmp_path / "crash"
    environment = {"RECIPES": profile / "recipes", "RUN": run}
    overrides = (f"general.runs_path={run}", "parallelism={dp: 2, tp: 2}")
    job = cluster.sbatch(HANDICAPPED, *overrides, CRASHES="*:3", **environment)
    cluster.wait_for("the first attempt", lambda: bool(read_attempts(run / "stage1")))
    # Plain sbatch knows of no predecessor: the job starts, on another node, and goes back into the queue behind it.
    recipes = run / "recipes"
    shutil.copytree(profile / "recipes", recipes)
    for recipe in recipes.glob("*.yaml"):
        recipe.write_text(recipe.read_text().replace(str(profile / "runs"), str(run)))
    behind = cluster.sbatch("--nodes=1", "slurm/pretrain_stage2.sh", RECIPES=recipes, RUN=run)
    cluster.wait_for("the dependency", lambda: f"afterany:{job}" in cluster.field(behind, "Dependency"))
    cluster.wait_for_end(job, behind)
    assert cluster.field(job, "JobState") == "FAILED"
    assert cluster.field(job, "Restarts") == "1"
    last_line = cluster.output(job).splitlines()[-1]
    # The checkpoint of step 2 may still have been under way; torchrun or the other ranks may have noticed first.
    assert re.search(r"giving up: the same failure twice .*, a rank was killed or fell silent in step 3: ", last_line)
    assert re.search(r"rank 1 (on n\d )?was killed", last_line, re.IGNORECASE), last_line
    assert cluster.field(behind, "JobState") == "FAILED"
    assert "pretrain_stage2: no checkpoint to start from" in cluster.output(behind)


def test_unrelated_crashes_with_and_without_progress_between_them_end_nothing(
    cluster: Cluster, profile: Path, straight: Path, tmp_path: Path
) -> None:
    """Killed in step 6, while starting, in step 5, and in later steps: the weights are those of an undisturbed run."""
    folder = tmp_path / "stage1"
    overrides = (f"general.runs_path={tmp_path}", "tokens.stop_step=12", f"checkpoints.checkpoint_interval={INTERVAL}")
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "CRASHES": "0:6 1:0 2:5 3:9 4:11"}
    job = cluster.sbatch(HANDICAPPED, *overrides, **environment)
    cluster.wait_for_end(job, seconds=480)
    attempts = read_attempts(folder)
    assert cluster.field(job, "JobState") == "COMPLETED", cluster.output(job)
    assert [attempt.outcome for attempt in attempts] == ["crashed"] * 5 + ["finished"]
    places = [attempt.failure.partition("silent ")[2] for attempt in attempts[:5]]
    # Killed while starting: that may be chance, so it is compared with nothing.
    assert places == ["in step 6", "", "in step 5", "in step 9", "in step 11"]
    saved = [attempt.saved for attempt in attempts[:5]]
    assert saved == sorted(saved) and saved[2] < saved[3] < saved[4]
    assert losses(folder) == losses(straight)
    assert master_weights(folder, 12) == master_weights(straight, 12)


def test_a_dead_node_that_slurm_has_not_noticed_is_excluded_and_no_other(
    cluster: Cluster, profile: Path, straight: Path, tmp_path: Path
) -> None:
    """Slurm notices after five minutes by default; until then srun waits in vain for the node and its resources."""
    configuration = Path(cluster.environment["SLURM_CONF"])
    usual = configuration.read_text()
    configuration.write_text(usual.replace("SlurmdTimeout=10\n", "SlurmdTimeout=300\n"))
    cluster.run("scontrol", "reconfigure")
    folder = tmp_path / "stage1"
    site = cluster.site(tmp_path, "NODE_CHECK_OPTIONS=(--min-free-gb 0.1)")
    overrides = (f"general.runs_path={tmp_path}", "tokens.stop_step=12", f"checkpoints.checkpoint_interval={INTERVAL}")
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "SMOLLM3_SITE": site, "STEP_SECONDS": "2"}
    try:
        job = cluster.sbatch(HANDICAPPED, *overrides, **environment)
        cluster.wait_for("some steps", lambda: len(losses(folder)) >= 3)
        _, other = cluster.run("scontrol", "show", "hostnames", cluster.field(job, "NodeList")).stdout.split()
        cluster.run("slurm/dev-cluster", "kill", other)
        cluster.wait_for("the end of the attempt", lambda: read_attempts(folder)[0].outcome is not None, 400)
        cluster.run("slurm/dev-cluster", "start", other)
        cluster.wait_for_end(job)
    finally:
        configuration.write_text(usual)
        cluster.run("scontrol", "reconfigure")
    first = read_attempts(folder)[0]
    assert (first.outcome, first.lost_nodes) == ("lost nodes", other)
    assert first.message == f"nodes that do not answer or fail their check: {other} (does not answer)"
    assert (cluster.field(job, "JobState"), cluster.field(job, "ExcNodeList")) == ("COMPLETED", other)
    assert losses(folder) == losses(straight)
    assert master_weights(folder, 12) == master_weights(straight, 12)


def test_exclusion_never_leaves_too_few_nodes(cluster: Cluster, profile: Path, tmp_path: Path) -> None:
    """The user leaves two nodes, one of which fails its check once: without it the job could never run again."""
    is_good = "$SLURMD_NODENAME != n2 || ${SLURM_RESTART_COUNT:-0} != 0"
    check = f"NODE_CHECK=(bash -c '[[ {is_good} ]] || {{ echo hot; exit 1; }}')"
    environment = {"RECIPES": profile / "recipes", "RUN": tmp_path, "SMOLLM3_SITE": cluster.site(tmp_path, check)}
    job = cluster.sbatch("--exclude=n3,n4", HANDICAPPED, f"general.runs_path={tmp_path}", **environment)
    cluster.wait_for_end(job)
    assert cluster.field(job, "JobState") == "COMPLETED"
    excluded = cluster.run("scontrol", "show", "hostnames", cluster.field(job, "ExcNodeList")).stdout.split()
    assert excluded == ["n3", "n4"]
    assert "n2 not excluded, since the job needs 2 nodes and 1 would be left" in cluster.output(job)
    first, _ = read_attempts(tmp_path / "stage1")
    assert (first.outcome, first.lost_nodes, first.message[-8:]) == ("lost nodes", "n2", "n2 (hot)")


def assert_little_is_done_twice(folder: Path) -> list[Path]:
    """At most INTERVAL steps per interruption, none after a stop on request; returns the attempts' log folders."""
    attempts = read_attempts(folder)
    logs = [folder / "logs" / f"{attempt.job_id}-{attempt.restart}" for attempt in attempts]
    for attempt, next_logs in zip(attempts, logs[1:], strict=False):
        text = "".join(log.read_text() for log in next_logs.glob("n?.log"))
        first = int(re.findall(r": steps (\d+) to 12,", text)[0])
        assert 0 <= attempt.step - (first - 1) <= (0 if attempt.outcome == "stopped" else INTERVAL)
    return logs
