"""The rules of requeueing on hand-written run folders, without Slurm."""

import json
from pathlib import Path

import pytest

from slurm.attempts import MAX_CRASHES, MAX_LOSSES, begin, end, lost_nodes, read_attempts


def write_run(folder: Path, last_step: int, outcome: str | None = None, message: str = "") -> None:
    """What the trainer leaves: a metrics row per step, and outcome.json unless it was killed."""
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"step": step}) + "\n" for step in range(1, last_step + 1)]
    (folder / "metrics.jsonl").write_text("".join(rows) + '{"step": 9')  # a last line cut by the kill
    (folder / "outcome.json").unlink(missing_ok=True)
    if outcome is not None:
        (folder / "outcome.json").write_text(json.dumps({"outcome": outcome, "step": last_step, "message": message}))


def attempt(
    folder: Path, last_step: int, outcome: str | None = None, job_id: int = 7, **ending: object
) -> tuple[str, str]:
    """One attempt from begin to end; returns the action and its reason."""
    begin(folder, job_id, len(read_attempts(folder)), "n[1-2]")
    write_run(folder, last_step, outcome, str(ending.pop("message", "")))
    arguments = {"exit_status": 1, "stop_requested": False, "interrupted": False} | ending
    return end(folder, **arguments)[1:]  # type: ignore[arg-type]


def test_finished_is_done_whatever_torchrun_says(tmp_path: Path) -> None:
    assert attempt(tmp_path, 5, "finished")[0] == "done"
    assert attempt(tmp_path, 5, "finished", exit_status=0)[0] == "done"


def test_a_commands_exit_code_counts_where_it_writes_no_outcome(tmp_path: Path) -> None:
    assert attempt(tmp_path, 0, exit_status=0)[0] == "done"


def test_an_error_that_the_user_must_mend_is_not_repeated(tmp_path: Path) -> None:
    assert attempt(tmp_path, 3, "failed", message="The loss of step 4 is nan.") == (
        "fail",
        "The loss of step 4 is nan.",
    )


def test_the_same_step_may_crash_once_only(tmp_path: Path) -> None:
    assert attempt(tmp_path, 3)[0] == "again"
    action, reason = attempt(tmp_path, 3)
    assert action == "fail" and reason.startswith("step 4 failed twice")


def test_a_preemption_between_two_crashes_does_not_hide_the_repetition(tmp_path: Path) -> None:
    assert attempt(tmp_path, 3)[0] == "again"
    assert attempt(tmp_path, 2, interrupted=True)[0] == "again"
    assert attempt(tmp_path, 3)[0] == "fail"


def test_crashes_that_move_on_are_bounded(tmp_path: Path) -> None:
    actions = [attempt(tmp_path, step)[0] for step in range(1, MAX_CRASHES + 1)]
    assert actions == ["again"] * (MAX_CRASHES - 1) + ["fail"]


def test_a_new_submission_starts_anew(tmp_path: Path) -> None:
    assert attempt(tmp_path, 3)[0] == "again"
    assert attempt(tmp_path, 3, job_id=8)[0] == "again"


def test_time_limits_never_end_a_run_that_moves_on(tmp_path: Path) -> None:
    actions = [attempt(tmp_path, step, "stopped", stop_requested=True)[0] for step in range(1, 40)]
    assert set(actions) == {"again"}
    action, reason = attempt(tmp_path, 39, "stopped", stop_requested=True)
    assert action == "fail" and "time limit is too short" in reason


def test_nodes_that_were_lost_are_no_crash(tmp_path: Path) -> None:
    actions = [attempt(tmp_path, step, lost_nodes="n2")[0] for step in range(MAX_CRASHES + 2)]
    assert set(actions) == {"again"}


def test_an_attempt_without_an_end_lost_its_head_node(tmp_path: Path) -> None:
    begin(tmp_path, 7, 0, "n[1-2]")
    write_run(tmp_path, 4)
    first, second = begin(tmp_path, 7, 1, "n[2-3]")
    assert (first.outcome, first.step, second.outcome) == ("interrupted", 4, None)


SUMMARY = """{before}
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_10:00:{second:02d}
  host      : localhost
  rank      : {rank} (local_rank: 1)
  exitcode  : {code} (pid: 11)
  error_file: <N/A>
"""


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ((3, 5, -9), (0, 5, 1), "rank 3 on n1 was killed by SIGKILL"),
        ((3, 7, 1), (0, 6, 1), "rank 0 on n2: RuntimeError: of rank 0"),
        ((3, 5, 1), (0, 6, 1), "rank 3 on n1: RuntimeError: of rank 3"),
    ],
)
def test_the_reason_is_the_first_failure_of_all_nodes(
    tmp_path: Path, first: tuple[int, int, int], second: tuple[int, int, int], reason: str
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for node, (rank, seconds, code) in {"n1": first, "n2": second}.items():
        before = f"[rank{rank}]: RuntimeError: of rank {rank}\n"
        (logs / f"{node}.log").write_text(SUMMARY.format(before=before, rank=rank, second=seconds, code=code))
    assert reason in attempt(tmp_path, 3, logs=logs)[1]


def test_exit_code_2_of_a_worker_is_bad_input(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    text = SUMMARY.format(before="error: The data is damaged.", rank=0, second=5, code=2)
    (logs / "n1.log").write_text(text)
    action, reason = attempt(tmp_path, 3, logs=logs)
    assert action == "fail" and "error: The data is damaged." in reason
    assert attempt(tmp_path, 0, exit_status=2)[0] == "fail"


def test_the_reason_of_a_plain_command_is_its_exception(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "n1.log").write_text("Traceback (most recent call last):\n  File x\nOSError: No space left on device\n")
    assert "OSError: No space left on device" in attempt(tmp_path, 0, logs=logs)[1]


def test_lost_nodes_stay_excluded_for_the_whole_job_and_are_named_with_the_reason(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "node_check.log").write_text("srun: warning: x\nn2: GPU 3 multiplies matrices at 120 TFLOP/s, not 495\n")
    assert attempt(tmp_path, 3, lost_nodes="n2,n5", logs=logs) == (
        "again",
        "nodes that do not answer or fail their check: n2 (GPU 3 multiplies matrices at 120 TFLOP/s, not 495), n5",
    )
    attempt(tmp_path, 4)
    attempt(tmp_path, 5, lost_nodes="n1")
    assert lost_nodes(tmp_path) == ["n1", "n2", "n5"]
    attempt(tmp_path, 6, job_id=8)
    assert lost_nodes(tmp_path) == []


def test_a_cluster_that_loses_nodes_before_every_step_is_given_up(tmp_path: Path) -> None:
    answers = [attempt(tmp_path, 3, lost_nodes=f"n{number}") for number in range(MAX_LOSSES)]
    assert [action for action, _ in answers] == ["again"] * (MAX_LOSSES - 1) + ["fail"]
    assert answers[-1][1].startswith(f"{MAX_LOSSES} attempts lost nodes before step 4: nodes that do not answer")
