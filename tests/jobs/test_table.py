"""The table of jobs: what its rows name exists, and the graphs that follow from it."""

import re
from pathlib import Path

import pytest

from foundation.project import ROOT
from jobs.plan import JobError
from jobs.profile import Profile
from jobs.table import GROUPS, JOBS
from slurm.adapter import script_of
from smollm3.command_line import main

PROFILES = ("tiny", "smollm3-135m", "smollm3-360m", "smollm3-3b")


def profile_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("RUN", f"runs/{name}")
    return Profile(Path("recipes") / name, Path("runs") / name)


@pytest.mark.parametrize("name", JOBS)
def test_what_a_row_names_exists(name: str) -> None:
    job = JOBS[name]
    assert job.description.endswith(".") and all((ROOT / path).exists() for path in job.code)
    earlier = list(JOBS)[: list(JOBS).index(name)]
    assert set(job.after) <= set(earlier)
    if "cluster" in job.places:
        script = script_of(name).read_text(encoding="utf-8")
        assert re.search(rf"^#SBATCH --job-name=\"?{job.script or name}\"?$", script, re.MULTILINE)
        assert re.search(rf"^(name=\"|begin ){job.script or name}\b", script, re.MULTILINE)


def test_every_script_is_that_of_a_job_and_every_group_of_jobs() -> None:
    scripts = {path for path in Path("slurm").glob("*.sh") if path.name not in ("lib.sh", "site.sh")}
    assert scripts == {script_of(name) for name, job in JOBS.items() if "cluster" in job.places}
    assert {job for members in GROUPS.values() for job in members} <= set(JOBS)


@pytest.mark.parametrize("name", PROFILES)
def test_every_job_of_a_profile_has_a_plan_and_waits_for_what_makes_its_inputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profile_of(name, monkeypatch)
    for place in ("chain", "cluster"):
        jobs = profile.jobs_in(place)
        made: dict[str, set[Path]] = {}  # by a job and all that it comes after
        for job in jobs:
            plan = profile.plan(job)
            before = {product for other in profile.comes_after(job, jobs) for product in made[other]}
            own = [path for path in plan.inputs if path.is_relative_to(profile.run)]
            assert not [path for path in own if not any(product.match(str(path)) for product in before)], job
            assert plan.products and plan.commands and all(path.is_file() for path in plan.recipes)
            made[job] = before | set(plan.products)


def test_the_graph_of_a_cluster_is_that_of_the_chain_without_what_runs_here_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = profile_of("tiny", monkeypatch)
    jobs = profile.jobs_in("cluster")
    assert {job: " ".join(profile.comes_after(job, jobs)) for job in jobs} == {
        "data": "",
        "pretrain_stage1": "data",
        "pretrain_stage2": "pretrain_stage1",
        "pretrain_stage3": "pretrain_stage2",
        "long_context_32k": "pretrain_stage3",
        "long_context_64k": "long_context_32k",
        "eval_base": "long_context_64k",
        "midtrain": "long_context_64k",
        "sft": "midtrain",
        "apo": "sft",
        "merge": "apo",
        "eval": "merge",
        "report": "eval_base eval",
    }
    assert profile.comes_after("midtrain", profile.jobs_in("chain")) == ("export",)
    assert profile.comes_after("sft", {"data", "pretrain_stage2"}) == ("pretrain_stage2",)


def test_commands_are_what_one_types(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile_of("tiny", monkeypatch)
    stages = " ".join(f"recipes/tiny/pretrain_stage{stage}.yaml" for stage in (1, 2, 3))
    assert profile.command("pretrain") == f"smollm3 train {stages}"
    assert profile.command("merge") == "smollm3 merge --profile recipes/tiny"
    assert profile.command("eval") == "smollm3 eval --profile recipes/tiny --model runs/tiny/hf/merged"
    monkeypatch.setenv("RUN", "my runs")
    elsewhere = Profile(profile.recipes, Path("my runs"))
    assert elsewhere.command("merge") == "RUN='my runs' smollm3 merge --profile recipes/tiny"
    assert profile_of("smollm3-135m", monkeypatch).command("posttrain") == ""


def test_the_plan_is_written_where_the_report_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table's own command makes what the table says that it makes."""
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    (tmp_path / "recipes").mkdir()
    base = Path("recipes/tiny/pretrain_stage1.yaml").resolve()
    for name in ("pretrain", "pretrain_stage1"):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(f"extends: {base}\n")
    plan = Profile(tmp_path / "recipes", tmp_path / "run").plan("plan")
    [words] = plan.commands
    assert main([*words, "--gpu", "h100", "--layouts", "0"]) == 0
    assert plan.is_done, plan.missing_products


@pytest.mark.parametrize(("folder", "edition"), [("posttrain_data", "small"), ("synthetic", "full")])
def test_the_data_job_generates_the_miniatures_sets_and_no_others(
    folder: str, edition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets that a user has made in the run folder, with a teacher model for example, make no miniature of a profile."""
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    recipes = tmp_path / "own"
    recipes.mkdir()
    for name in ("pretrain", "eval"):
        (recipes / f"{name}.yaml").write_text(f"extends: {ROOT}/recipes/tiny/{name}.yaml\n")
    sets = f"data: {{datasets: [{{path: {tmp_path}/run/{folder}/mine}}]}}"
    (recipes / "sft.yaml").write_text(f"extends: {ROOT}/recipes/tiny/sft.yaml\n{sets}\n")
    plan = Profile(recipes, tmp_path / "run").plan("data")
    commands = {command[0]: command for command in plan.commands}
    assert ("posttrain-data" in commands) == (edition == "small")
    assert commands["eval-data"][-2:] == ("--edition", edition)
    assert (tmp_path / "run" / folder / "mine" in plan.products) == (edition == "small")
    assert tmp_path / "run" / folder / "mine" in Profile(recipes, tmp_path / "run").plan("sft").inputs


def test_an_evaluation_looks_at_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile_of("tiny", monkeypatch)
    chosen = Profile(profile.recipes, profile.run, model=Path("elsewhere"), suites=("base", "tools"))
    plan = chosen.plan("eval")
    assert list(map(str, plan.products)) == [f"runs/tiny/eval/elsewhere/{name}.json" for name in ("base", "tools")]
    assert plan.model == Path("elsewhere") and plan.inputs[0] == Path("elsewhere/config.json")
    with pytest.raises(JobError, match="no suite 'bass'"):
        Profile(profile.recipes, profile.run, suites=("bass",)).plan("eval")


def test_a_greedy_soup_depends_on_the_code_of_the_suites_that_choose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uniform = profile_of("tiny", monkeypatch).plan("merge")
    base = Path("recipes/tiny/merge.yaml").resolve()
    (tmp_path / "merge.yaml").write_text(f"extends: {base}\nsoup: {{method: greedy}}\n")
    greedy = Profile(tmp_path, Path("runs/tiny")).plan("merge")
    assert uniform.code == () and {"eval/tasks/base.py", "eval/tasks/long.py"} <= set(greedy.code)
    assert not any("tasks/code" in path for path in greedy.code)
