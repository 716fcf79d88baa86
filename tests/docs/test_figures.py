"""Figures that README quotes are those of the pages that report the measurement."""

import re
from itertools import groupby
from pathlib import Path

import pytest

README = Path("README.md").read_text()
STATE = README.partition("\n## State\n")[2].partition("\n## ")[0]
PAGES = {path.name: path.read_text() for path in Path("docs").glob("*.md")}
INTERVAL = re.compile(r"-?\d[\d.]* \[-?[\d.]+, -?[\d.]+\]")


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


def test_state_repeats_the_guides_table_over_seeds() -> None:
    columns = ("effect", "mean", "verdict")
    rows = [
        [tuple(row[column] for column in columns) for row in table_of(page, *columns)]
        for page in (STATE, PAGES["guide.md"])
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 8


def test_a_verdict_follows_from_its_interval() -> None:
    """Shown means that the interval leaves out zero on the side that the effect is named for."""
    for row in table_of(STATE, "effect", "mean", "verdict"):
        interval = re.search(r"\[(-?[\d.]+), ", row["mean"])
        low = float(interval[1]) if interval else float(row["mean"])
        assert row["verdict"] == ("shown" if low > 0 else "not shown"), row


@pytest.mark.parametrize("figure", sorted(set(INTERVAL.findall(STATE))))
def test_every_interval_of_state_stands_in_a_page(figure: str) -> None:
    assert any(figure in page for page in PAGES.values())


def test_state_says_of_tool_calls_what_the_table_over_seeds_says() -> None:
    rows = {row["task"]: row for row in table_of(PAGES["post_training.md"], "task", "42, 43, 44", "not thinking")}
    for task in ("all", "tool call"):
        assert rows[task]["thinking"] in STATE and rows[task]["not thinking"] in STATE
    assert rows["all"]["base, both modes"].startswith("0.0 ")


def test_readme_and_guide_agree_on_the_demos_pretraining() -> None:
    rows = re.findall(r"^ +tiny-[\w-]+ +[\d,]+ +([\d.]+) +[\d.]+ +[\d.]+$", README, re.MULTILINE)
    mean = sum(map(float, rows)) / len(rows)
    [last] = [row for row in table_of(PAGES["guide.md"], "after", "bits per byte") if row["after"] == "stage 3"]
    assert len(rows) == 4 and float(last["bits per byte"]) == pytest.approx(mean, abs=0.001)
