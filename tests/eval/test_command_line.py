"""`python -m eval` as a user runs it, with every socket blocked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.data import EvalError, main, write_small_edition
from eval.recipe import load_eval_recipe
from eval.runner import inspect_model, plan_suite

REPOSITORY = Path(__file__).parents[2]
BLOCKED = """
import socket, sys, runpy
def refuse(*arguments, **options):
    print("NETWORK", arguments, file=sys.stderr)
    raise OSError("blocked")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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


def test_evaluation_runs_offline_and_leaves_nothing_behind(recipe_file, model_folder):
    before = sorted(path.name for path in model_folder.iterdir())
    done = run("eval", str(recipe_file), "--model", str(model_folder), "--suite", "base", "--name", "m")
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    result = json.loads((recipe_file.parent / "results" / "m" / "base.json").read_text())
    assert [task["task"] for task in result["tasks"]] == ["piqa", "gsm8k"]
    assert result["tasks"][0]["num_documents"] == 6
    details = (recipe_file.parent / "results" / "m" / "base" / "gsm8k.details.jsonl").read_text().splitlines()
    assert json.loads(details[0])["prompt"].count("Question:") == 2
    assert sorted(path.name for path in model_folder.iterdir()) == before  # no cache is left in the model folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "bse"], "no suite 'bse'"),
        (["data=/nowhere"], "There is no data in /nowhere"),
        (["backend.batch=3"], "Unknown key 'batch'"),
    ],
)
def test_mistakes_are_reported_without_a_traceback(recipe_file, model_folder, arguments, message):
    failed = run("eval", str(recipe_file), "--model", str(model_folder), *arguments)
    assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr


def test_code_is_refused_unless_it_is_allowed(recipe_file, model_folder):
    with pytest.raises(EvalError, match="execute_code=true"):
        plan_suite(load_eval_recipe(recipe_file), "code", inspect_model(model_folder, None))


def test_data_command_writes_what_the_recipe_needs(recipe_file, tmp_path, capsys):
    assert main([str(recipe_file), f"data={tmp_path}"]) == 0
    assert "3 datasets, edition small" in capsys.readouterr().out
    assert (tmp_path / "openai__gsm8k" / "main" / "test" / "train.jsonl").is_file()
