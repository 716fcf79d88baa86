"""Which steps of the miniature's chain an edit makes old, on a copy of the packages; what the steps themselves read
(recipes, tables of sources) stays where it is."""

import shutil
from pathlib import Path

import pytest

import foundation.fingerprint
from chain.state import step_keys
from chain.steps import Step, steps_of
from foundation.code import PACKAGES, Code
from foundation.fingerprint import Fingerprint
from jobs.profile import Profile

PRETRAINING = {"pretrain_stage1", "pretrain_stage2", "pretrain_stage3", "long_context_32k", "long_context_64k"}
POST_TRAINING = {"midtrain", "sft", "apo"}
EVALUATIONS = {"eval_base", "eval_long", "eval"}
RUN = Path("runs/tiny")


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN", str(RUN))
        return steps_of(Profile(Path("recipes/tiny"), RUN))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(steps: list[Step], root: Path) -> dict[str, Fingerprint]:
    return step_keys(steps, RUN, Code(root))


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("eval/sandbox.py", {"eval_base", "eval"}),  # whose suites run code; those of the sweep, base and long, do not
        ("eval/sandbox_inside.py", {"eval_base", "eval"}),
        ("eval/tasks/instruct.py", {"eval"}),
        ("eval/tasks/long.py", {*EVALUATIONS, "merge_sweep"}),
        ("eval/tasks/base.py", {"eval_base", "eval", "merge_sweep"}),
        ("eval/ruler.py", {*EVALUATIONS, "merge_sweep"}),
        ("eval/helmet.py", {"eval_base", "eval"}),
        ("eval/model.py", {*EVALUATIONS, "merge_sweep"}),
        ("eval/tables.py", {"report"}),
        ("posttrain/chat_template.jinja", {*POST_TRAINING, "capabilities"}),
        ("posttrain/chat.py", set()),
        ("report/page.html.jinja", {"report"}),
        ("datapipes/sources/tiny.yaml", {"data"}),
        ("datapipes/sources/smollm3.yaml", set()),
        ("merge/average.py", {"merge", "merge_sweep"}),
        ("merge/sweep.py", {"merge_sweep"}),
        ("nanotron_ext/train/step.py", {"plan", *PRETRAINING}),  # the plan measures a step
    ],
)  # fmt: skip
def test_an_edit_redoes_what_it_changes_and_nothing_else(
    steps: list[Step], root: Path, before: dict[str, Fingerprint], file: str, names: set[str]
) -> None:
    text = (root / file).read_text(encoding="utf-8")
    (root / file).write_text(f"{text}ANOTHER = 1\n", encoding="utf-8")
    after = step_keys(steps, RUN, Code(root))
    (root / file).write_text(text, encoding="utf-8")
    assert {name for name in before if before[name].changes_since(after[name].parts).startswith("code")} == names
    follow = set(names)  # whatever needs one of them
    for step in steps:
        follow |= {step.name} if follow & set(step.needs) else set()
    assert {name for name in before if before[name].total != after[name].total} == follow


def test_a_comment_or_a_docstring_redoes_nothing(
    steps: list[Step], root: Path, before: dict[str, Fingerprint], tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.py"):
        if "corpus" not in path.parts:
            text = path.read_text(encoding="utf-8")
            first = text.partition("\n")[0]
            if text.startswith('"""') and first.endswith('"""'):
                text = text.replace(first, '"""Another sentence."""', 1)
            path.write_text(text + "# A remark.\n", encoding="utf-8")
    after = step_keys(steps, RUN, Code(tmp_path / "copy"))
    assert {name: key.parts for name, key in after.items()} == {name: key.parts for name, key in before.items()}


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("trl", POST_TRAINING),
        ("lighteval", {*EVALUATIONS, "merge_sweep"}),
        ("mergekit", {"merge", "merge_sweep"}),
        ("nanotron", {"plan", *PRETRAINING}),
        ("rich", set()),  # draws tables
    ],
)  # fmt: skip
def test_another_release_redoes_what_it_may_change(
    steps: list[Step], monkeypatch: pytest.MonkeyPatch, package: str, names: set[str]
) -> None:
    code, installed = Code(), foundation.fingerprint._version
    before = step_keys(steps, RUN, code)
    monkeypatch.setattr("foundation.fingerprint._version", lambda name: "0" if name == package else installed(name))
    after = step_keys(steps, RUN, code)
    assert {name for name in before if before[name].parts["versions"] != after[name].parts["versions"]} == names


def test_code_that_is_not_there_is_said(steps: list[Step], root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy" / "merge" / "sweep.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"merge/sweep\.py is said to be code"):
        step_keys(steps, RUN, Code(tmp_path / "copy"))


def test_how_the_folders_are_written_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    code, keys = Code(), []
    for recipes, run in (
        (Path("recipes/tiny"), Path("runs/tiny")),
        (Path.cwd() / "recipes" / "tiny", Path("runs/tiny")),
        (Path("recipes/tiny"), Path.cwd() / "runs" / "tiny"),
        (Path("recipes/tiny"), Path("elsewhere")),
    ):
        monkeypatch.setenv("RUN", str(run))
        found = step_keys(steps_of(Profile(recipes, run)), run, code)
        keys.append({name: key.total for name, key in found.items()})
    assert keys[0] == keys[1] == keys[2] == keys[3]
