"""The figures of README and docs are those of the result files, and cannot be anything else."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from jobs.profile import Profile
from report.collect import collect
from report.effects import Claim, Effect, measure
from report.seeds import gather
from tests.report.run_folder import write_stage
from tools.figure_blocks import CLAIMS, effect_rows
from tools.figures import ROOT, block, figure, main, pages, read_results, render, written
from tools.predictions import predictions

RESULTS = read_results()
REGION = re.compile(r"<!-- (?:figures:|=) [^>]* -->.*?<!-- end -->", re.DOTALL)


def test_pages_and_pictures_are_what_the_command_writes() -> None:
    stale = [path.name for path, text in written(ROOT, RESULTS).items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run 'make figures': {stale}"


def other(text: str) -> str:
    """The text with other digits."""
    return re.sub(r"\d", lambda digit: str(9 - int(digit[0])), text)


def changes(name: str) -> Iterator[tuple[str, Any]]:
    """The result file with one figure changed, for every figure that it stands for."""
    document = RESULTS[name]

    def edited(*path: Any, value: Any) -> tuple[str, Any]:
        changed = copy.deepcopy(document)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value(place[path[-1]])
        return " / ".join(map(str, path)), changed

    if name == "predictions":
        for number in range(len(document["rows"])):
            for key in ("days", "device_hours", "memory_bytes"):
                yield edited("rows", number, key, value=lambda figure: 2 * figure)
    elif "columns" in document:
        for number, row in enumerate(document["rows"]):
            for column, cell in enumerate(row[1:], 1):  # the first names the row
                if re.search(r"\d", cell) and not cell.startswith("= "):
                    yield edited("rows", number, column, value=other)
    elif "values" in document:
        for key in document["values"]:
            yield edited("values", key, value=lambda _: "17")
    elif name == "demo_seeds":
        for number in range(len(document["effects"])):
            yield edited("effects", number, "mean", value=lambda mean: mean + 1)
    else:
        assert name == "demo"
        yield edited("seconds", "sft", value=lambda seconds: seconds + 600)
        for key in ("bytes", "data_tokens"):
            yield edited(key, value=lambda figure: 2 * figure)
        yield edited("machine", value=lambda machine: f"{machine} or so")
        for number in range(3):
            yield edited("stages", number, "tokens_per_second", value=lambda speed: 2 * speed)
            yield edited("replies", number, "text", value=lambda text: f"{text}!")
        yield edited("held_out", 0, "gzip", value=lambda bits: bits + 1)
        yield edited("validations", 3, "bits_per_byte", "tiny-math-heldout", value=lambda bits: bits / 2)
        yield edited("capabilities", "merged", "chain", "think", "correct", "value", value=lambda share: share / 2)
        yield edited("capabilities", "merged", "chain", "think", "correct", "successes", value=lambda count: count + 1)


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_a_changed_result_changes_a_page(name: str) -> None:
    found = {path: path.read_text(encoding="utf-8") for path in pages()}
    unused = [
        place
        for place, document in changes(name)
        if all(render(text, {**RESULTS, name: document}) == text for text in found.values())
    ]
    assert not unused


def test_every_result_says_where_it_was_measured() -> None:
    assert not [name for name, document in RESULTS.items() if not document.get("machine")]
    assert not [n for n, d in RESULTS.items() if n != "predictions" and not re.fullmatch(r"20\d\d-\d\d", d["measured"])]


@pytest.mark.parametrize(
    "name",
    [
        "figures: demo pretrainig",
        "figures: table speed_31m",
        "= demo hours",
        "= cell speed_30m / that trainer / MFU",
        "= cell speed_30m / this trainer / TFU",
        "= value durations / make tests, minutes",
    ],
)
def test_an_unknown_name_is_an_error_that_says_so(name: str) -> None:
    with pytest.raises(click.ClickException) as error:
        render(f"before <!-- {name} -->17<!-- end --> after", RESULTS, "speed.md")
    message = str(error.value)
    assert message.startswith("speed.md: the ") and "is not there" in message
    assert name.removeprefix("figures: ").removeprefix("= ") in message


def test_a_name_of_two_columns_is_refused() -> None:
    with pytest.raises(click.ClickException, match="2 rows, columns or values"):
        render("<!-- = cell post_training_seeds / all / 42, 43, 44 -->x<!-- end -->", RESULTS)


def test_the_command_writes_a_stale_page_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    for name, document in RESULTS.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "README.md").write_text("In <!-- = value durations / make test, minutes -->99<!-- end --> minutes.")
    (tmp_path / "docs" / "page.md").write_text("Nothing here.")
    monkeypatch.setattr("tools.figures.ROOT", tmp_path)
    main([], standalone_mode=False)
    minutes = RESULTS["durations"]["values"]["make test, minutes"]
    assert f"-->{minutes}<!--" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "docs" / "page.md").read_text() == "Nothing here."
    assert (tmp_path / "docs" / "images" / "verdicts.svg").exists()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_sentence_is_cut_by_its_marker(page: Path) -> None:
    """A comment at the start of a line ends a paragraph of Markdown, even in the middle of a sentence."""
    assert not re.findall(r"^\s*<!-- = .*", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_figure_of_a_run_stands_loose(page: Path) -> None:
    """Losses, bits and intervals that the generated blocks hold are in the pages by their markers only."""
    names = (
        "demo pretraining",
        "demo bits per byte",
        "demo capabilities",
        "seeds by seed",
        "table post_training_seeds",
    )
    blocks = "\n".join(block(name, RESULTS) for name in names)
    figures = set(re.findall(r"\d+\.\d{3}|\d[\d.]* \[-?[\d.]+, -?[\d.]+\]", blocks))
    assert len(figures) > 50
    loose = REGION.sub("", page.read_text())
    assert not [text for text in figures if re.search(rf"(?<![\d.,]){re.escape(text)}(?!\d)", loose)]


def test_a_verdict_follows_from_its_interval() -> None:
    """Shown means that the interval leaves out "no effect" on the side that the effect is named for."""
    for effect, row in zip(RESULTS["demo_seeds"]["effects"], effect_rows(RESULTS["demo_seeds"]), strict=True):
        assert row[-1] == ("shown" if effect["low"] > effect["null"] else "not shown"), row


def test_the_mean_over_seeds_is_the_mean_of_the_seeds() -> None:
    for effect in RESULTS["demo_seeds"]["effects"]:
        values = effect["values"]
        rounding = 0.006 if effect["unit"] == "bits per byte" else 0.06  # printed digits are all that a transcript has
        assert effect["mean"] == pytest.approx(sum(values) / len(values), abs=2 * rounding)


def test_effects_are_shown_as_the_report_measures_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that report/seeds.py writes needs nothing that it does not write, and every claim has words."""
    monkeypatch.setenv("RUN", str(tmp_path))
    write_stage(tmp_path / "stage1", 1, 2, {}, {})
    claims = measure(collect(Profile(Path("recipes/tiny"), tmp_path)))
    assert {claim.key for claim in claims} == set(CLAIMS)

    def under(seed: int) -> list[Claim]:
        bits = Effect("stage1", "", 0.25 + 0.01 * seed, "bits per byte")
        mode = Effect("/think", "", 100.0, "%", null=99.0)
        return [Claim("stages", "", "", [bits]), Claim("modes", "", "", [mode])]

    rows = effect_rows(gather({seed: under(seed) for seed in (0, 1, 2)}))
    # t with 2 degrees of freedom: 4.303 x 0.01 / sqrt(3) = 0.0248
    assert rows[0] == ("fall of held-out bits per byte in stage 1", "0.25, 0.26, 0.27", "0.26 [0.24, 0.28]", "shown")
    assert rows[1] == ("replies keep to the mode /think, %", "100, 100, 100", "100", "shown")


def test_predictions_are_what_the_planner_says_now() -> None:
    assert predictions() == RESULTS["predictions"], "run 'make predictions' and 'make figures'"


def test_readme_says_that_predictions_are_not_measured() -> None:
    before = (ROOT / "README.md").read_text().partition("<!-- figures: predictions -->")[0].splitlines()
    assert any("not measurements" in line for line in before[-6:])


def test_the_guide_ends_where_readme_ends() -> None:
    """The mean of the held-out table of README, taken again from its digits, is the guide's last row."""
    rows = re.findall(r"^ +tiny-[\w-]+ +[\d,]+ +([\d.]+) +[\d.]+ +[\d.]+$", block("demo pretraining", RESULTS), re.M)
    last = block("demo bits per byte", RESULTS).splitlines()[-1].split("|")
    assert len(rows) == 4 and float(last[3]) == pytest.approx(sum(map(float, rows)) / 4, abs=0.001)


def test_cells_may_quote_another_file() -> None:
    assert figure("cell planning_published /  / predicted", {**RESULTS, "planning_published": {
        "columns": ["run", "predicted"], "rows": [["", "= value durations / make test, minutes"]]
    }}) == RESULTS["durations"]["values"]["make test, minutes"]  # fmt: skip
