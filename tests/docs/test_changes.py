"""The table of changes in docs/change_something.md: the files that it names exist, and no change takes over five."""

import re
import subprocess
from itertools import groupby
from pathlib import Path

import pytest

MOST_FILES = 5
CHANGES = (
    "NoPE interval", "source", "benchmark", "cosine schedule", "optimizer", "QK-norm", "metric", "chat template",
    "merge method", "scheduler", "FP8", "checkpoint interval",
)  # fmt: skip
TRACKED = set(subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split())

PAGE = Path("docs/change_something.md").read_text()


def tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a page, each row as cells by column."""
    found = []
    for is_table, lines in groupby(page.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            found.append([dict(zip(head, row, strict=True)) for row in body])
    return found


def table_of(page: str, *columns: str) -> list[dict[str, str]]:
    [table] = [table for table in tables(page) if set(columns) <= set(table[0])]
    return table


def rows(page: str) -> list[dict[str, str]]:
    return table_of(page, "change", "files to touch", "how it was tried", "test to extend")


def problems(row: dict[str, str]) -> list[str]:
    """Sentences about what an entry of the table gets wrong."""
    files = re.findall(r"`([^`]+)`( \(new\))?", row["files to touch"])
    found = []
    if not 1 <= len(files) <= MOST_FILES:
        found.append(f"{row['change']} takes {len(files)} files")
    if len(row["how it was tried"].split()) < 5:
        found.append(f"{row['change']} does not say how it was tried")
    for name, new in files:
        if new and name in TRACKED:
            found.append(f"{name} exists already")
        elif new and not any(file.startswith(f"{Path(name).parent}/") for file in TRACKED):
            found.append(f"{name} would lie in a folder that does not exist")
        elif not new and name not in TRACKED:
            found.append(f"{name} does not exist")
    tests = re.findall(r"`([^`]+)`", row["test to extend"])
    found += [f"{name} does not exist" for name in tests if name not in TRACKED]
    if not tests and row["test to extend"] != "none":
        found.append(f"{row['change']} names no test")
    return found


def test_the_table_has_twelve_changes() -> None:
    named = [row["change"] for row in rows(PAGE)]
    assert len(named) == len(CHANGES)
    assert not [change for change in CHANGES if not any(change in name for name in named)]


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: row["change"])
def test_files_exist_and_are_few(row: dict[str, str]) -> None:
    assert problems(row) == []


@pytest.mark.parametrize(
    ("column", "text", "problem"),
    [
        ("files to touch", ", ".join(["`README.md`"] * 6), "takes 6 files"),
        ("files to touch", "somewhere", "takes 0 files"),
        ("files to touch", "`eval/benchmark.py`", "eval/benchmark.py does not exist"),
        ("files to touch", "`eval/benchmarks.py` (new)", "exists already"),
        ("files to touch", "`evaluation/mine.py` (new)", "a folder that does not exist"),
        ("how it was tried", "by hand", "does not say how"),
        ("test to extend", "`tests/eval/test_nothing.py`", "test_nothing.py does not exist"),
        ("test to extend", "later", "names no test"),
    ],
)
def test_a_wrong_entry_would_be_found(column: str, text: str, problem: str) -> None:
    right = rows(PAGE)[0]
    [found] = problems(right | {column: text})
    assert problem in found
