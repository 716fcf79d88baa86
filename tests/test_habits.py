"""What runs by itself: the workflow, the hook before a commit, the forms of issues. They call what people type."""

import re
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
    assert len(ours) == 4 and ours <= commands()
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


def test_the_form_for_faults_asks_for_a_target_that_is_there() -> None:
    [target] = re.findall(r"`make ([a-z-]+)`", Path(".github/ISSUE_TEMPLATE/bug.yml").read_text())
    assert target in TARGETS


def test_every_version_that_was_released_has_its_section() -> None:
    """Newest first, each with the day of its release; the version of pyproject.toml on top, until then "unreleased"."""
    headings = re.findall(r"^## (.+)$", Path("CHANGELOG.md").read_text(), re.MULTILINE)
    parts = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) \((\d{4}-\d{2}-\d{2}|unreleased)\)", heading) for heading in headings]
    assert all(parts), headings
    versions = [tuple(int(number) for number in part.groups()[:3]) for part in parts if part]
    days = [part[4] for part in parts if part]
    assert versions == sorted(set(versions), reverse=True) and days == sorted(days, reverse=True)
    assert "unreleased" not in days[1:]
    assert ".".join(map(str, versions[0])) == tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
