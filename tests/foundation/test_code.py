"""Which edits count: those that the imports reach, and of those only what changes the meaning."""

import tomllib
from pathlib import Path

import pytest

from foundation.code import PACKAGES, Code

FILES = {
    "room/__init__.py": "",
    "room/main.py": '"""Starts."""\nfrom room.helper import double\n\n\ndef go() -> int:\n    return double(2)\n',
    "room/helper.py": "def double(x: int) -> int:\n    import room.deep\n\n    return x * 2\n",
    "room/deep.py": "import json\n",
    "room/other.py": "x = 1\n",
    "room/page.jinja": "a",
    "room/named.py": 'TEMPLATE = "page.jinja"\n',
    "other/thing.py": "x = 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(root: Path) -> str:
    return Code(root, ["room"]).digest("room/main.py")


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
    before = Code(root, ["room"]).digest("room/page.jinja"), Code(root, ["room"]).digest("room")
    (root / "room/page.jinja").write_text("b")
    after = Code(root, ["room"]).digest("room/page.jinja"), Code(root, ["room"]).digest("room")
    assert after[0] != before[0] and after[1] != before[1]


def test_files_left_out_count_no_more_nor_what_only_they_import(root: Path) -> None:
    def without_helper() -> str:
        return Code(root, ["room"]).digest("room/main.py", without=["room/helper.py"])

    before = without_helper()
    (root / "room/helper.py").write_text("x = 1\n")
    (root / "room/deep.py").write_text("x = 2\n")
    assert without_helper() == before != digest(root)
    (root / "room/main.py").write_text("import room.helper\nimport room.deep\n")
    with_deep = without_helper()
    (root / "room/deep.py").write_text("x = 3\n")
    assert without_helper() != with_deep


def test_a_file_beside_a_module_counts_where_the_module_names_it(root: Path) -> None:
    before = Code(root, ["room"]).digest("room/named.py")
    (root / "room/page.jinja").write_text("b")
    assert Code(root, ["room"]).digest("room/named.py") != before
    assert {path.name for path in Code(root, ["room"]).imported_files(root / "room/named.py")} == {
        "named.py", "page.jinja",
    }  # fmt: skip


def test_packages_of_others_beside_ours_do_not_count(root: Path) -> None:
    """As where it is installed: torch lies in the same folder."""
    (root / "room/main.py").write_text("import other.thing\n")
    before = digest(root)
    (root / "other/thing.py").write_text("x = 2\n")
    assert digest(root) == before
    assert Code(root, ["room", "other"]).digest("room/main.py") != before


@pytest.mark.parametrize("asked", [("room/gone.py",), ("room/main.py", "folder")])
def test_what_is_not_there_is_said(root: Path, asked: tuple[str, ...]) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Code(root, ["room"]).digest(*asked)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Code(root, ["room"]).digest("room/main.py", without=asked[-1:])


def test_the_packages_are_those_that_are_installed() -> None:
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]
    installed = [pattern.removesuffix("*") for pattern in settings["setuptools"]["packages"]["find"]["include"]]
    assert sorted(PACKAGES) == sorted(installed) == sorted(settings["importlinter"]["root_packages"])


def test_several_paths_have_one_digest(root: Path) -> None:
    before = Code(root, ["room"]).digest("room/main.py", "room/other.py")
    (root / "room/other.py").write_text("x = 2\n")
    assert Code(root, ["room"]).digest("room/main.py", "room/other.py") != before
