"""Models side by side, and beside the announced scores, as Markdown and as a page."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from eval.page import Cell, Sheet, to_html, to_markdown
from eval.published import BASE_MODELS, CARD, CardRow, differences
from eval.results import SuiteResult, TaskResult, read_suite
from foundation.errors import UserError

_PERCENT_METRICS = ("chrf++",)  # already on a scale of 0 to 100
EDITION_MARKS = {"small": " †", "generated": " ‡"}


@dataclass(frozen=True)
class Table:
    """`cells[(suite, task)][model]`; rows and models in order of appearance."""

    models: list[str]
    cells: dict[tuple[str, str], dict[str, TaskResult]]


class TableError(UserError):
    """Results that cannot be compared; the message is for the user."""


def read_results(folder: Path) -> list[SuiteResult]:
    """All <folder>/<model>/<suite>.json.

    Raises:
        TableError: if there are none, or one is not a result file.
    """
    results = []
    for file in sorted(folder.glob("*/*.json")):
        try:
            results.append(read_suite(file))
        except ValidationError as error:
            raise TableError(
                f"{file} is not a result of this version ({error.errors()[0]['msg']}). Remove it or evaluate again."
            ) from None
    if not results:
        raise TableError(f"There are no results in {folder}. Make some: smollm3 eval --model FOLDER")
    return results


def of_models(results: Sequence[SuiteResult], names: Sequence[str]) -> list[SuiteResult]:
    """The results of the models with these names.

    Raises:
        TableError: there is no result of one.
    """
    known = sorted({result.model.name for result in results})
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {close[0]}?" if close else f"There are results of {', '.join(known)}."
            raise TableError(f"There is no result of a model {name}. {hint}")
    return [result for result in results if result.model.name in names]


def build_table(results: Sequence[SuiteResult]) -> Table:
    """Raises TableError if one row would mix data: scores on different data do not compare."""
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
                raise TableError(
                    f"{result.suite}/{task.task} was evaluated on different data; evaluate one of them again."
                )
    return Table(models, cells)


def percent(task: TaskResult) -> tuple[float, float | None]:
    """(value, standard error) of the main metric, both on a scale of 0 to 100."""
    metric = task.main_metric
    scale = 1.0 if metric.name in _PERCENT_METRICS else 100.0
    return metric.value * scale, None if metric.stderr is None else metric.stderr * scale


@dataclass(frozen=True)
class CardScore:
    """Mean over the tasks of a row of the card. `in_full`: all of them ran on the real data in full; `differences`: how
    they were asked or scored in another way than the card's, in words."""

    value: float
    stderr: float
    in_full: bool
    differences: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        return self.in_full and not self.differences


def card_score(table: Table, row: CardRow, model: str) -> CardScore | None:
    """Our score for a row of the card; None if the model lacks one of the row's tasks that another model has."""
    rows = [
        entry
        for (_, name), entry in table.cells.items()
        if row.tasks.fullmatch(name.removesuffix(f".{row.mode}"))
        and any(task.mode == row.mode for task in entry.values())
    ]
    if not rows or any(model not in entry for entry in rows):
        return None
    tasks = [entry[model] for entry in rows]
    scores = [percent(task) for task in tasks]
    return CardScore(
        value=sum(value for value, _ in scores) / len(scores),
        stderr=math.hypot(*(error or 0.0 for _, error in scores)) / len(scores),
        differences=tuple(row.differences(tasks)),
        in_full=all(
            task.dataset.edition == "generated"
            or (task.dataset.edition == "full" and task.settings["max_documents"] is None)
            for task in tasks
        ),
    )


def base_scores(table: Table) -> dict[str, dict[str, float]]:
    """Row of the card -> model -> score, for the twelve benchmarks of the win rate. The card's models ("card NAME") are
    in it where our scores compare with theirs."""
    found = {}
    for row in CARD:
        ours = {model: score for model in table.models if (score := card_score(table, row, model)) is not None}
        if row.in_win_rate and ours:
            found[row.label] = {model: score.value for model, score in ours.items()}
            if all(score.comparable for score in ours.values()):
                found[row.label] |= {f"card {model}": value for model, value in row.scores.items()}
    return found


def win_rates(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Per model, the share of (task, other model) pairs that it wins, in percent; ties count half.

    `scores[task][model]`: a pair counts where both models have the task.
    """
    points: dict[str, list[float]] = {}
    for row in scores.values():
        for model, ours in row.items():
            wins = [0.5 if ours == theirs else float(ours > theirs) for other, theirs in row.items() if other != model]
            points.setdefault(model, []).extend(wins)
    return {model: 100 * sum(wins) / len(wins) for model, wins in points.items() if wins}


def regressions(table: Table, reference: str, tolerance: float) -> list[str]:
    """Sentences about every score that lies more than `tolerance` combined standard errors below the reference's."""
    if reference not in table.models:
        raise TableError(f"There is no model {reference!r} in these results, only {', '.join(table.models)}.")
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


def task_sheets(table: Table) -> list[Sheet]:
    """A sheet per suite: its tasks, and one column for each model that was asked."""
    suites: dict[str, dict[str, dict[str, TaskResult]]] = {}
    for (suite, task), row in table.cells.items():
        suites.setdefault(suite, {})[task] = row
    return [_suite_sheet(table, suite, tasks) for suite, tasks in suites.items()]


def _suite_sheet(table: Table, suite: str, tasks: dict[str, dict[str, TaskResult]]) -> Sheet:
    models = [model for model in table.models if any(model in row for row in tasks.values())]
    results = [result for row in tasks.values() for result in row.values()]
    has_chance = any(result.chance is not None for result in results)
    rows = []
    for task, row in tasks.items():
        first = next(iter(row.values()))
        chance = Cell("") if first.chance is None else Cell(f"{100 * first.chance:.0f}", 100 * first.chance)
        documents = f"{first.num_documents}" + (f" x {first.num_samples}" if first.num_samples > 1 else "")
        mark = EDITION_MARKS.get(first.dataset.edition, "") + (" §" if differences(first.benchmark) else "")
        cells = [_score_cell(row[model]) if model in row else Cell("") for model in models]
        about = [*([chance] if has_chance else []), Cell(first.main_metric.name), Cell(documents, first.num_documents)]
        rows.append([Cell(task + mark), *cells, *about])
    header = ["task", *models, *(["chance"] if has_chance else []), "metric", "documents"]
    return Sheet(f"Suite {suite}", header, rows, _note(results))


def _note(results: Sequence[TaskResult]) -> str:
    """What the marks in a sheet of these results mean."""
    editions = {result.dataset.edition for result in results}
    parts = {
        "Percent ± standard error.": True,
        "† our own small edition of the set, not comparable with published numbers.": "small" in editions,
        "‡ generated prompts.": "generated" in editions,
        "§ another test than the published one of that name.": any(differences(r.benchmark) for r in results),
        "documents: x answers per document.": any(result.num_samples > 1 for result in results),
        "unclosed: answers that never left their reasoning, counted as wrong.": any(
            result.num_unclosed_reasoning for result in results
        ),
        "too long: documents whose prompt or answer met the end of the window.": any(
            result.num_over_length for result in results
        ),
    }
    return " ".join(text for text, applies in parts.items() if applies)


def _score_cell(task: TaskResult) -> Cell:
    value, error = percent(task)
    text = f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")
    notes = []
    if task.num_unclosed_reasoning:
        notes.append(f"(unclosed {task.num_unclosed_reasoning}/{task.num_documents * task.num_samples})")
    if task.num_over_length:
        notes.append(f"(too long {task.num_over_length}/{task.num_documents})")
    return Cell(text, value, " ".join(notes))


def _card_cell(score: CardScore | None) -> Cell:
    if score is None:
        return Cell("")
    marks = ("" if score.in_full else " †") + (" §" if score.differences else "")
    return Cell(f"{score.value:.2f} ± {score.stderr:.2f}{marks}", score.value)


def card_sheet(table: Table) -> Sheet | None:
    """Our models beside the announced scores, with the win rate over the twelve base benchmarks; None if no task of
    ours is on the card."""
    models = [model for model in table.models if any(card_score(table, row, model) is not None for row in CARD)]
    rows = []
    for row in CARD:
        ours = {model: score for model in table.models if (score := card_score(table, row, model)) is not None}
        if not ours:
            continue
        cells = [Cell(row.label), Cell(row.mode)]
        cells += [_card_cell(ours.get(model)) for model in models]
        for model in BASE_MODELS:
            cells.append(Cell(f"{row.scores[model]:.2f}", row.scores[model]) if model in row.scores else Cell(""))
        found = dict.fromkeys(text for score in ours.values() for text in score.differences)
        rows.append([*cells, Cell("; ".join(found))])
    if not rows:
        return None
    counted = base_scores(table)
    rates = win_rates(counted)
    if rates:
        columns = [*models, *(f"card {model}" for model in BASE_MODELS)]
        cells = [Cell(f"{rates[name]:.1f}", rates[name]) if name in rates else Cell("") for name in columns]
        label = f"Win rate over {sum(len(row) > 1 for row in counted.values())} of the 12 base benchmarks"
        rows.append([Cell(label), Cell("plain"), *cells, Cell("")])
    header = ["benchmark", "mode", *models, *(f"{model} (card)" for model in BASE_MODELS), "§ what is another test"]
    note = (
        "Means over the tasks of each row of the SmolLM3 model card, beside the scores announced there. † on our small "
        "edition, or on a part of the documents; § not asked or scored as for the card, and the last column says how: "
        "neither compares with the card, and both are left out of the win rate against it."
    )
    return Sheet("Beside the announced scores", header, rows, note)


def write_tables(folder: Path, table: Table) -> str:
    """Write table.md and table.html into `folder`; returns the Markdown."""
    card = card_sheet(table)
    sheets = [*task_sheets(table), *([card] if card else [])]
    markdown = to_markdown(sheets)
    (folder / "table.md").write_text(markdown, encoding="utf-8")
    (folder / "table.html").write_text(to_html("Evaluation", sheets), encoding="utf-8")
    return markdown
