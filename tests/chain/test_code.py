"""Which edits count: those that a step's own code sees, and of those only what changes the meaning."""

from pathlib import Path

import pytest

from chain.code import Code
from chain.steps import steps_of
from slurm.jobs import Profile

FILES = {
    "room/__init__.py": "",
    "room/main.py": '"""Starts."""\nfrom room.helper import double\n\n\ndef go() -> int:\n    return double(2)\n',
    "room/helper.py": "def double(x: int) -> int:\n    import room.deep\n\n    return x * 2\n",
    "room/deep.py": "import json\n",
    "room/other.py": "x = 1\n",
    "room/page.jinja": "a",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(root: Path) -> str:
    return Code(root).digest("room/main.py")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("room/helper.py", FILES["room/helper.py"].replace("* 2", "* 3")),
        ("room/deep.py", "import json\nimport os\n"),  # imported inside a function of an imported file
        ("room/__init__.py", "raise SystemExit\n"),
        ("room/main.py", FILES["room/main.py"].replace("double(2)", "double(3)")),
    ],
)
def test_edits_that_count(root: Path, file: str, text: str) -> None:
    before = digest(root)
    (root / file).write_text(text)
    assert digest(root) != before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("room/other.py", "x = 2\n"),
        ("room/page.jinja", "b"),
        ("room/main.py", "# A remark.\n" + FILES["room/main.py"].replace("Starts", "Begins")),
        ("room/helper.py", FILES["room/helper.py"].replace("x * 2", "(\n        x  *  2\n    )")),
    ],
)
def test_edits_that_do_not_count(root: Path, file: str, text: str) -> None:
    before = digest(root)
    (root / file).write_text(text)
    assert digest(root) == before


def test_text_counts_in_strings_and_in_other_files(root: Path) -> None:
    before = Code(root).digest("room/page.jinja"), Code(root).digest("room")
    (root / "room/page.jinja").write_text("b")
    after = Code(root).digest("room/page.jinja"), Code(root).digest("room")
    assert after[0] != before[0] and after[1] != before[1]


def test_steps_of_the_demo_see_the_code_that_they_run_and_no_other() -> None:
    code = Code(Path())
    seen = {}
    for step in steps_of(Profile(Path("recipes/tiny"), Path("runs/tiny"))):
        files = {Path(path) for path in step.code} | {f for path in step.code for f in Path(path).rglob("*.py")}
        seen[step.name] = {str(found) for file in files if file.suffix == ".py" for found in code.imported_files(file)}
    assert {"nanotron_ext/train/step.py", "nanotron_ext/model/smollm3.py", "nanotron_ext/data/loader.py"} <= seen[
        "pretrain_stage1"
    ]
    assert {"posttrain/training.py", "posttrain/data.py"} <= seen["sft"]
    assert {"eval/tasks/base.py", "eval/ruler.py", "eval/helmet.py", "eval/sandbox_inside.py"} <= seen["eval_base"]
    for step, others in {
        "data": ("datapipes/audit.py", "datapipes/synthetic/build.py", "nanotron_ext/train/step.py"),
        "pretrain_stage1": (
            "nanotron_ext/plan/speed.py",
            "nanotron_ext/rewind.py",
            "posttrain/train.py",
            "eval/runner.py",
        ),
        "sft": ("posttrain/evaluate.py", "posttrain/chat.py", "nanotron_ext/train/step.py"),
        "merge": ("eval/runner.py", "report/charts.py"),
    }.items():
        assert not seen[step] & set(others), step
