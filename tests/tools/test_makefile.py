"""Which profile and run folder a make target acts on, as `make -n` prints it without running anything."""

import os
import re
import shutil
import subprocess
from pathlib import Path

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


HOSTILE = {  # what is given -> what the message names
    "RUN=a b$$(touch {mark})": "RUN holds",
    "RUN=$(shell touch {mark})": "RUN holds",
    "RUN=`touch {mark}`": "RUN holds",
    "RUN=a;touch {mark}": "RUN holds",
    "RUN=a'b": "RUN holds",
    "RUN=a b": "RUN is one name or path",
    "RECIPES=recipes/tiny&touch {mark}": "RECIPES holds",
    "PROFILE=tiny|touch {mark}": "PROFILE holds",
    "MODEL=a $$(touch {mark})": "MODEL holds",
    "STAGE=1; touch {mark}": "STAGE holds",
    "SUITE=base\ntouch {mark}": "SUITE holds newline",
    "SET=a.b=1 >{mark}": "SET holds",
    "MACHINE=x$$(touch {mark})": "MACHINE holds",
    'MACHINE=x"; touch {mark}; "': "MACHINE holds",
    "VENV=.venv; touch {mark};": "VENV holds",
}


@pytest.mark.parametrize("in_environment", [False, True], ids=["argument", "environment"])
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "wet"])
@pytest.mark.parametrize("given", HOSTILE)
def test_a_variable_runs_nothing(given: str, dry: bool, in_environment: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    name, _, value = given.format(mark=mark).partition("=")
    if in_environment and name in ("VENV", "STAGE"):  # which the Makefile sets, or make asks for first
        pytest.skip("the Makefile's own value goes before the environment's")
    arguments = [] if in_environment else [f"{name}={value}"]
    environment = os.environ | ({name: value} if in_environment else {})
    make = ["make", *(["--dry-run"] if dry else []), "--assume-old=setup", *arguments, "eval"]
    done = subprocess.run(make, env=environment, capture_output=True, text=True)
    assert not mark.exists()
    assert done.returncode == 2 and HOSTILE[given] in done.stderr, done.stderr
    # A variable of that name may have been set for other programs, and then nobody knows what is meant.
    assert f"it comes from the {'environment' if in_environment else 'command line'}" in done.stderr
    assert "smollm3" not in done.stdout


def test_ordinary_values_pass() -> None:
    assert "--model /x/y-1.2/é_[a]{b}~/hf/merged" in commands("eval", "RUN=/x/y-1.2/é_[a]{b}~")
    assert "--model a/b --model c" in commands("eval", "MODEL=a/b c", "SET=mixture.web=0.5 a.b=[1,2]")
    machine = "Intel(R) Xeon(R), 2 cores; idle"
    assert f'--machine "{machine}"' in commands("record", f"MACHINE={machine}")


def test_every_variable_that_a_recipe_of_make_uses_is_checked_or_the_makefiles_own() -> None:
    text = Path("Makefile").read_text()
    checked = set(re.search(r"^ONE_WORD := (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    checked |= {*re.search(r"^SEVERAL_WORDS := (.*)$", text, re.MULTILINE)[1].split(), "MACHINE"}  # type: ignore[index]
    own = set(re.findall(r"^(?:define )?([A-Z_0-9]+)\b *(?::?=|$)", text, re.MULTILINE)) - checked
    used = set(re.findall(r"\$[({]([A-Z][A-Z_]*)\b", text)) - {"MAKEFILE_LIST", "MAKECMDGOALS"}
    assert used - own == used & checked and len(checked) > 20, used - own - checked
