"""What README and docs tell people to type exists: verbs, modules and their options, make targets, scripts, recipes."""

import importlib.util
import re
import subprocess
from pathlib import Path

import click
import pytest

from chain.steps import steps_of
from jobs.profile import Profile
from smollm3.command_line import smollm3

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = ("recipe.yaml",)  # in a run's folder
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(page: Path) -> list[str]:
    """Lines of indented blocks and inline code that start with a command of this project."""
    text = page.read_text().replace("\\\n", " ")
    blocks = [line.strip().partition(" #")[0] for line in text.splitlines() if line.startswith("    ")]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"\n(?!\n)", " ", text))
    starts = ("make ", "smollm3 ", "python -m ", ".venv/bin/python ", "torchrun ", "slurm/", "sbatch ", "cp ")
    return [re.sub(r"^[A-Z_]+=\S+ ", "", line) for line in blocks + inline if line.startswith(starts) or " -m " in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    problems = [problem for command in commands(page) for problem in check(command)]
    assert not problems, "\n".join(problems)


def test_a_wrong_command_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    wrong = [
        "make demmo",
        "smollm3 chek",
        "smollm3 plan --gpus",
        "smollm3 checkpoints lst",
        "python -m mergers recipes/tny",
    ]
    page.write_text("".join(f"    {command}\n" for command in wrong) + "\n`slurm/sumbit`\n")
    assert len([problem for command in commands(page) for problem in check(command)]) == 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_page_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Python files and folders of tests, by their path or the end of it."""
    tracked = subprocess.check_output(["git", "ls-files"], text=True, cwd=ROOT).splitlines()
    named = re.findall(
        r"`((?:[\w-]+/)*[\w-]+\.(?:py|jinja|yaml)|(?:tests|foundation)/[\w/]+/?)`(?! \(new\))", page.read_text()
    )
    ends = [name.rstrip("/") for name in named if not name.startswith("nanotron/") and name not in WRITTEN]
    assert not [
        end for end in ends if not any(f"/{path}".endswith(f"/{end}") or path.startswith(f"{end}/") for path in tracked)
    ]


def test_guide_walks_through_every_command_of_the_chain() -> None:
    named = " ".join(commands(ROOT / "docs" / "guide.md"))
    steps = steps_of(Profile(Path("recipes/tiny"), Path("runs/tiny")))
    verbs = {command[0] for step in steps for command in step.plan.commands}
    assert not {verb for verb in verbs if not re.search(rf"\b{verb}(?![-\w])", named)}


def check(command: str) -> list[str]:
    """Sentences about what the command names and the repository lacks."""
    words = command.split()
    problems = []
    if words[0] == "make":
        targets = [word for word in re.sub(r'"[^"]*"', "x", command).split()[1:] if "=" not in word]
        problems += [f"no target {t!r}: {command}" for t in targets if re.fullmatch(r"[a-z-]+", t) and t not in TARGETS]
    if words[0] == "smollm3":
        problems += check_verb(words, command)
    if " -m " in command:
        module = command.partition(" -m ")[2].split()[0]
        if "." in module or (ROOT / module).is_dir():
            problems += check_module(module, words, command)
    for path in re.findall(r"(?:recipes|slurm|bench|docs)/[\w./*-]+", command):
        if not list(ROOT.glob(path.rstrip("."))) and not path.startswith("slurm/site.sh"):
            problems.append(f"no file {path}: {command}")
    return problems


def check_verb(words: list[str], command: str) -> list[str]:
    context, found = click.Context(smollm3), smollm3
    for word in words[1:]:
        if not isinstance(found, click.Group) or word.startswith("-") or word == "VERB":
            break
        if (below := found.get_command(context, word)) is None:
            return [f"no verb {word}: {command}"]
        found = below
    if (found.context_settings or {}).get("ignore_unknown_options"):
        return []  # they are the scheduler's
    known = {option for parameter in found.get_params(context) for option in parameter.opts}
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [f"smollm3 {found.name} has no {option}: {command}" for option in options if option not in known]


def check_module(module: str, words: list[str], command: str) -> list[str]:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None:
        return [f"no module {module}: {command}"]
    file = Path(found.origin)
    source = (file.with_name("__main__.py") if file.name == "__init__.py" else file).read_text()
    options = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--help"]
    after = words[words.index(module) :] if module in words else []
    return [
        f"{module} has no {option}: {command}" for option in options if option in after and f'"{option}"' not in source
    ]
