"""What runs by itself: the workflow, the hook before a commit, the forms of issues. They call what people type."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOW = Path(".github/workflows/ci.yml")
HOOKS = Path(".pre-commit-config.yaml")
FORMS = sorted(Path(".github/ISSUE_TEMPLATE").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE))


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return found


def made(text: str) -> set[str]:
    """The make commands of a script, with their variables."""
    return {command.strip() for command in re.findall(r"^(?:sudo )?(make [^#\n]+)", text, re.MULTILINE)}


def commands() -> set[str]:
    return made("\n".join(step["run"] for job in jobs().values() for step in job["steps"] if "run" in step))


def test_the_workflow_runs_what_ci_run_runs() -> None:
    ours = made(Path(".ci/run").read_text())
    assert len(ours) == 3 and ours <= commands()
    for command in [*commands(), *made(Path(".github/pull_request_template.md").read_text().replace("- [ ] `", ""))]:
        assert re.split(r"[ `]", command)[1] in TARGETS, command


def test_the_workflow_tests_the_oldest_and_the_newest_python() -> None:
    oldest, above = re.findall(
        r"3\.(\d+)", tomllib.loads(Path("pyproject.toml").read_text())["project"]["requires-python"]
    )
    assert jobs()["test"]["strategy"]["matrix"]["python"] == [f"3.{oldest}", f"3.{int(above) - 1}"]


def test_the_workflow_installs_for_slurm_what_ci_run_installs() -> None:
    [packages] = re.findall(r"packages\+=\((slurm[^)]+)\)", Path(".ci/run").read_text())
    assert any(packages in step.get("run", "") for step in jobs()["slurm"]["steps"])


def test_the_hook_is_a_make_target() -> None:
    [repository] = yaml.safe_load(HOOKS.read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        make, target = hook["entry"].split()
        assert make == "make" and target in TARGETS and hook["language"] == "system" and not hook["pass_filenames"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_one(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in content["body"])
    assert len({part["id"] for part in content["body"]}) == len(content["body"]) > 1


def test_the_form_for_faults_asks_for_a_program_that_is_there() -> None:
    [module] = re.findall(r"python -m ([\w.]+)", Path(".github/ISSUE_TEMPLATE/bug.yml").read_text())
    assert importlib.util.find_spec(module) is not None


def test_make_evaluates_with_vllm_in_the_environment_that_has_it() -> None:
    def run(*arguments: str) -> str:
        command = ["make", "--dry-run", "eval", "PROFILE=smollm3-3b", "MODEL=docs", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\\\n", "")

    assert re.search(r"^\.venv/bin/python -m eval \S+ +--model docs", run(), re.MULTILINE)
    with_vllm = run("ENGINE=vllm")
    assert re.search(
        r"^\.venv-vllm/bin/python -m eval \S+ +backend\.engine=vllm +--model docs", with_vllm, re.MULTILINE
    )
    assert "constraints-vllm.txt" in with_vllm and "pip install --quiet --constraint" not in with_vllm
