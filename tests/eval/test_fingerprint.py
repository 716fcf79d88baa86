"""Which scores are computed again after an edit: those of the tasks whose code it touched, and no others."""

import shutil
from pathlib import Path

import pytest

from eval.benchmarks import BENCHMARKS
from eval.fingerprint import code_files, code_sha256, suites_sha256
from eval.planning import inspect_model, plan_suite
from eval.recipe import EvalRecipe
from eval.results import DatasetInfo, TaskResult, write_json
from eval.runner import _finished

CODE = {name for name, benchmark in BENCHMARKS.items() if benchmark.executes_code}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for package in ("foundation", "eval"):
        shutil.copytree(package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    return tmp_path


def digests(root: Path, *, engine: str = "transformers", judged: bool = False) -> dict[str, str]:
    code_sha256.cache_clear()
    files = {name: code_files(benchmark, engine, judged=judged) for name, benchmark in BENCHMARKS.items()}
    return {name: code_sha256(root, entry) for name, entry in files.items()}


def redone(root: Path, file: str, old: str, new: str, **more) -> set[str]:
    """Benchmarks whose scores the edit makes old."""
    before = digests(root, **more)
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new), encoding="utf-8")
    after = digests(root, **more)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("eval/sandbox.py", "wall_seconds: float = 15.0", "wall_seconds: float = 16.0"),
        ("eval/sandbox_inside.py", "_CHANNEL = 3", "_CHANNEL = 4"),
        ("eval/sandbox_calls.py", "32 << 20", "64 << 20"),
        ("eval/tasks/code.py", "pass@1", "pass"),
    ],
)
def test_a_changed_sandbox_or_judge_redoes_the_code_suites_and_nothing_else(root, file, old, new):
    assert {"humaneval_plus", "mbpp_plus", "livecodebench_v4"} == CODE
    assert redone(root, file, old, new) == CODE


def test_a_family_that_none_imports_redoes_its_own_suites(root):
    family = {name for name, benchmark in BENCHMARKS.items() if benchmark.family == "instruct"}
    assert redone(root, "eval/tasks/instruct.py", "import hashlib", "import hashlib, os") == family


def test_a_family_that_another_one_imports_redoes_both(root):
    families = {BENCHMARKS[name].family for name in redone(root, "eval/tasks/long.py", "lower()", "upper()")}
    assert families == {"long", "instruct"}


@pytest.mark.parametrize("file", ["eval/engine.py", "eval/tasks/common.py", "eval/model.py"])
def test_what_all_tasks_use_redoes_all(root, file):
    first = next(line for line in (root / file).read_text(encoding="utf-8").splitlines() if line.startswith("from"))
    assert redone(root, file, first, f"# A remark.\n{first}") == set()
    assert redone(root, file, first, f"{first}\nANOTHER = 1") == set(BENCHMARKS)


def test_generators_backends_and_judges_redo_what_uses_them(root):
    ruler = {name for name, benchmark in BENCHMARKS.items() if benchmark.generator == "ruler"}
    assert redone(root, "eval/ruler.py", "The grass is green.", "The grass is red.") == ruler
    assert redone(root, "eval/vllm_model.py", "use_tqdm=False", "use_tqdm=True") == set()
    assert redone(root, "eval/vllm_model.py", "use_tqdm=True", "use_tqdm=False", engine="vllm") == set(BENCHMARKS)
    assert redone(root, "eval/judge.py", "_ATTEMPTS = 3", "_ATTEMPTS = 4") == set()
    assert redone(root, "eval/judge.py", "_ATTEMPTS = 4", "_ATTEMPTS = 3", judged=True) == set(BENCHMARKS)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("eval/sandbox.py", '"""Runs code', '# A remark.\n"""Executes code'),
        ("eval/tasks/code.py", "row = doc.specific or {}", "row = doc.specific or {}  # A remark."),
        ("eval/benchmarks.py", '"gsm8k", "base"', '"gsm9k", "base"'),
        ("eval/recipe.py", "seed: int = Field(0", "another: int = 0\n    seed: int = Field(0"),
        ("eval/tables.py", "Percent ", "Per cent "),
        ("foundation/errors.py", "class UserError", "class Another:\n    pass\n\n\nclass UserError"),
    ],
)
def test_remarks_and_other_tasks_settings_redo_nothing(root, file, old, new):
    assert redone(root, file, old, new) == set()


def test_the_fingerprint_of_a_planned_task_has_settings_and_code_in_it(recipe: EvalRecipe, model_folder, monkeypatch):
    model = inspect_model(model_folder, "model")

    def prints(recipe: EvalRecipe) -> dict[str, str]:
        return {task.name: task.fingerprint.total for task in plan_suite(recipe, "answers", model)}

    before = prints(recipe)
    assert prints(recipe.model_copy(update={"backend": recipe.backend.model_copy(update={"batch_size": 9})})) == before
    seeded = prints(recipe.model_copy(update={"backend": recipe.backend.model_copy(update={"seed": 9})}))
    assert not set(seeded.values()) & set(before.values())
    code = {"eval/tasks/code.py": "another"}
    monkeypatch.setattr(
        "eval.fingerprint.code_sha256", lambda root, files: next((code[file] for file in files if file in code), "same")
    )
    other = prints(recipe)
    code.clear()
    assert {name for name, value in prints(recipe).items() if value != other[name]} == CODE


def test_why_a_score_is_computed_again_is_said(recipe: EvalRecipe, model_folder, tmp_path, monkeypatch, capsys):
    [task] = [
        task for task in plan_suite(recipe, "answers", inspect_model(model_folder, "model")) if task.name in CODE
    ][:1]
    result = TaskResult(
        task="t", benchmark="b", mode="plain", metrics=[], chance=None, num_documents=1, num_samples=1,
        num_unclosed_reasoning=0, num_over_length=0, seconds=1.0, settings={},
        dataset=DatasetInfo(repo="r", subset="s", split="test", revision="1", edition="small", sha256="0"),
        fingerprint=task.fingerprint.total, fingerprint_parts=dict(task.fingerprint.parts),
    )  # fmt: skip
    write_json(result, tmp_path / "t.json")
    assert _finished(tmp_path / "t.json", task.fingerprint, "[1/1] t") == result
    monkeypatch.setattr("foundation.fingerprint._version", lambda package: "0")
    [again] = [
        one for one in plan_suite(recipe, "answers", inspect_model(model_folder, "model")) if one.name == task.name
    ]
    assert _finished(tmp_path / "t.json", again.fingerprint, "[1/1] t") is None
    assert capsys.readouterr().out == "[1/1] t: computed again (changed: versions)\n"
    write_json(result.model_copy(update={"fingerprint": "0", "fingerprint_parts": {}}), tmp_path / "t.json")
    assert _finished(tmp_path / "t.json", again.fingerprint, "[1/1] t") is None
    assert "made by an older version" in capsys.readouterr().out


def test_what_a_sweep_or_a_curve_depends_on_is_the_code_of_its_suites(recipe: EvalRecipe, root, monkeypatch):
    """As merge/sweep.py and eval/curve.py keep it beside their rows."""
    monkeypatch.setattr("eval.fingerprint.ROOT", root)
    without_code = next(name for name, suite in recipe.suites.items() if not CODE & set(suite.tasks))
    with_code = next(name for name, suite in recipe.suites.items() if CODE & set(suite.tasks))

    def totals() -> list[str]:
        code_sha256.cache_clear()
        return [suites_sha256(recipe, [name]) for name in (without_code, with_code)]

    before = totals()
    with (root / "eval/sandbox.py").open("a", encoding="utf-8") as file:
        file.write("ANOTHER = 1\n")
    after = totals()
    assert after[0] == before[0] and after[1] != before[1]
