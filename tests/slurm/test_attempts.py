"""The rules of requeueing on hand-written run folders, without Slurm."""

import json
from pathlib import Path

import pytest

from slurm.attempts import MAX_RETRIES, begin, end, job_under_way, read_attempts
from slurm.failures import first_failure, normalised
from slurm.node_verdict import Verdict, judge, read_answers, write_verdict


def write_run(folder: Path, last_step: int, outcome: str | None = None, message: str = "", saved: int = 0) -> None:
    """What the trainer leaves: a metrics row per step, and outcome.json unless it was killed."""
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"step": step}) + "\n" for step in range(1, last_step + 1)]
    (folder / "metrics.jsonl").write_text("".join(rows) + '{"step": 9')  # a last line cut by the kill
    (folder / "outcome.json").unlink(missing_ok=True)
    if outcome is not None:
        (folder / "outcome.json").write_text(json.dumps({"outcome": outcome, "step": last_step, "message": message}))
    if saved:
        checkpoint = folder / "checkpoints" / str(saved)
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "checkpoint.json").touch()


def attempt(
    folder: Path,
    last_step: int,
    outcome: str | None = None,
    job_id: int = 7,
    *,
    message: str = "",
    saved: int = 0,
    before_its_first_step: bool = False,
    lost: str = "",
    **ending: object,
) -> tuple[str, str]:
    """One attempt from begin to end; returns the action and its reason. `lost` names a node that failed its check."""
    begin(folder, job_id, len(read_attempts(folder)), "n[1-2]")
    if not before_its_first_step:
        write_run(folder, last_step, outcome, message, saved)
    if lost:
        logs = folder / f"logs-{len(read_attempts(folder))}"
        (logs / "node_check").mkdir(parents=True)
        write_verdict(logs / "node_check", Verdict(lost=[lost], reason=f"nodes that fail their check: {lost}"))
        ending["logs"] = logs
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


RAISED = "Rank {rank} raised {type} in step 6 (training): {text}"
SILENT = (
    "Rank {rank} was killed, or hangs in a call that holds Python's lock, or its machine is lost: 19 s ago it was in "
    "step 6 (training) on {host}, process {pid}."
)
KINDS = {
    "out of memory on rank 1": RAISED.format(
        rank=1, type="OutOfMemoryError", text="CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 3.1 GiB free."
    ),
    "out of memory on rank 9": RAISED.format(
        rank=9, type="OutOfMemoryError", text="CUDA out of memory. Tried to allocate 2.25 GiB. GPU 3 has 1.7 GiB free."
    ),
    "a full disk": RAISED.format(rank=0, type="OSError", text="[Errno 28] No space left on device: '/a/run/9.tmp'"),
    "another file on a full disk": RAISED.format(
        rank=3, type="OSError", text="[Errno 28] No space left on device: '/b/run-2/10.tmp'"
    ),
    "a stale file": RAISED.format(rank=0, type="OSError", text="[Errno 116] Stale file handle: '/a/run/9.tmp'"),
    "rank 1 silent": SILENT.format(rank=1, host="gpu-12.cluster", pid=311),
    "rank 5 silent": SILENT.format(rank=5, host="node7", pid=4242),
    "rank 2 stuck": "Rank 2 is stuck in step 6 (training) on n1, process 12: no progress for 18 s. Its stack:\n  f()\n",
}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("out of memory on rank 1", "out of memory on rank 1", True),
        ("out of memory on rank 1", "out of memory on rank 9", True),
        ("a full disk", "another file on a full disk", True),
        ("a full disk", "a stale file", False),
        ("a full disk", "out of memory on rank 1", False),
        ("rank 1 silent", "rank 5 silent", True),
        ("rank 1 silent", "rank 2 stuck", False),
        ("rank 1 silent", "out of memory on rank 1", False),
    ],
)
def test_only_the_same_failure_at_the_same_place_is_given_up_at_once(
    tmp_path: Path, first: str, second: str, same: bool
) -> None:
    assert attempt(tmp_path, 5, "crashed", message=KINDS[first], saved=4)[0] == "again"
    action, reason = attempt(tmp_path, 5, "crashed", message=KINDS[second])
    assert action == ("fail" if same else "again"), reason
    if same:
        assert reason.startswith("the same failure twice since the checkpoint of step 4, ") and "in step 6: " in reason


@pytest.mark.parametrize(("steps", "same"), [((5, 5), True), ((5, 6), False), ((6, 5), False)])
def test_the_same_failure_in_another_step_is_another_failure(
    tmp_path: Path, steps: tuple[int, int], same: bool
) -> None:
    message = KINDS["a full disk"]
    assert attempt(tmp_path, steps[0], "crashed", message=message, saved=4)[0] == "again"
    assert attempt(tmp_path, steps[1], "crashed", message=message)[0] == ("fail" if same else "again")


def test_killed_in_a_step_and_killed_while_starting_are_two_failures(tmp_path: Path) -> None:
    assert attempt(tmp_path, 5, exit_status=137, saved=4)[0] == "again"
    action, reason = attempt(tmp_path, 5, exit_status=137, before_its_first_step=True)
    assert action == "again" and reason.startswith("retry 2 of at most 5 since the checkpoint of step 4: ")


LEFT = "ConnectionError: the store of the first node closed the connection"


@pytest.mark.parametrize(
    "message", ["", KINDS["rank 1 silent"], RAISED.format(rank=1, type="DistBackendError", text=LEFT)]
)
def test_what_may_be_chance_is_repeated_before_the_first_step(tmp_path: Path, message: str) -> None:
    """A bad node, then another one: neither an exit without a word nor a broken connection names a cause."""
    outcome = "crashed" if message else None
    write_run(tmp_path, 5, saved=4)
    actions = []
    for _ in range(MAX_RETRIES + 1):
        begin(tmp_path, 7, len(read_attempts(tmp_path)), "n[1-2]")
        if outcome:
            (tmp_path / "outcome.json").write_text(json.dumps({"outcome": outcome, "step": 5, "message": message}))
        actions.append(end(tmp_path, 1, False, False)[1])
    assert actions == ["again"] * MAX_RETRIES + ["fail"]


def test_the_programs_own_failure_before_the_first_step_is_not_repeated(tmp_path: Path) -> None:
    write_run(tmp_path, 5, saved=4)
    actions = []
    for _ in range(2):
        begin(tmp_path, 7, len(read_attempts(tmp_path)), "n[1-2]")
        (tmp_path / "outcome.json").write_text(
            json.dumps({"outcome": "crashed", "step": 5, "message": KINDS["a full disk"]})
        )
        actions.append(end(tmp_path, 1, False, False)[1])
    assert actions == ["again", "fail"]


def test_a_signal_without_a_name_is_told_by_its_number(tmp_path: Path) -> None:
    lines = (
        "Root Cause (first observed failure):",
        "[0]:",
        "  time : 1",
        "  host : n1",
        "  rank : 3",
        "  exitcode : -35",
    )
    (tmp_path / "n1.log").write_text("\n".join(lines))
    failure = first_failure(tmp_path, 1)
    assert failure.message.startswith("rank 3 on n1 was killed by signal 35") and failure.code == -35


def test_a_check_that_srun_started_nowhere_is_tried_again(tmp_path: Path) -> None:
    """A controller that restarts is no reason to give up a run of weeks."""
    nodes = ["n1", "n2"]
    actions = []
    for number in range(MAX_RETRIES + 1):
        folder = tmp_path / f"logs-{number}" / "node_check"
        folder.mkdir(parents=True)
        (folder / "srun").write_text("srun: error: Unable to confirm allocation: Socket timed out\n")
        begin(tmp_path, 7, number, "n[1-2]")
        verdict = judge(read_answers(folder, nodes, False), folder, "slurm/site.sh", after_crash=False)
        assert not verdict.may_train and not verdict.lost and not verdict.exclude
        write_verdict(folder, verdict)
        _, action, reason = end(tmp_path, 1, False, False, logs=folder.parent)
        actions.append(action)
        assert "Socket timed out" in reason
    assert actions == ["again"] * MAX_RETRIES + ["fail"]


def test_what_happened_before_a_checkpoint_counts_no_more(tmp_path: Path) -> None:
    """A crash every few steps for weeks, always the same one."""
    actions = [attempt(tmp_path, 3 * n + 1, saved=3 * n)[0] for n in range(1, 60)]
    assert set(actions) == {"again"}


def test_without_a_checkpoint_in_between_the_number_of_retries_is_bounded(tmp_path: Path) -> None:
    """Each in another step: rows of metrics that were lost again are no progress."""
    answers = [attempt(tmp_path, step, saved=100) for step in (157, 158, 156, 159, 161, 160, 162)]
    assert [action for action, _ in answers[: MAX_RETRIES + 1]] == ["again"] * MAX_RETRIES + ["fail"]
    assert answers[0][1].startswith("retry 1 of at most 5 since the checkpoint of step 100: ")
    assert answers[5][1].startswith("6 attempts crashed or lost nodes since the checkpoint of step 100, the last one: ")


def test_a_preemption_between_two_crashes_does_not_hide_the_repetition(tmp_path: Path) -> None:
    assert attempt(tmp_path, 3)[0] == "again"
    assert attempt(tmp_path, 2, interrupted=True)[0] == "again"
    assert attempt(tmp_path, 3)[0] == "fail"


def test_a_lost_node_is_no_crash_but_a_retry(tmp_path: Path) -> None:
    """A silent rank of a node that is lost says nothing about the software, however often."""
    message = KINDS["rank 1 silent"]
    actions = [attempt(tmp_path, 5, "crashed", message=message, lost=f"n{n}")[0] for n in range(MAX_RETRIES + 1)]
    assert actions == ["again"] * MAX_RETRIES + ["fail"]
    actions = [attempt(tmp_path, n, job_id=8, saved=n, lost="n2")[0] for n in range(1, 40)]
    assert set(actions) == {"again"}


def test_all_run_folders_of_a_job_count(tmp_path: Path) -> None:
    """A job that trains three recipes: the first is done, the second gets on from crash to crash."""
    runs = [tmp_path / "apo", tmp_path / "apo_seed43", tmp_path / "apo_seed44"]
    write_run(runs[0], 8, "finished")
    (runs[0] / "outcome.json").unlink()
    for step in (3, 6, 9):
        begin(runs[0], 7, step, "n1", runs)
        write_run(runs[1], step)
        checkpoint = runs[1] / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").touch()
        last, action, reason = end(runs[0], 1, False, False, runs=runs)
        assert (last.step, last.saved, action) == (8 + step, step, "again"), reason


def test_attempts_that_an_earlier_version_noted_are_read(tmp_path: Path) -> None:
    old = {"job_id": 7, "restart": 0, "nodes": "n1", "started": "2026-01-01T00:00:00+00:00", "outcome": "crashed"}
    (tmp_path / "attempts.json").write_text(json.dumps([old | {"step": 5, "message": "x", "lost_nodes": ""}]))
    assert attempt(tmp_path, 5)[0] == "again"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "RuntimeError: [pair.cc:553] Connection closed by peer [10.0.0.7]:1955",
            "RuntimeError: [pair.cc:12] Connection closed by peer [10.1.0.12]:7",
        ),
        ("KeyError: 0x7f3a91", "KeyError: 0x55aa"),
        ("OSError: cannot read /data/a/shard-00017.ds", "OSError: cannot read /data/b/shard-3.ds"),
        ("Rank 3 is stuck in step 17 on gpu-4, process 12: no", "Rank 0 is stuck in step 18 on cpu, process 7: no"),
    ],
)
def test_what_differs_from_case_to_case_is_left_out(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("KeyError: 'loss'", "KeyError: 'lr'"), ("ValueError: 3 heads", "TypeError: 3 heads"), ("exit code 1", "SIGKILL")],
)
def test_what_tells_failures_apart_stays(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_the_trainers_words_are_those_that_are_looked_for() -> None:
    source = Path("nanotron_ext/train/heartbeat.py").read_text()
    assert "Rank {rank} was killed, or hangs" in source and "raised {type(error).__name__} in " in source


def test_a_new_submission_starts_anew(tmp_path: Path) -> None:
    assert attempt(tmp_path, 3)[0] == "again"
    assert attempt(tmp_path, 3, job_id=8)[0] == "again"


def test_time_limits_never_end_a_run_that_moves_on(tmp_path: Path) -> None:
    actions = [attempt(tmp_path, step, "stopped", stop_requested=True)[0] for step in range(1, 40)]
    assert set(actions) == {"again"}
    action, reason = attempt(tmp_path, 39, "stopped", stop_requested=True)
    assert action == "fail" and "time limit is too short" in reason


def test_the_job_under_way_is_known(tmp_path: Path) -> None:
    assert job_under_way(tmp_path) is None
    begin(tmp_path, 7, 0, "n1")
    assert job_under_way(tmp_path) == 7
    write_run(tmp_path, 3, "finished")
    end(tmp_path, 0, stop_requested=False, interrupted=False)
    assert job_under_way(tmp_path) is None


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


SUMMARY_KILLED = SUMMARY.format(before="", rank=1, second=5, code=-9)
SEGMENTATION_FAULT = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x7f (most recent call first):\n"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("", SUMMARY_KILLED, True),  # the other ranks notice sooner than torchrun writes, or not
        (SUMMARY_KILLED, SEGMENTATION_FAULT, False),
        (SEGMENTATION_FAULT, SEGMENTATION_FAULT, True),
        (SUMMARY.format(before="", rank=1, second=5, code=-11), SUMMARY_KILLED, False),
    ],
)
def test_a_silent_rank_died_of_what_the_logs_say(tmp_path: Path, first: str, second: str, same: bool) -> None:
    actions = []
    for number, text in enumerate((first, second)):
        logs = tmp_path / f"logs-{number}"
        logs.mkdir()
        (logs / "n1.log").write_text(text)
        message = SILENT.format(rank=1, host="n1", pid=number)
        actions.append(attempt(tmp_path, 5, "crashed", message=message, logs=logs)[0])
    assert actions == ["again", "fail" if same else "again"]


def test_a_node_check_that_cannot_be_believed_ends_the_job_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "logs" / "node_check").mkdir(parents=True)
    write_verdict(tmp_path / "logs" / "node_check", Verdict(problem="The node check fails on all 2 nodes."))
    assert attempt(tmp_path, 3, logs=tmp_path / "logs") == ("fail", "The node check fails on all 2 nodes.")
