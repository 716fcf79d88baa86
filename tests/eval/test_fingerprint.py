"""Which scores are computed again after an edit: those of the tasks whose code it touched, and no others."""

import shutil
from pathlib import Path

import pytest

from eval.benchmarks import BENCHMARKS
from eval.fingerprint import code_files, code_sha256
from eval.planning import inspect_model, plan_suite
from eval.recipe import EvalRecipe

CODE = {name for name, benchmark in BENCHMARKS.items() if benchmark.executes_code}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for package in ("eval", "foundation"):
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
        ("eval/report.py", "Percent ", "Per cent "),
        ("foundation/errors.py", "class UserError", "class Another:\n    pass\n\n\nclass UserError"),
    ],
)
def test_remarks_and_other_tasks_settings_redo_nothing(root, file, old, new):
    assert redone(root, file, old, new) == set()


def test_the_fingerprint_of_a_planned_task_has_settings_and_code_in_it(recipe: EvalRecipe, model_folder, monkeypatch):
    model = inspect_model(model_folder, "model")

    def prints(recipe: EvalRecipe) -> dict[str, str]:
        return {task.name: task.fingerprint for task in plan_suite(recipe, "answers", model)}

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
