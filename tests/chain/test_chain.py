"""The chain on commands of its own: what runs again, what does not, and what a failure or a Ctrl-C leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import chain.runner
from chain.runner import StepFailed, only_one, pending, run_step
from chain.state import ChainState, read_state, reason_to_run, set_aside, step_keys
from chain.steps import ChainError, Step, select, steps_of
from eval.recipe import load_eval_recipe
from foundation.code import Code
from foundation.recipe import load_recipe
from jobs.plan import Folders, Job, Plan
from jobs.profile import Profile
from smollm3.command_line import main

REPOSITORY = Path(__file__).parents[2]
# What takes the place of `smollm3` here; the first word chooses.
COMMANDS = """
case $1 in
  text) mkdir -p run/text && echo text >> run/text/out ;;
  train) mkdir -p run/train && cat run/text/out >> run/train/out ;;
  broken) echo the reason && false ;;
  slow)
    mkdir -p run/slow && trap 'echo saved > run/slow/saved; exit 1' TERM
    echo 1 > run/slow/began; sleep 60 & wait ;;
  stubborn) trap '' TERM; mkdir -p run; echo $$ > run/pid; sleep 60 & wait; sleep 60 ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "commands").write_text(COMMANDS)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("one = 1\n")
    (tmp_path / "recipe.yaml").write_text("tokens: {train_steps: 4}\n")
    return tmp_path


def step(name: str, *words: str, needs: tuple[str, ...] = (), **more: Any) -> Step:
    """One that runs `name` and the `words`, and leaves run/<name>/out."""
    made = Path("run") / name
    job = Job(name, "", unplanned, lambda folders: True, name, code=more.pop("code", ()), seconds=1)
    plan = Plan(job, Path("recipe.yaml"), made, ((name, *words),), (), (made / "out",), (made,), **more)
    return Step(plan, needs)


def unplanned(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    raise NotImplementedError


def chain_of_two() -> list[Step]:
    return [step("text"), step("train", recipes=(Path("recipe.yaml"),), code=("code",), needs=("text",))]


def execute(steps: list[Step]) -> list[str]:
    """Run what is pending; returns its names."""
    chain.runner.PROGRAM = ("bash", "commands")
    run = Path("run")
    keys, state = step_keys(steps, Path("run"), Code(Path())), read_state(run)
    todo = pending(steps, keys, state)
    for step in todo:
        run_step(step, run, keys, state, lambda step, seconds: None)
    return [step.name for step in todo]


def test_second_run_does_nothing(folder: Path) -> None:
    assert execute(chain_of_two()) == ["text", "train"]
    assert execute(chain_of_two()) == []
    state = json.loads((folder / "run" / "chain.json").read_text())
    assert {step["state"] for step in state["steps"].values()} == {"done"}


@pytest.mark.parametrize("change", ["recipe", "code", "output"])
def test_changed_step_runs_again_and_keeps_what_was_there(folder: Path, change: str) -> None:
    execute(chain_of_two())
    if change == "recipe":
        (folder / "recipe.yaml").write_text("tokens: {train_steps: 5}\n")
    elif change == "code":
        (folder / "code" / "a.py").write_text("one = 2\n")
    else:
        (folder / "run" / "train" / "out").unlink()
        (folder / "run" / "train").rmdir()
    assert execute(chain_of_two()) == ["train"]
    assert (folder / "run" / "train" / "out").read_text() == "text\n"
    assert len(list((folder / "run").glob("replaced/*/train/out"))) == (change != "output")


def test_what_lies_outside_of_the_run_folder_is_not_moved(folder: Path) -> None:
    """A recipe may have a training write anywhere."""
    (folder / "shared").mkdir()
    (folder / "shared" / "model").write_text("mine")
    job = chain_of_two()[0].plan.job
    outside = Plan(job, Path("recipe.yaml"), Path("run"), (), (), (), (folder / "shared",))
    with pytest.raises(ChainError, match=r"text has to run anew, and /.*/shared is in its way"):
        set_aside(Step(outside), Path("run"))
    assert (folder / "shared" / "model").read_text() == "mine"


def test_reason_names_what_changed(folder: Path) -> None:
    execute(chain_of_two())
    (folder / "code" / "a.py").write_text("one = 2\n")
    changed = [step("text", "loudly"), *chain_of_two()[1:]]
    keys, state = step_keys(changed, Path("run"), Code(Path())), read_state(Path("run"))
    reasons = {step.name: reason_to_run(step, keys, state) for step in changed}
    assert reasons == {"text": "changed: command", "train": "changed: code, an earlier stage"}


def test_a_product_that_is_gone_is_made_again(folder: Path) -> None:
    """The folder alone is not the result."""
    execute(chain_of_two())
    (folder / "run" / "train" / "out").unlink()
    steps = chain_of_two()
    keys, state = step_keys(steps, Path("run"), Code(Path())), read_state(Path("run"))
    assert reason_to_run(steps[1], keys, state) == "run/train/out is gone"


def test_comment_in_a_recipe_changes_nothing(folder: Path) -> None:
    execute(chain_of_two())
    (folder / "recipe.yaml").write_text("# a remark\ntokens: {train_steps: 4}\n")
    assert execute(chain_of_two()) == []


def test_step_follows_the_steps_that_it_needs(folder: Path) -> None:
    execute(chain_of_two())
    assert execute([step("text", "twice"), chain_of_two()[1]]) == ["text", "train"]


def test_failure_names_command_log_and_reason(folder: Path) -> None:
    with pytest.raises(StepFailed, match=r"(?s)broken failed.*`smollm3 broken loudly` ended.*the reason"):
        execute([step("broken", "loudly")])
    assert read_state(Path("run")).steps["broken"].state == "failed"


def test_interrupt_lets_the_step_save_and_leaves_no_process(folder: Path) -> None:
    script = (
        "from tests.chain.test_chain import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells ignore it in what they start with &
        "try:\n    execute([step('slow')])\nexcept KeyboardInterrupt:\n    print('stopped')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    wait_for((folder / "run" / "slow" / "began").exists)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output.startswith("Stopping") and output.endswith("\nstopped\n") and process.returncode == 0
    assert (folder / "run" / "slow" / "saved").read_text() == "saved\n"
    assert read_state(Path("run")).steps["slow"].state == "stopped"


def test_second_interrupt_ends_the_step_at_once(folder: Path) -> None:
    script = (
        "from tests.chain.test_chain import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "execute([step('stubborn')])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    wait_for(lambda: (folder / "run" / "pid").exists() and (folder / "run" / "pid").read_text())
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("Stopping")
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "run" / "pid").read_text()), 0)
    assert read_state(Path("run")).steps["stubborn"].state == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_closed_terminal_stops_the_step_too(folder: Path, number: signal.Signals) -> None:
    script = (
        "from tests.chain.test_chain import *\nimport chain.run\nfrom smollm3.command_line import main\n"
        "chain.run.run_profile = lambda *_, **__: execute([step('slow')])\n"
        f"sys.exit(main(['demo', '--profile', '{REPOSITORY}/recipes/tiny']))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for((folder / "run" / "slow" / "began").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.endswith(
        "\nStopped in good order; the same command goes on from here.\n"
    )
    assert (folder / "run" / "slow" / "saved").read_text() == "saved\n"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_chains_in_one_run_folder_are_refused(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(ChainError, match="Another chain"), only_one(tmp_path):
        pass


def test_tiny_profile_has_all_stages_in_an_order_that_respects_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    steps = steps_of(Profile(Path("recipes/tiny"), Path("runs/tiny")))
    names = [step.name for step in steps]
    assert names[0] == "data" and names[-1] == "report" and {"pretrain_stage3", "apo", "merge"} <= set(names)
    for number, step in enumerate(steps):
        assert set(step.needs) <= set(names[:number])
        assert all(path.exists() for path in step.plan.recipes) and step.plan.job.code + step.plan.code


def test_what_refuses_to_replace_finished_work_is_moved_aside_or_told_that_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands refuse; a chain whose recipe changed must get on, and what was there lies in replaced/."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("RUN", "runs/tiny")
    steps = {step.name: step for step in steps_of(Profile(Path("recipes/tiny"), Path("runs/tiny")))}
    recipe, evaluation = load_recipe("recipes/tiny/pretrain.yaml"), load_eval_recipe("recipes/tiny/eval.yaml")
    written = {recipe.data.path, recipe.tokenizer.tokenizer_name_or_path, evaluation.data, "runs/tiny/posttrain_data"}
    assert written <= {str(output) for output in steps["data"].plan.outputs}
    exports = [command for command in steps["export"].plan.commands if command[0] == "export"]
    assert exports and all("--replace" in command for command in exports)


def test_unknown_stage_is_refused() -> None:
    with pytest.raises(ChainError, match=r"no stage 'stf'.*text, train"):
        select(chain_of_two(), ["stf"])
    assert [step.name for step in select(chain_of_two(), ["train"])] == ["train"]


def test_damaged_state_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_text('{"format": "chain/0"}')
    with pytest.raises(ChainError, match=r"chain\.json"):
        read_state(tmp_path)
    assert read_state(tmp_path / "empty") == ChainState()


def test_the_command_says_what_would_run_and_refuses_unknown_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--profile", "tiny", "--run", str(tmp_path / "run")]
    assert main([*arguments, "--dry-run", "data"]) == 0
    output, errors = capsys.readouterr()
    assert errors == f"profile recipes/tiny, results in {tmp_path / 'run'}\n"
    assert "0 of 1 stages are done" in output and "data (" in output and not (tmp_path / "run").exists()
    assert main([*arguments, "--dry-run", "dta"]) == 2
    assert "There is no stage 'dta'" in capsys.readouterr().err
    assert main([*arguments, "sft"]) == 2
    assert "sft needs midtrain, which the chain has to run first: it has not run yet." in capsys.readouterr().err
