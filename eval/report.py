"""`python -m eval.report RESULTS`: models side by side as a Markdown table, and as a sortable page with --html.

RESULTS is the output folder of an evaluation recipe (runs/<profile>/eval). With `--reference MODEL` every other model
is held against that one, and the exit code is 2 if a score lies more than `--tolerance` standard errors below it.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pydantic import ValidationError

from eval.published import published_score
from eval.results import SuiteResult, TaskResult, read_suite
from nanotron_ext.errors import UserError

# The twelve whose ranks make the win rate of base models.
WIN_RATE_TASKS: tuple[str, ...] = (
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "commonsense_qa",
    "mmlu",
    "mmlu_pro",
    "piqa",
)
WIN_RATE_TASKS += ("openbookqa", "boolq", "gsm8k", "math")
_FRACTION_METRICS_ABOVE_ONE = ("chrf++", "bleu")  # already in 0 ... 100


@dataclass(frozen=True)
class Table:
    """`cells[(suite, task)][model]`; rows and models in order of appearance."""

    models: list[str]
    cells: dict[tuple[str, str], dict[str, TaskResult]]


class ReportError(UserError):
    """Results that cannot be compared; the message is for the user."""


def read_results(folder: Path) -> list[SuiteResult]:
    """All <folder>/<model>/<suite>.json.

    Raises:
        ReportError: if there are none, or one is not a result file.
    """
    results = []
    for file in sorted(folder.glob("*/*.json")):
        try:
            results.append(read_suite(file))
        except ValidationError as error:
            raise ReportError(f"{file} is not a result of this version: {error.errors()[0]['msg']}") from None
    if not results:
        raise ReportError(f"There are no results in {folder}. Run: python -m eval RECIPE --model FOLDER")
    return results


def build_table(results: Sequence[SuiteResult]) -> Table:
    """Raises ReportError if one row would mix data: scores on different data do not compare."""
    models: list[str] = []
    cells: dict[tuple[str, str], dict[str, TaskResult]] = {}
    for result in results:
        if result.model.name not in models:
            models.append(result.model.name)
        for task in result.tasks:
            row = cells.setdefault((result.suite, task.task), {})
            row[result.model.name] = task
            # Generated prompts differ with the tokenizer by nature.
            if len({entry.dataset.sha256 for entry in row.values() if entry.dataset.edition != "generated"}) > 1:
                raise ReportError(
                    f"{result.suite}/{task.task} was evaluated on different data; evaluate one of them again."
                )
    return Table(models, cells)


def percent(task: TaskResult) -> tuple[float, float | None]:
    """(value, standard error) of the main metric, both on a scale of 0 to 100."""
    metric = task.main_metric
    scale = 1.0 if metric.name in _FRACTION_METRICS_ABOVE_ONE else 100.0
    return metric.value * scale, None if metric.stderr is None else metric.stderr * scale


def win_rates(table: Table) -> dict[str, float]:
    """Per model, the share of (task, other model) pairs that it wins on the base tasks, in percent; ties count half."""
    rows = [row for (_, task), row in table.cells.items() if task in WIN_RATE_TASKS]
    rates = {}
    for model in table.models:
        points = []
        for row in rows:
            for other in row.keys() - {model}:
                if model in row:
                    ours, theirs = percent(row[model])[0], percent(row[other])[0]
                    points.append(0.5 if ours == theirs else float(ours > theirs))
        if points:
            rates[model] = 100 * sum(points) / len(points)
    return rates


def regressions(table: Table, reference: str, tolerance: float) -> list[str]:
    """Sentences about every score that lies more than `tolerance` combined standard errors below the reference's."""
    if reference not in table.models:
        raise ReportError(f"There is no model {reference!r} in these results, only {', '.join(table.models)}.")
    found = []
    for (suite, task), row in table.cells.items():
        if reference not in row:
            continue
        wanted, wanted_error = percent(row[reference])
        for model, result in row.items():
            value, error = percent(result)
            margin = tolerance * math.hypot(error or 0.0, wanted_error or 0.0)
            if model != reference and value < wanted - margin:
                found.append(
                    f"{model}: {suite}/{task} is {value:.2f}, more than {margin:.2f} below {reference} ({wanted:.2f})."
                )
    return found


def _rows(table: Table) -> list[list[str]]:
    """Cells as text, header first."""
    header = ["suite", "task", "metric", "documents", "chance", *table.models, "SmolLM3-3B"]
    rows = [header]
    for (suite, task), row in table.cells.items():
        first = next(iter(row.values()))
        chance = "" if first.chance is None else f"{100 * first.chance:.0f}"
        small = {"small": " †", "generated": " ‡"}.get(first.dataset.edition, "")
        published = published_score(first.benchmark, first.mode) if first.dataset.edition == "full" else None
        cells = [_cell(row[model]) if model in row else "" for model in table.models]
        last = "" if published is None else f"{published:.2f}"
        rows.append([suite, task + small, first.main_metric.name, str(first.num_documents), chance, *cells, last])
    rates = win_rates(table)
    if len(rates) > 1:
        rows.append(
            ["base", "win rate", "", "", "50", *(f"{rates.get(model, math.nan):.1f}" for model in table.models), ""]
        )
    return rows


def _cell(task: TaskResult) -> str:
    value, error = percent(task)
    text = f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")
    if task.num_unclosed_reasoning:
        text += f" (unclosed {task.num_unclosed_reasoning}/{task.num_documents * task.num_samples})"
    if task.num_over_length:
        text += f" (too long {task.num_over_length}/{task.num_documents})"
    return text


_NOTES = (
    "Percent ± standard error. † our own small edition of the set: not comparable with published numbers. "
    "‡ generated prompts. 'unclosed': answers that never left their reasoning, counted as wrong."
)


def to_markdown(table: Table) -> str:
    header, *rows = _rows(table)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", _NOTES, ""])


_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse}"
    "th,td{padding:.35rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "th{cursor:pointer;background:#f4f4f4;position:sticky;top:0}th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}"
)
_SCRIPT = """
document.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
  const body = document.querySelector("tbody"), rows = [...body.rows], up = head.dataset.up !== "1";
  const key = row => { const text = row.cells[column].textContent, value = parseFloat(text);
    return isNaN(value) ? text : value; };
  rows.sort((a, b) => { const x = key(a), y = key(b);
    const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? 1 : -1;
    return up ? order : -order; });
  head.dataset.up = up ? "1" : "0";
  rows.forEach(row => body.append(row));
}));
"""


def to_html(table: Table) -> str:
    header, *rows = _rows(table)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>Evaluation</title><style>{_STYLE}</style>\n<h1>Evaluation</h1>\n<p>{escape(_NOTES)}</p>\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
        f"<script>{_SCRIPT}</script></html>\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="output folder of an evaluation recipe")
    parser.add_argument("--model", action="append", help="only this model (may be repeated)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page as well")
    parser.add_argument("--reference", metavar="MODEL", help="fail if another model scores below this one")
    parser.add_argument("--tolerance", type=float, default=2.0, help="in standard errors of the difference (default 2)")
    parsed = parser.parse_args(arguments)
    try:
        results = [r for r in read_results(parsed.results) if not parsed.model or r.model.name in parsed.model]
        table = build_table(results)
        failures = regressions(table, parsed.reference, parsed.tolerance) if parsed.reference else []
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(to_markdown(table))
    if parsed.html:
        parsed.html.write_text(to_html(table), encoding="utf-8")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
