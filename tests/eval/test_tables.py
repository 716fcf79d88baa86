"""The comparison table, the gate, and the win rate."""

import pytest

from eval.published import CARD
from eval.recipe import load_eval_recipe
from eval.report import ReportError, build_table, main, regressions, task_sheets, win_rates
from eval.results import DatasetInfo, Metric, ModelInfo, SuiteResult, TaskResult, write_json


def task(name, value, stderr=0.02, edition="full", sha="a", unclosed=0):
    return TaskResult(
        task=name, benchmark=name, mode="plain", metrics=[Metric(name="acc", value=value, stderr=stderr, main=True)],
        chance=0.25, num_documents=50, num_samples=1, num_unclosed_reasoning=unclosed, num_over_length=0, seconds=1.0,
        dataset=DatasetInfo(repo="r", subset="s", split="t", revision="v", edition=edition, sha256=sha),
        settings={"max_documents": None}, fingerprint="f",
    )  # fmt: skip


def suite(model, *tasks):
    info = ModelInfo(
        name=model, path=model, weights_sha256="0", tokenizer_sha256="0", chat_template_sha256=None, num_parameters=1
    )
    return SuiteResult(suite="base", model=info, tasks=list(tasks), seconds=1, versions={}, command="", created="")


def test_tables_show_values_errors_editions_and_announced_scores(tmp_path, capsys):
    ours = suite("ours", task("hellaswag", 0.5), task("gsm8k", 0.25, unclosed=3), task("arc_easy", 0.8),
                 task("arc_challenge", 0.4))  # fmt: skip
    write_json(ours, tmp_path / "ours" / "base.json")
    write_json(suite("small <1>", task("piqa", 0.75, edition="small")), tmp_path / "small" / "base.json")
    assert main([str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in table
    assert "| hellaswag | 50.00 ± 2.00 |  | 25 | acc | 50 |" in table
    assert "25.00 ± 2.00 (unclosed 3/50)" in table
    assert "| piqa † |  | 75.00 ± 2.00 | 25 | acc | 50 |" in table
    assert "| HellaSwag | plain | 50.00 ± 2.00 |  | 76.15 | 74.19 | 75.52 | 60.52 | 74.37 |" in table
    assert "| ARC (mean of both) | plain | 60.00 ± 1.41 |  | 65.61 |" in table
    assert "| PIQA | plain |  | 75.00 ± 2.00 † | 78.89 |" in table
    # HellaSwag: worst; ARC: between; GSM8K: worst. Five announced models each; PIQA has nobody to compare with.
    assert "| Win rate over 4 of the 12 base benchmarks | plain | 20.0 |  |" in table
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
    with pytest.raises(ReportError, match="no model 'gone'"):
        regressions(table, "gone", 2.0)
    for name, value in (("ref", 0.7), ("low", 0.6)):
        write_json(suite(name, task("piqa", value)), tmp_path / name / "base.json")
    assert main([str(tmp_path), "--reference", "ref"]) == 1
    assert main([str(tmp_path), "--reference", "ref", "--tolerance", "9"]) == 0
    assert main([str(tmp_path / "none")]) == 2 and "There are no results" in capsys.readouterr().err


def test_scores_on_different_data_are_not_put_in_one_row():
    with pytest.raises(ReportError, match="different data"):
        build_table([suite("a", task("piqa", 0.5, sha="x")), suite("b", task("piqa", 0.5, sha="y"))])
