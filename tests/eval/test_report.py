"""The comparison table, the gate, and the win rate."""

import pytest

from eval.report import ReportError, build_table, main, regressions, to_html, win_rates
from eval.results import DatasetInfo, Metric, ModelInfo, SuiteResult, TaskResult, write_json


def task(name, value, stderr=0.02, edition="full", sha="a", unclosed=0):
    return TaskResult(
        task=name, benchmark=name, mode="plain", metrics=[Metric(name="acc", value=value, stderr=stderr, main=True)],
        chance=0.25, num_documents=50, num_samples=1, num_unclosed_reasoning=unclosed, num_over_length=0, seconds=1.0,
        dataset=DatasetInfo(repo="r", subset="s", split="t", revision="v", edition=edition, sha256=sha),
        settings={}, fingerprint="f",
    )  # fmt: skip


def suite(model, *tasks):
    info = ModelInfo(name=model, path=model, weights_sha256="0", chat_template_sha256=None, num_parameters=1)
    return SuiteResult(suite="base", model=info, tasks=list(tasks), seconds=1, versions={}, command="", created="")


def test_table_shows_values_errors_editions_and_published_numbers(tmp_path, capsys):
    write_json(suite("ours", task("hellaswag", 0.5), task("gsm8k", 0.25, unclosed=3)), tmp_path / "ours" / "base.json")
    write_json(suite("small <1>", task("piqa", 0.75, edition="small")), tmp_path / "small" / "base.json")
    page = tmp_path / "report.html"
    assert main([str(tmp_path), "--html", str(page)]) == 0
    table = capsys.readouterr().out
    assert "| base | hellaswag | acc | 50 | 25 | 50.00 ± 2.00 |  | 76.15 |" in table
    assert "25.00 ± 2.00 (unclosed 3/50)" in table
    assert "| base | piqa † | acc | 50 | 25 |  | 75.00 ± 2.00 |  |" in table
    assert "small &lt;1&gt;" in page.read_text(encoding="utf-8")


def test_win_rate_counts_pairs_and_ties():
    table = build_table(
        [
            suite("a", task("hellaswag", 0.9), task("piqa", 0.5), task("not_counted", 0.0)),
            suite("b", task("hellaswag", 0.8), task("piqa", 0.5), task("not_counted", 1.0)),
            suite("c", task("hellaswag", 0.7), task("piqa", 0.4)),
        ]
    )
    assert win_rates(table) == {"a": 87.5, "b": 62.5, "c": 0.0}


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
    assert main([str(tmp_path), "--reference", "ref"]) == 2
    assert main([str(tmp_path), "--reference", "ref", "--tolerance", "9"]) == 0
    assert main([str(tmp_path / "none")]) == 2 and "There are no results" in capsys.readouterr().err


def test_scores_on_different_data_are_not_put_in_one_row():
    with pytest.raises(ReportError, match="different data"):
        build_table([suite("a", task("piqa", 0.5, sha="x")), suite("b", task("piqa", 0.5, sha="y"))])
    assert "<th>a</th>" in to_html(build_table([suite("a", task("piqa", 0.5))]))
