"""Which edits count: those that the imports reach, and of those only what changes the meaning."""

from pathlib import Path

import pytest

from foundation.code import Code

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


def test_files_left_out_count_no_more_nor_what_only_they_import(root: Path) -> None:
    def without_helper() -> str:
        return Code(root).digest("room/main.py", without=["room/helper.py"])

    before = without_helper()
    (root / "room/helper.py").write_text("x = 1\n")
    (root / "room/deep.py").write_text("x = 2\n")
    assert without_helper() == before != digest(root)
    (root / "room/main.py").write_text("import room.helper\nimport room.deep\n")
    with_deep = without_helper()
    (root / "room/deep.py").write_text("x = 3\n")
    assert without_helper() != with_deep


def test_several_paths_have_one_digest(root: Path) -> None:
    before = Code(root).digest("room/main.py", "room/other.py")
    (root / "room/other.py").write_text("x = 2\n")
    assert Code(root).digest("room/main.py", "room/other.py") != before
