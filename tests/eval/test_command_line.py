"""`smollm3 eval` as a user runs it, with every socket blocked."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.benchmarks import BENCHMARKS
from eval.data import write_small_edition
from eval.errors import EvalError
from eval.local_data import read_dataset, write_dataset
from eval.planning import inspect_model, plan_suite
from eval.recipe import load_eval_recipe
from eval.results import SuiteResult, read_suite
from smollm3.command_line import main

REPOSITORY = Path(__file__).parents[2]
BLOCKED = """
import socket, sys, runpy
def refuse(*arguments, **options):
    print("NETWORK", arguments, file=sys.stderr)
    raise OSError("blocked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
sys.argv[0] = "smollm3"
runpy.run_module("smollm3", run_name="__main__", alter_sys=True)
"""


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    tree = {
        "output": str(folder / "results"),
        "data": str(folder / "data"),
        "backend": {"dtype": "float32", "device": "cpu", "batch_size": 8},
        "suites": {
            "base": {
                "tasks": {
                    "piqa": {"max_documents": 6},
                    "gsm8k": {"num_fewshots": 1, "generation_tokens": 4, "max_documents": 2},
                }
            },
            "code": {"tasks": {"mbpp_plus": {}}},
        },
    }
    file = folder / "eval.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    write_small_edition(load_eval_recipe(file))
    return file


def test_real_sets_are_not_replaced_unasked(tmp_path, capsys):
    """Neither by our own items, which one forgotten option would have written, nor by another revision."""
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(f"output: o\ndata: {tmp_path}/data\nsuites: {{base: {{tasks: {{piqa: {{revision: abc}}}}}}}}\n")
    dataset = BENCHMARKS["piqa"].dataset
    folder = tmp_path / "data" / dataset.folder
    rows = {split: [{"goal": "days of fetching"}] for split in dataset.splits}
    assert main(["eval-data", str(recipe)]) == main(["eval-data", str(recipe), "--edition", "small"]) == 0
    write_dataset(folder, dataset, rows, "full", "abc")
    there = {path.name: path.read_bytes() for path in folder.iterdir()}

    for arguments in (["--edition", "small"], []):
        assert main(["eval-data", str(recipe), *arguments]) == 2
        error = capsys.readouterr().err
        assert f"The small edition would replace {folder} (full, revision abc). Nothing was written." in error
    recipe.write_text(recipe.read_text().replace("abc", "def"))
    assert main(["eval-data", str(recipe), "--edition", "full", "--mirror", str(tmp_path)]) == 2
    assert "The full edition would replace" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == there

    assert main(["eval-data", str(recipe), "--edition", "small", "--replace"]) == 0
    assert read_dataset(tmp_path / "data", dataset).edition == "small"
    (folder / "dataset.json").unlink()
    assert main(["eval-data", str(recipe)]) == 2 and "no readable dataset.json" in capsys.readouterr().err


def results_of(folder: Path) -> dict[str, SuiteResult]:
    return {file.stem: read_suite(file) for file in folder.glob("*.json")}


@pytest.fixture(scope="module")
def everything(recipe, model_folder, tmp_path_factory):
    """(recipe file, result folder) after one command with all sockets blocked: every task, two documents each."""
    folder = tmp_path_factory.mktemp("everything")
    tree = recipe.model_dump()
    for suite in tree["suites"].values():
        for task in suite["tasks"].values():
            task |= {"max_documents": 2, "generation_tokens": 4}
    tree["suites"]["answers"]["tasks"]["gsm8k"]["num_fewshots"] = 1
    tree["output"] = str(folder / "results")
    (folder / "eval.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    before = sorted(path.name for path in model_folder.iterdir())
    done = run("eval", str(folder / "eval.yaml"), "--model", str(model_folder), "--name", "m")
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert sorted(path.name for path in model_folder.iterdir()) == before  # no cache is left in the model folder
    return folder / "eval.yaml", folder / "results"


def test_every_task_of_every_suite_runs_with_all_sockets_blocked(everything):
    _, results = everything
    suites = results_of(results / "m")
    assert {task.benchmark for suite in suites.values() for task in suite.tasks} == set(BENCHMARKS)
    assert {task.mode for task in suites["chat"].tasks} == {"think", "no_think"}
    details = (results / "m" / "answers" / "gsm8k.details.jsonl").read_text().splitlines()
    assert json.loads(details[0])["prompt"].count("Question:") == 2
    assert (results / "table.html").is_file() and "hellaswag †" in (results / "table.md").read_text()


def test_results_say_where_they_come_from(everything, model_folder):
    recipe_file, results = everything
    suite = results_of(results / "m")["choices"]
    assert suite.command.endswith(f" eval {recipe_file} --model {model_folder} --name m")
    assert suite.versions["lighteval"] == "0.13.0" and "torch" in suite.versions
    assert suite.model == inspect_model(model_folder, "m") and suite.model.chat_template_sha256
    for task in suite.tasks:
        assert task.dataset.revision.startswith("ours-") and task.metrics[0].stderr is not None
        assert {"formulation", "num_fewshots", "dtype", "seed"} <= task.settings.keys()


def test_log_likelihoods_of_every_task_are_those_of_transformers(everything, model_folder):
    _, results = everything
    model, tokenizer = (kind.from_pretrained(model_folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    for task in results_of(results / "m")["choices"].tasks:
        line = (results / "m" / "choices" / f"{task.task}.details.jsonl").read_text().splitlines()[0]
        details = json.loads(line)
        prompt = tokenizer.encode(details["prompt"])
        for choice, logprob in zip(details["choices"], details["logprobs"], strict=True):
            whole = prompt + tokenizer.encode(choice)
            with torch.no_grad():
                scores = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            expected = sum(float(scores[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
            assert logprob == pytest.approx(expected, abs=1e-3), task.task


def test_a_killed_evaluation_goes_on_where_it_was(everything, model_folder):
    """Killed after its first tasks: they are not repeated, and the end is that of a run of one piece."""
    recipe_file, results = everything
    arguments = ["eval", str(recipe_file), "--model", str(model_folder), "--suite", "choices", "--name", "killed"]
    second = results / "killed" / "choices" / "arc_easy.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "smollm3", *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    while not second.is_file() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = {file.name: file.stat().st_mtime_ns for file in second.parent.glob("*.json")}
    assert 2 <= len(finished) < 25 and not (results / "killed" / "choices.json").exists()
    assert run(*arguments).returncode == 0
    assert {name: (second.parent / name).stat().st_mtime_ns for name in finished} == finished
    killed, whole = (results_of(results / name)["choices"] for name in ("killed", "m"))
    assert [task.model_copy(update={"seconds": 0}) for task in killed.tasks] == [
        task.model_copy(update={"seconds": 0}) for task in whole.tasks
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "bse"], "no suite 'bse' in this recipe. Did you mean 'base'?"),
        (["data=/nowhere"], "There is no data in /nowhere"),
        (["backend.batch=3"], "Unknown key 'batch'"),
        (["backend.engine=vllm", "--suite", "base"], "`make setup-vllm` makes .venv-vllm, which has it"),
    ],
)
def test_mistakes_are_reported_without_a_traceback(recipe_file, model_folder, arguments, message):
    failed = run("eval", str(recipe_file), "--model", str(model_folder), *arguments)
    assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr


def test_code_is_refused_unless_it_is_allowed(recipe_file, model_folder):
    with pytest.raises(EvalError, match="execute_code=true"):
        plan_suite(load_eval_recipe(recipe_file), "code", inspect_model(model_folder, None))


def test_data_command_writes_what_the_recipe_needs(recipe_file, tmp_path, capsys):
    assert main(["eval-data", str(recipe_file), f"data={tmp_path}"]) == 0
    assert "3 datasets, edition small" in capsys.readouterr().out
    assert (tmp_path / "openai__gsm8k" / "main" / "test" / "train.jsonl").is_file()


def test_the_miniatures_data_is_written_before_its_first_evaluation(model_folder, tmp_path, capsys):
    """As the profile tiny has a data folder in its run folder; another profile is told how to get its data."""
    tree = {"output": "${RUN}/eval", "data": "${RUN}/eval_data", "suites": {"base": {"tasks": {"piqa": {}}}}}
    for name in ("tiny", "real"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.yaml").write_text(yaml.safe_dump(tree))
    arguments = ["eval", "--run", str(tmp_path / "run"), "--model", str(model_folder), "--dry-run", "--profile"]
    assert main([*arguments, str(tmp_path / "real")]) == 2
    assert "Write it: smollm3 eval-data" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*arguments, str(tmp_path / "tiny")]) == 0
    assert "1 sets of our own items" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "tiny")]) == 0
    assert "sets of our own items" not in capsys.readouterr().out


def test_without_a_model_it_is_the_chains_last_one(tmp_path, capsys):
    (tmp_path / "hf" / "apo").mkdir(parents=True)
    (tmp_path / "hf" / "apo" / "config.json").write_text("{}")
    assert main(["eval", "--run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"There is no model folder {tmp_path}/hf/merged. {tmp_path}/hf has apo." in error
    assert error.startswith(f"profile recipes/tiny, results in {tmp_path}\n")
