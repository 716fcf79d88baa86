"""A run that is told to stop, on one process or several, and goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foundation.launch import torchrun_command
from posttrain import train as train_command
from posttrain import training
from posttrain.training import RunError, train
from tests.posttrain.runs import FAST, assert_same_training, from_base, metrics_of, recipe

LONG = ["optimizer.num_train_epochs=4", "checkpoints.checkpoint_interval=1000"]
STOPPED = 75


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def outcome_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "outcome.json").read_text())
    return content


@contextmanager
def signalled(number: int, folder: Path, after_steps: int) -> Iterator[None]:
    """This process is sent the signal when the run in `folder` has recorded so many steps."""

    def send() -> None:
        wait_for(lambda: len(metrics_of(folder / "metrics.jsonl")) >= after_steps)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    yield
    sender.join()


@pytest.mark.parametrize(
    ("phase", "number"), [("midtrain", signal.SIGTERM), ("sft", signal.SIGUSR1), ("apo", signal.SIGTERM)]
)
def test_a_signal_costs_no_step(run: Path, phase: str, number: int) -> None:
    """Stopped behind a step with a checkpoint of it, and in the end equal to the run that nothing happened to."""
    command = [f"recipes/tiny/{phase}.yaml", *FAST, *LONG, from_base(run)]
    assert train_command.main([*command, "general.run=straight"]) == 0
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    folder = run / "stopped"
    with signalled(number, folder, after_steps=2):
        assert train_command.main([*command, "general.run=stopped"]) == STOPPED
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    steps = len(metrics_of(folder / "metrics.jsonl"))
    assert 2 <= steps < len(metrics_of(run / "straight" / "metrics.jsonl"))
    assert outcome_of(folder) == {"outcome": "stopped", "step": steps, "message": ""}
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == [f"checkpoint-{steps}"]
    assert not (run / "hf" / "stopped").exists()

    assert train_command.main([*command, "general.run=stopped"]) == 0
    assert outcome_of(folder)["outcome"] == "finished"
    assert_same_training(folder, run / "straight")


def test_a_signal_to_one_process_of_two_stops_both(run: Path) -> None:
    """From outside, to the process that writes nothing. Both stop in the same step, and later end like a straight run.

    Two processes take half a minute to start on a busy machine.
    """
    overrides = [*FAST, from_base(run), "optimizer.num_train_epochs=8"]
    overrides += ["checkpoints.checkpoint_interval=1000", "checkpoints.keep_last=null"]
    command = torchrun_command(2, "-m", "tests.posttrain.train_and_stop", "recipes/tiny/sft.yaml", *overrides)
    environment = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as job:
        wait_for(lambda: job.poll() is not None or len(metrics_of(run / "stopped" / "metrics.jsonl")) >= 2)
        assert job.poll() is None, job.stderr and job.stderr.read().decode()
        os.kill(int((run / "rank-1.pid").read_text()), signal.SIGUSR1)
        _, errors = job.communicate()
    assert job.returncode == 0, errors.decode()
    ended = [json.loads((run / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ended[0] == ended[1] and ended[0]["outcome"] == "stopped"
    assert 2 <= ended[0]["step"] < len(metrics_of(run / "straight" / "metrics.jsonl"))
    assert (run / "stopped" / "checkpoints" / f"checkpoint-{ended[0]['step']}").is_dir()
    assert_same_training(run / "stopped", run / "straight")


def test_the_command_tells_its_launcher(run: Path) -> None:
    """A process of its own: the exit code and the file that slurm/attempts.py reads."""
    from slurm.attempts import begin, end

    folder = run / "sft"
    begin(folder, 1, 0, "n1")
    command = [sys.executable, "-m", "posttrain.train", "recipes/tiny/sft.yaml", *FAST, from_base(run)]
    command += ["optimizer.num_train_epochs=200", "checkpoints.checkpoint_interval=1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        wait_for(lambda: job.poll() is not None or metrics_of(folder / "metrics.jsonl"))
        job.terminate()
        said, _ = job.communicate()
    assert job.returncode == STOPPED, said
    attempt, action, _ = end(folder, exit_status=1, stop_requested=False, interrupted=False)  # torchrun's exit code
    assert (attempt.outcome, attempt.step, action) == ("stopped", len(metrics_of(folder / "metrics.jsonl")), "again")


def test_a_job_of_two_runs_is_stopped_in_the_second(run: Path) -> None:
    """The job's outcome is in the first run's folder, with the steps of both, and the second run is not forgotten."""
    command = ["recipes/tiny/apo.yaml", "recipes/tiny/apo_seed43.yaml", *FAST, *LONG, from_base(run)]
    with signalled(signal.SIGUSR1, run / "apo_seed43", after_steps=2):
        assert train_command.main(command) == STOPPED
    first, second = (len(metrics_of(run / name / "metrics.jsonl")) for name in ("apo", "apo_seed43"))
    assert outcome_of(run / "apo") == {"outcome": "stopped", "step": first + second, "message": ""}
    assert (run / "hf" / "apo").is_dir() and not (run / "hf" / "apo_seed43").exists()
    assert train_command.main(command) == 0
    assert outcome_of(run / "apo") == {"outcome": "finished", "step": 2 * first, "message": ""}


def test_a_signal_in_the_last_moment_of_a_run_keeps_the_next_from_starting(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = training._save_trained

    def signalled_save(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_save_trained", signalled_save)
    command = ["recipes/tiny/apo.yaml", "recipes/tiny/apo_seed43.yaml", *FAST, from_base(run)]
    assert train_command.main(command) == STOPPED
    assert (run / "hf" / "apo" / "config.json").is_file() and not (run / "apo_seed43").exists()
    assert outcome_of(run / "apo")["outcome"] == "stopped"


def test_a_run_that_diverges_says_so_to_its_launcher(run: Path) -> None:
    """Another attempt would diverge again."""
    overrides = ["optimizer.learning_rate=1e30", "optimizer.warmup_ratio=0.0"]
    assert train_command.main(["recipes/tiny/sft.yaml", *FAST, from_base(run), *overrides]) == 1
    outcome = outcome_of(run / "sft")
    assert outcome["outcome"] == "failed" and "Lower optimizer.learning_rate" in str(outcome["message"])
    assert outcome["step"] == len(metrics_of(run / "sft" / "metrics.jsonl"))


BLOCKED = """
import datetime, sys, threading, time
from foundation.loopback import host_store
from transformers import TrainerControl
from posttrain.stopping import StopBehindStep, StopRequest
store = host_store()
request = StopRequest(patience_seconds=1.0)
callback = StopBehindStep(request)
with request.heeded():
    for _ in range({"one step": 1}.get(sys.argv[1], 2)):
        callback.on_step_end(None, None, TrainerControl())
    if sys.argv[1] in ("saving", "saved"):
        callback.on_step_end(None, None, TrainerControl(should_save=True))
    if sys.argv[1] == "saved":
        callback.on_save(None, None, TrainerControl())
    print("ready", flush=True)
    if sys.argv[1] == "stepping":
        threading.Thread(target=lambda: [(time.sleep(0.2), request.watch.step_ended()) for _ in range(15)]).start()
    try:  # C++, where no signal handler of Python's runs
        store.wait(["never"], datetime.timedelta(seconds=3))
    except Exception:
        print("left alone")
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("behaviour", "code", "seconds"),
    [
        ("stuck", 70, (0.9, 2.7)),
        ("saved", 70, (0.9, 2.7)),
        ("stepping", 3, (2.5, 60)),
        ("saving", 3, (2.5, 60)),
        ("one step", 3, (2.5, 60)),
    ],
)
def test_a_process_whose_peer_died_does_not_wait_for_ever(
    behaviour: str, code: int, seconds: tuple[float, float]
) -> None:
    """torchrun says SIGTERM to it; one whose steps go on is left alone, as is one that saves or starts up."""
    command = [sys.executable, "-c", BLOCKED, behaviour]
    environment = {**os.environ, "PYTHONPATH": "."}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as job:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
        time.sleep(0.2)
        started = time.monotonic()
        job.terminate()
        _, errors = job.communicate()
    assert job.returncode == code, errors
    assert seconds[0] < time.monotonic() - started < seconds[1]
    assert ("no step ends" in errors) == (code == 70)


def test_a_torn_last_line_of_the_metrics_is_survived(run: Path) -> None:
    """As after a machine that went down while the line was written, and the checkpoint before it is the newest."""
    wanted = recipe("sft", from_base(run), "checkpoints.checkpoint_interval=4", "checkpoints.keep_last=null")
    train(wanted)
    shutil.copytree(wanted.run_folder, run / "straight")
    shutil.copytree(wanted.model_folder, run / "hf" / "straight")
    metrics = wanted.run_folder / "metrics.jsonl"
    steps = len(metrics_of(metrics))
    metrics.write_text(metrics.read_text()[:-40])
    shutil.rmtree(wanted.run_folder / "checkpoints" / f"checkpoint-{steps}")
    train(wanted)
    assert_same_training(wanted.run_folder, run / "straight")


def test_other_data_under_the_same_path_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of the same size; before a model is loaded or a file of the run is written. The old data are welcome."""
    wanted = recipe("sft", from_base(run))
    train(wanted)
    file = run / "posttrain_data" / "sft_no_think" / "train.jsonl"
    before, lines = file.read_text(), file.read_text().splitlines(keepends=True)
    answer = json.loads(lines[3])["messages"][-1]["content"]
    other_answer = lines[3].replace(json.dumps(answer)[1:-1], "x" * len(json.dumps(answer)[1:-1]))
    changes = {
        "an answer": "".join([*lines[:3], other_answer, *lines[4:]]),
        "order": "".join([lines[1], lines[0], *lines[2:]]),
        "a row less": "".join(lines[:-1]),
    }
    left = {path: path.read_bytes() for path in wanted.run_folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(training, "AutoModelForCausalLM", None)
        for change, text in changes.items():
            file.write_text(text)
            assert text != before, change
            with pytest.raises(RunError, match=f"^{file} gives other samples than those that {run}/sft has been"):
                train(wanted)
    assert {path: path.read_bytes() for path in left} == left
    file.write_text(before)
    report = wanted.run_folder / "data_report.json"
    report.write_text(report.read_text().replace("fingerprints", "of another version"))
    capsys.readouterr()
    assert train(wanted).outcome == "finished"  # a run begun by a version that did not record them: with a word
    assert f"{report} does not say what samples this run began with" in capsys.readouterr().out
    assert len(json.loads(report.read_text())["fingerprints"]) == 2
