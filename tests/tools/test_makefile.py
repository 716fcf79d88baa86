"""Which profile and run folder a make target acts on, as `make -n` prints it without running anything."""

import os
import shutil
import subprocess

import pytest

if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


def commands(*arguments: str, **environment: str) -> str:
    """What make would run, on one line."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RUN", "RECIPES", "PROFILE", "MODEL")}
    make = ["make", "--dry-run", "--assume-old=setup", *arguments]
    done = subprocess.run(make, env=clean | environment, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.replace("\\\n", "").split())


@pytest.mark.parametrize("empty", ["RUN", "PROFILE", "RECIPES"])
def test_an_empty_variable_is_as_good_as_none(empty: str) -> None:
    """Not /plan in the root folder."""
    assert "--out runs/tiny/plan" in commands("plan", f"{empty}=")
    assert "--out runs/tiny/plan" in commands("plan", **{empty: ""})


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ((), "runs/smollm3-3b"),
        (("PROFILE=tiny",), "runs/tiny"),
        (("RECIPES=recipes/tiny",), "runs/tiny"),
        (("RECIPES=/home/me/mine/",), "runs/mine"),
        (("RECIPES=/home/me/mine", "RUN=elsewhere"), "elsewhere"),
    ],
)
def test_results_go_where_the_recipes_say(arguments: tuple[str, ...], folder: str) -> None:
    """As those of `smollm3 --profile`: the merge of one profile never writes into the run folder of another."""
    assert f"--model {folder}/hf/merged" in commands("eval", *arguments)
    assert f"--pack {folder}/eval_data_base.tar" in commands("eval-prefetch", "SUITE=base", *arguments)
