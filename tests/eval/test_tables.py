"""The comparison table, the gate, and the win rate."""

import pytest

from eval.published import CARD
from eval.recipe import load_eval_recipe
from eval.results import DatasetInfo, Metric, ModelInfo, SuiteResult, TaskResult, write_json
from eval.tables import (
    TableError,
    base_scores,
    build_table,
    card_sheet,
    regressions,
    task_sheets,
    win_rates,
)
from smollm3.command_line import main

SETTINGS = {"max_documents": None, "formulation": "cf", "num_fewshots": 0, "temperature": 0.0}


def task(name, value, stderr=0.02, edition="full", sha="a", unclosed=0, benchmark=None, **settings):
    return TaskResult(
        task=name, benchmark=benchmark or name, mode="plain",
        metrics=[Metric(name="acc", value=value, stderr=stderr, main=True)],
        chance=0.25, num_documents=50, num_samples=1, num_unclosed_reasoning=unclosed, num_over_length=0, seconds=1.0,
        dataset=DatasetInfo(repo="r", subset="s", split="t", revision="v", edition=edition, sha256=sha),
        settings=SETTINGS | settings, fingerprint="f",
    )  # fmt: skip


def suite(model, *tasks):
    info = ModelInfo(
        name=model, path=model, weights_sha256="0", tokenizer_sha256="0", chat_template_sha256=None, num_parameters=1
    )
    return SuiteResult(suite="base", model=info, tasks=list(tasks), seconds=1, versions={}, command="", created="")


def test_tables_show_values_errors_editions_and_announced_scores(tmp_path, capsys):
    ours = suite("ours", task("hellaswag", 0.5), task("commonsense_qa", 0.25, unclosed=3), task("arc_easy", 0.8),
                 task("arc_challenge", 0.4))  # fmt: skip
    write_json(ours, tmp_path / "ours" / "base.json")
    write_json(suite("small <1>", task("piqa", 0.75, edition="small")), tmp_path / "small" / "base.json")
    assert main(["eval-report", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in table
    assert "| hellaswag | 50.00 ± 2.00 |  | 25 | acc | 50 |" in table
    assert "25.00 ± 2.00 (unclosed 3/50)" in table
    assert "| piqa † |  | 75.00 ± 2.00 | 25 | acc | 50 |" in table
    assert "| HellaSwag | plain | 50.00 ± 2.00 |  | 76.15 | 74.19 | 75.52 | 60.52 | 74.37 |  |" in table
    assert "| ARC (mean of both) | plain | 60.00 ± 1.41 |  | 65.61 |" in table
    assert "| PIQA | plain |  | 75.00 ± 2.00 † | 78.89 |" in table
    # HellaSwag: worst; ARC: between; CommonsenseQA: worst. Five announced models each; PIQA has nobody to compare with.
    assert "| Win rate over 3 of the 12 base benchmarks | plain | 20.0 |  |" in table
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert '<td data-value="25.0">25.00 ± 2.00<br><small>(unclosed 3/50)</small></td>' in page
    assert "small &lt;1&gt;" in page and '<td data-value="50.0">50.00 ± 2.00</td>' in page


def test_a_suites_table_has_the_models_that_were_asked_and_explains_its_own_marks(tmp_path):
    results = [suite("one", task("piqa", 0.5)), suite("two", task("piqa", 0.6))]
    results.append(results[0].model_copy(update={"suite": "code", "tasks": [task("mbpp", 0.1, edition="small")]}))
    base, code = task_sheets(build_table(results))
    assert (base.title, base.header[1:3]) == ("Suite base", ["one", "two"])
    assert (code.title, code.header[1:3]) == ("Suite code", ["one", "chance"])
    assert "†" not in base.note and "†" in code.note and "unclosed" not in code.note


def test_what_is_another_test_than_the_card_is_marked_and_not_ranked_with_it():
    ours = suite(
        "ours",
        task("hellaswag", 0.9),
        task("piqa", 0.9, num_fewshots=5),  # the card's is 0-shot
        task("gsm8k", 0.9, num_fewshots=5),
        task("mmlu_pro_mcf", 0.9, benchmark="mmlu_pro", formulation="mcf"),
        *(task(f"ruler_{kind}_32k", 0.9, edition="generated", benchmark=f"ruler_{kind}") for kind in ("vt", "cwe")),
        task("facts_128", 0.5, edition="generated", benchmark="facts"),
    )
    table = build_table([ours])
    sheet = card_sheet(table)
    rows = {row[0].text: (row[2].text, row[-1].text) for row in sheet.rows}
    assert rows["HellaSwag"] == ("90.00 ± 2.00", "") and rows["MMLU-Pro-MCF"] == ("90.00 ± 2.00", "")
    assert rows["PIQA"] == ("90.00 ± 2.00 §", "num_fewshots 5 for 0")
    assert rows["GSM8K"][0].endswith(" §") and "other words" in rows["GSM8K"][1]
    ruler, why = rows["RULER 32k"]
    assert ruler == "90.00 ± 1.41 §" and "8 tasks for 13" in why and "max_documents None for 500" in why
    assert sheet.header[-1].startswith("§") and "§ not asked or scored as for the card" in sheet.note
    # HellaSwag alone is ranked with the card's models; the others would have won too.
    assert set(base_scores(table)["HellaSwag"]) > {"ours", "card Qwen3-4B"}
    assert {name for name, row in base_scores(table).items() if "card Qwen3-4B" in row} == {"HellaSwag"}
    (own,) = task_sheets(table)
    marks = {row[0].text for row in own.rows}
    assert {"hellaswag", "gsm8k §", "ruler_vt_32k ‡ §", "facts_128 ‡", "mmlu_pro_mcf"} <= marks and "§" in own.note


def test_every_row_of_the_card_has_the_settings_of_our_recipe_or_says_what_differs():
    """The recipe of the real run against what is known about the card: no setting differs, and the rest has words."""
    recipe = load_eval_recipe("recipes/smollm3-3b/eval.yaml")
    for row in CARD:
        results = [
            task(name, 0.5, **(entry.model_dump() | sampled.sampling.model_dump()))
            for sampled in recipe.suites.values() if row.mode in sampled.modes
            for name, entry in sampled.tasks.items() if row.tasks.fullmatch(name)
        ]  # fmt: skip
        assert results, row.label
        unknown = [text for text in row.differences(results) if " for " in text and text.split()[0] in row.settings]
        assert unknown == (["max_documents None for 500"] if row.label.startswith("RULER") else []), row.label


def test_the_announced_win_rate_has_its_twelve_benchmarks():
    assert [row.label for row in CARD if row.in_win_rate] == [
        "HellaSwag", "ARC (mean of both)", "Winogrande", "CommonsenseQA", "MMLU-CF", "MMLU-Pro-CF", "PIQA",
        "OpenBookQA", "GSM8K", "MATH", "HumanEval+", "MBPP+",
    ]  # fmt: skip
    names = set(load_eval_recipe("recipes/smollm3-3b/eval.yaml").suites["base"].tasks)
    for row in CARD:
        assert row.scores["SmolLM3-3B"] > 0
        if row.in_win_rate and not row.label.endswith("+"):
            assert any(row.tasks.fullmatch(name) for name in names), row.label


def test_win_rate_counts_pairs_and_ties():
    scores = {"x": {"a": 0.9, "b": 0.8, "c": 0.7}, "y": {"a": 0.5, "b": 0.5, "c": 0.4}, "z": {"a": 0.1}}
    assert win_rates(scores) == {"a": 87.5, "b": 62.5, "c": 0.0}


def test_gate_fails_below_the_band_only(tmp_path, capsys):
    table = build_table(
        [suite("ref", task("piqa", 0.70)), suite("near", task("piqa", 0.65)), suite("low", task("piqa", 0.60))]
    )
    found = regressions(table, "ref", tolerance=2.0)
    assert len(found) == 1 and found[0].startswith("low: base/piqa is 60.00")
    with pytest.raises(TableError, match="no model 'gone'"):
        regressions(table, "gone", 2.0)
    for name, value in (("ref", 0.7), ("low", 0.6)):
        write_json(suite(name, task("piqa", value)), tmp_path / name / "base.json")
    assert main(["eval-report", str(tmp_path), "--reference", "ref"]) == 1
    assert main(["eval-report", str(tmp_path), "--reference", "ref", "--tolerance", "9"]) == 0
    assert main(["eval-report", str(tmp_path / "none")]) == 2 and "There are no results" in capsys.readouterr().err


def test_an_unknown_model_is_refused_and_the_table_kept(tmp_path, capsys):
    """It used to be overwritten by an empty one."""
    write_json(suite("merged", task("piqa", 0.7)), tmp_path / "eval" / "merged" / "base.json")
    assert main(["eval-report", "--run", str(tmp_path)]) == 0
    before = (tmp_path / "eval" / "table.md").read_text()
    assert main(["eval-report", "--run", str(tmp_path), "--model", "mergd"]) == 2
    assert "There is no result of a model mergd. Did you mean merged?" in capsys.readouterr().err
    assert (tmp_path / "eval" / "table.md").read_text() == before and "piqa" in before


def test_scores_on_different_data_are_not_put_in_one_row():
    with pytest.raises(TableError, match="different data"):
        build_table([suite("a", task("piqa", 0.5, sha="x")), suite("b", task("piqa", 0.5, sha="y"))])
