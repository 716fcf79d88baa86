"""The report over a run folder written here: its figures are those of the files, and what is absent is said."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs.profile import Profile
from report.blocks import Chart, Details
from report.collect import ReportError, collect
from report.html import to_html
from report.markdown import write_markdown
from report.sections import build_sections
from tests.report.run_folder import summary, write, write_capabilities, write_stage

RECIPES = Path(__file__).parents[2] / "recipes" / "tiny"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("RUN", str(tmp_path))
    write_stage(tmp_path / "stage1", 1, 20, {"web": 0.75, "code": 0.25}, {"web": 1500, "code": 500})
    write_stage(tmp_path / "stage2", 21, 40, {"web": 0.5, "code": 0.5}, {"web": 2500, "code": 1500})
    return Profile(RECIPES, tmp_path)


def page_of(profile: Profile) -> str:
    return to_html("Title", "Subtitle", build_sections(collect(profile)))


def test_consumed_shares_are_those_of_each_stage_alone(profile: Profile) -> None:
    mixtures = collect(profile).mixtures
    shares = {stage: [(s.name, s.planned, s.consumed, s.tokens) for s in mixtures[stage]] for stage in mixtures}
    assert sorted(shares["stage1"]) == [("code", 0.25, 0.25, 500), ("web", 0.75, 0.75, 1500)]
    assert sorted(shares["stage2"]) == [("code", 0.5, 0.5, 1000), ("web", 0.5, 0.5, 1000)]


def test_stage_table_holds_the_figures_of_the_metrics(profile: Profile) -> None:
    page = page_of(profile)
    row = re.search(r"<tr>\s*<td[^>]*>stage2</td>.*?</tr>", page, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row.group())
    first_losses, last_losses = (8 - 25.5 / 100), (8 - 35.5 / 100)
    assert cells == [
        "stage2",
        "21-40",
        "2,000",
        "dp 2",
        f"{first_losses:.3f}",
        f"{last_losses:.3f}",
        "50",
        "40 s",
        "0.02222",
    ]


def test_missing_stages_are_named_with_the_command_that_makes_them(profile: Profile) -> None:
    page = page_of(profile)
    assert "stage3" in page and "not there yet" in page
    recipes = " ".join(f"{RECIPES}/{name}.yaml" for name in ("midtrain", "sft", "apo", "apo_seed43"))
    for command in (
        f"posttrain {recipes}",
        f"merge-sweep --profile {RECIPES}",
        f"plan --profile {RECIPES} --out {profile.run}/plan",
    ):
        assert f"<code>RUN={profile.run} smollm3 {command}</code>" in page


def test_what_a_profile_has_no_recipe_for_is_said(profile: Profile) -> None:
    """A profile of pretraining alone: no command would make models that talk."""
    page = page_of(Profile(RECIPES.with_name("smollm3-135m"), profile.run))
    assert "Post-training: this profile has no recipe for it.</p>" in page
    assert (
        f"smollm3 plan --profile {RECIPES.with_name('smollm3-135m')} --out {profile.run}/plan</code> makes it." in page
    )
    assert f"RUN={profile.run} smollm3 ablations --profile {RECIPES.with_name('smollm3-135m')}</code>" in page


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_page_loads_nothing(profile: Profile) -> None:
    parser = _Loaded()
    page = page_of(profile)
    parser.feed(page)
    assert parser.addresses and all(address.startswith("#") for address in parser.addresses)
    assert "@import" not in page and "url(" not in page and "fetch(" not in page


def test_capabilities_and_sweep_show_their_numbers(profile: Profile) -> None:
    reply = {"task": "sum", "mode": "think", "correct": True, "question": "1+1 < 3?", "text": "<think>2</think> yes"}
    write_capabilities(profile.run, {"hf/apo": summary({"all": (5, 5), "sum": (5, 5)}, (5, 5), 10)}, [reply])
    scores = {"gsm8k": {"value": 0.4, "stderr": 0.1}}
    sweep_rows = [{"soup_weight": w, "mean": 0.4, "scores": scores} for w in (0.0, 1.0)]
    write(profile.run / "merge_sweep" / "sweep.json", {"best_soup_weight": 0.9, "rows": sweep_rows})
    page = page_of(profile)
    assert page.count("50 [25, 75]") == 6  # right and in the mode, over all tasks; right in the one task; two modes
    assert "1+1 &lt; 3?" in page and "&lt;think&gt;2" in page
    assert "The best mean is at 0.9; no further below it than the standard error of the difference: 1." in page


def test_markdown_has_the_same_sections_and_its_charts(profile: Profile, tmp_path: Path) -> None:
    sections = build_sections(collect(profile))
    file = tmp_path / "report" / "report.md"
    write_markdown(file, "Title", "Subtitle", sections)
    text = file.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [section.title for section in sections]
    charts = re.findall(r"\((charts/[^)]+)\)", text)
    assert charts and all((file.parent / chart).is_file() for chart in charts)


def test_empty_run_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", str(tmp_path))
    with pytest.raises(ReportError, match=f"for example: RUN={tmp_path} smollm3 demo --profile {RECIPES}$"):
        collect(Profile(RECIPES, tmp_path))


def test_run_that_starts_from_weights_is_drawn_behind_the_one_before(profile: Profile) -> None:
    write_stage(profile.run / "long_context_32k", 1, 10, {"web": 1.0}, {"web": 1000})
    report = collect(profile)
    assert [training.tokens_before for training in report.pretraining] == [0, 0, 4000]
    loss = next(
        b for s in build_sections(report) for b in s.blocks if isinstance(b, Chart) and b.name == "pretraining-loss"
    )
    assert list(loss.series[0].x) == [100 * step for step in range(1, 51)]
    assert [label for _, label in loss.boundaries] == ["stage1", "stage2", "long_context_32k"]


def test_prediction_stands_beside_the_median_of_the_steps(profile: Profile) -> None:
    plan = {"device": "cpu", "devices": 2, "tokens_per_second_per_device": 30.0, "memory": {"total": 5e8}}
    write(profile.run / "plan" / "pretrain_stage1.json", plan)
    row = re.search(r"<tr>\s*<td[^>]*>stage1</td>\s*<td[^>]*>cpu</td>.*?</tr>", page_of(profile), re.DOTALL)
    assert row is not None
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row.group())[2:] == ["0.50 GB", "60", "50", "+20 %"]


def test_scores_of_checkpoints_are_drawn_over_tokens(profile: Profile) -> None:
    lines = [{"step": step, "evaluation/base/piqa": step / 100, "evaluation/base/boolq": 0.5} for step in (10, 20)]
    file = profile.run / "stage1" / "evaluations.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = next(s for s in build_sections(collect(profile)) if s.title == "Checkpoints while training")
    mean, details = section.blocks
    assert isinstance(mean, Chart) and isinstance(details, Details)
    assert [(s.name, list(s.x), list(s.y)) for s in mean.series] == [("base", [1000, 2000], [30, 35])]
    single = [block for block in details.blocks if isinstance(block, Chart)]
    assert [(s.name, list(s.y)) for s in single[0].series] == [("piqa", [10, 20]), ("boolq", [50, 50])]


def test_starts_saves_and_restarts_are_told_by_part(profile: Profile) -> None:
    assert "Starts, saves and restarts" not in page_of(profile)
    lines: list[dict[str, object]] = [
        {"step": 1, "event": "start", "seconds": {"imports": 5.0, "load": 10.0}, "seconds_since_last_step": None},
        {"step": 8, "event": "save", "seconds": {"copy": 1.0, "write": 30.0, "commit": 2.0}},
        {"step": 9, "event": "start", "seconds": {"imports": 5.0, "load": 40.0}, "seconds_since_last_step": 125.0},
    ]
    (profile.run / "stage1" / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = r"<tr>\s*<td[^>]*>stage1</td>\s*<td[^>]*>(?:starts|saves|restarts).*?</tr>"
    rows = re.findall(wanted, page_of(profile), re.DOTALL)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row)[2:] for row in rows]
    assert cells == [
        ["imports 5.0 s, load 40.0 s", "2", "30 s", "45 s", "1 min 00 s"],
        ["copy 1.0 s, write 30.0 s, commit 2.0 s", "1", "33 s", "33 s", "33 s"],
        ["", "1", "2 min 05 s", "2 min 05 s", "2 min 05 s"],
    ]


def test_margin_of_preference_training_is_drawn(profile: Profile) -> None:
    write_stage(profile.run / "apo", 1, 4, {"pairs": 1.0}, {})
    file = profile.run / "apo" / "metrics.jsonl"
    rows = [json.loads(line) | {"rewards/margins": 0.1} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = [b for s in build_sections(collect(profile)) for b in s.blocks if isinstance(b, Chart)]
    assert next(list(chart.series[0].y) for chart in charts if chart.name == "apo-margin") == [0.1] * 4


def test_every_section_starts_with_a_sentence_and_the_story_comes_first(profile: Profile) -> None:
    sections = build_sections(collect(profile))
    assert sections[0].title == "What happened"
    assert all(section.introduction.endswith((".", ":")) for section in sections)


def test_page_of_a_long_run_stays_small(profile: Profile) -> None:
    write_stage(profile.run / "stage3", 41, 60_000, {"web": 1.0}, {})
    assert len(page_of(profile).encode()) < 500_000
