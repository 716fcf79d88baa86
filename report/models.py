"""Sections about what the models can do: retrieval, taught tasks, the merge, benchmarks, samples."""

import math
from collections.abc import Mapping
from typing import Any

from eval.published import differences
from eval.results import TaskResult
from eval.tables import EDITION_MARKS, base_scores, build_table, percent, win_rates
from eval.tables import Table as EvaluationTable
from foundation.charts import Series
from report.blocks import Block, Chart, Details, Missing, Sample, Table, Text
from report.collect import Report

_SAMPLE_CHARACTERS = 600
_OPEN_SUITE = "base"  # the other suites' tables are folded away
_MODES = ("think", "no_think")
_EDITION_NOTE = (
    "† our own small edition of the set, a few dozen items: not comparable with published numbers. ‡ generated "
    "prompts. § another test than the published one of that name; the table of smollm3 eval-report says how. "
    "A difference within the standard errors says nothing."
)


def retrieval(report: Report) -> list[Block]:
    """Scores of the generated long-context tasks: a row per model and task, a column per length. RULER's are marked."""
    scores: dict[str, dict[tuple[str, int], TaskResult]] = {}
    for result in report.evaluations:
        for task in result.tasks:
            if task.is_retrieval:
                name = task.benchmark.removeprefix("ruler_") + (" §" if differences(task.benchmark) else "")
                place = name, int(task.settings["context_tokens"] or 0)
                scores.setdefault(result.model.name, {})[place] = task
    if not scores:
        return [Missing("Retrieval by length", report.commands["eval_long"])]
    lengths = sorted({length for cells in scores.values() for _, length in cells})
    rows, heat = [], []
    for model in _in_chain_order(report, set(scores)):
        cells = scores[model]
        for name in dict.fromkeys(name for name, _ in cells):
            row = [cells.get((name, length)) for length in lengths]
            rows.append([model, name, *("" if cell is None else _score(cell) for cell in row)])
            heat.append([None, None, *(None if cell is None else percent(cell)[0] / 100 for cell in row)])
    table = Table(["model", "task", *(f"{length:,}" for length in lengths)], rows, heat, text_columns=2)
    ruler = Text(f"§ a task of RULER, but not the published test: {differences('ruler_vt')}.")
    return [table, ruler] if any("§" in row[1] for row in rows) else [table]


def capabilities(report: Report) -> list[Block]:
    if report.capabilities is None:
        return [Missing("The taught tasks in both modes", report.commands["capabilities"])]
    models = {name.rsplit("/", 1)[-1]: content["summary"] for name, content in report.capabilities["models"].items()}
    tasks = [task for task in next(iter(models.values())) if task != "all"]
    measures = {"right": "correct", "keeps to the mode": "followed_mode", "ends": "ended"}
    return [
        _shares_table(models, {title: ("all", measure) for title, measure in measures.items()}),
        Details("Right, task by task", [_shares_table(models, {task: (task, "correct") for task in tasks})]),
        Text(f"Sampling seeds per prompt: {report.capabilities['seeds']}."),
    ]


def _shares_table(models: Mapping[str, Any], columns: Mapping[str, tuple[str, str]]) -> Table:
    """A row per model and mode; `columns` maps a heading to (task, measure)."""
    rows, heat = [], []
    for model, shares_of in models.items():
        for mode in _MODES:
            shares = [shares_of[task][mode][measure] for task, measure in columns.values()]
            rows.append([model, mode, *(_interval(share) for share in shares)])
            heat.append([None, None, *(share["value"] for share in shares)])
    return Table(["model", "mode", *columns], rows, heat, text_columns=2)


def _interval(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.0f} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def merge(report: Report) -> list[Block]:
    """The mean over the tasks with its error; the tasks themselves folded away."""
    if report.sweep is None:
        return [Missing("Scores over the share of the soup", report.commands["merge_sweep"])]
    rows = report.sweep["rows"]
    means, errors = [100 * row["mean"] for row in rows], [_error_of_mean(row["scores"]) for row in rows]
    series = Series("mean", [row["soup_weight"] for row in rows], means, errors, marks=True)
    best = max(range(len(rows)), key=lambda i: means[i])
    tied = [
        f"{rows[i]['soup_weight']:g}"
        for i in range(len(rows))
        if i != best and means[best] - means[i] <= math.hypot(errors[best], errors[i])
    ]
    verdict = f"The best mean is at {report.sweep['best_soup_weight']:g}"
    if tied:
        verdict += f"; no further below it than the standard error of the difference: {', '.join(tied)}"
    text = f"1 is the soup alone, 0 the mid-training checkpoint alone. {verdict}."
    table = Table(
        ["score, percent", *(f"{row['soup_weight']:g}" for row in rows)],
        [[task, *(f"{100 * row['scores'][task]['value']:.0f}" for row in rows)] for task in rows[0]["scores"]],
        [[None, *(row["scores"][task]["value"] for row in rows)] for task in rows[0]["scores"]],
    )
    caption = "Mean score over the share of the soup, ± one standard error"
    return [
        Text(text), Chart("merge", caption, [series], "share of the soup", "mean score, percent"),
        Details("Every task, by the share of the soup", [table]),
    ]  # fmt: skip


def _error_of_mean(scores: Mapping[str, Any]) -> float:
    return 100 * math.hypot(*(score["stderr"] or 0.0 for score in scores.values())) / len(scores)


def benchmarks(report: Report) -> list[Block]:
    """A table per suite, with the models that were asked; retrieval has its own section."""
    if not report.evaluations:
        return [Missing("The benchmarks", report.commands["evaluation"])]
    table = build_table(report.evaluations)
    rows: dict[str, dict[str, dict[str, TaskResult]]] = {}
    for (suite, name), row in table.cells.items():
        if not next(iter(row.values())).is_retrieval:
            rows.setdefault(suite, {})[name] = row
    tables = {suite: _suite_table(report, suite, tasks) for suite, tasks in rows.items()}
    first: list[Block] = [tables.pop(_OPEN_SUITE)] if _OPEN_SUITE in tables else []
    others = [Details(f"Suite {suite}", [sheet]) for suite, sheet in tables.items()]
    return [*first, *_win_rate_block(report, table), *others, Text(_EDITION_NOTE)]


def _suite_table(report: Report, suite: str, tasks: Mapping[str, Mapping[str, TaskResult]]) -> Table:
    models = _in_chain_order(report, {model for row in tasks.values() for model in row})
    rows, heat = [], []
    for name, row in tasks.items():
        first = next(iter(row.values()))
        mark = EDITION_MARKS.get(first.dataset.edition, "") + (" §" if differences(first.benchmark) else "")
        chance = "" if first.chance is None else f"{100 * first.chance:.0f}"
        rows.append([name + mark, *(_score(row[m]) if m in row else "" for m in models), chance])
        heat.append([None, *(percent(row[m])[0] / 100 if m in row else None for m in models), None])
    return Table([suite, *models, "chance"], rows, heat)


def _win_rate_block(report: Report, table: EvaluationTable) -> list[Block]:
    rates = win_rates(base_scores(table))
    models = [model for model in _in_chain_order(report, set(table.models)) if model in rates]
    if len(models) < 2:
        return []
    return [Table(["wins over the other models on the base tasks", "%"], [[m, f"{rates[m]:.1f}"] for m in models])]


def _score(task: TaskResult) -> str:
    value, error = percent(task)
    return f"{value:.0f}" + ("" if error is None else f" ± {error:.0f}")


def _in_chain_order(report: Report, models: set[str]) -> list[str]:
    order = [training.name for training in (*report.pretraining, *report.posttraining)] + ["soup", "merged"]
    return sorted(models, key=lambda model: (order.index(model) if model in order else len(order), model))


def samples(report: Report) -> list[Block]:
    """The pretrained model's continuations, then the last model's answers: with thinking, and without folded away."""
    blocks: list[Block] = []
    if report.summary:
        blocks += [Sample("after pretraining, greedy", "", _cut(text)) for text in report.summary["samples"]]
    if report.capabilities:
        name, content = list(report.capabilities["models"].items())[-1]
        answers: dict[str, dict[str, Sample]] = {mode: {} for mode in _MODES}
        for reply in content["replies"]:
            verdict = "right" if reply["correct"] else "wrong"
            label = f"{name.rsplit('/', 1)[-1]}, {reply['mode']}, {reply['task']}: {verdict}"
            sample = Sample(label, reply["question"], _cut(reply["text"]))
            answers[reply["mode"]].setdefault(reply["task"], sample)
        thinking, direct = (list(answers[mode].values()) for mode in _MODES)
        blocks += [*thinking, Details("The same questions without thinking", direct)]
    return blocks or [Missing("Samples", report.commands["export"])]


def _cut(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."
