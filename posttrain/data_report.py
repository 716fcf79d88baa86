"""What will be trained, for people: the table of the mixture and rendered samples coloured by role and by loss."""

from collections.abc import Sequence
from itertools import islice

from datasets import Dataset
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from posttrain.data import SetReport, TrainingData, with_rows
from posttrain.template import TURN_START
from posttrain.tokenization import IGNORED

_ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green"}
_TRAINED_STYLE = "bold reverse"


def print_report(data: TrainingData, console: Console) -> None:
    """One line per set and mode, totals, the reasons of every loss, and notes; `twice` counts duplicates."""
    table = Table(
        "set",
        "mode",
        "rows",
        "cut",
        "lost",
        "twice",
        "tokens",
        "trained",
        "share",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.columns[0].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    total_trained = sum(report.trained_tokens for report in data.reports)
    for report in data.reports:
        table.add_row(report.name, report.mode, *_counts(report), f"{report.trained_tokens / total_trained:.1%}")
    for mode in sorted({report.mode for report in data.reports}):
        reports = [report for report in data.reports if report.mode == mode]
        share = sum(report.trained_tokens for report in reports) / total_trained
        table.add_row("all", mode, *_counts(*reports), f"{share:.1%}", style="bold")
    console.print(table)
    for report in data.reports:
        for what, counts in (("lost", report.reasons), ("noted", report.notes)):
            for text, count in counts.items():
                line = f"  {report.name}: {what} {count} x {with_rows(text, [report])}"
                console.print(line, markup=False, soft_wrap=True)
    if data.fill_rate is not None:
        console.print(f"packed into {len(data.dataset):,} sequences, {data.fill_rate:.1%} filled")


def _counts(*reports: SetReport) -> list[str]:
    names = ("samples", "cut", "dropped", "duplicates", "tokens", "trained_tokens")
    return [f"{sum(getattr(report, name) for report in reports):,}" for name in names]


def print_samples(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, count: int, max_tokens: int, console: Console
) -> None:
    """The first `count` rows as the trainer sees them; reversed text carries loss, colours are roles."""
    for row in islice(dataset, count):
        if "input_ids" in row:
            pieces = [(row["input_ids"], row["labels"])]
        else:
            pieces = [
                (row["prompt_ids"] + row[name], [IGNORED] * len(row["prompt_ids"]) + row[name])
                for name in ("chosen_ids", "rejected_ids")
            ]
        for ids, labels in pieces:
            console.print(coloured(ids[:max_tokens], labels[:max_tokens], tokenizer))
            console.rule()


def coloured(ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Text:
    """The decoded tokens; runs of equal style are decoded together, so that multi-byte characters stay whole."""
    text, style, run = Text(), "", list[int]()
    turn_start = tokenizer.convert_tokens_to_ids(TURN_START)
    role = ""
    for position, (token_id, label) in enumerate(zip(ids, labels, strict=True)):
        if token_id == turn_start and position + 1 < len(ids):
            role = str(tokenizer.decode([*ids[position + 1 : position + 7]])).partition("\n")[0].strip()
        token_style = f"{_ROLE_STYLES.get(role, 'white')}{f' {_TRAINED_STYLE}' if label != IGNORED else ''}"
        if token_style != style:
            text.append(str(tokenizer.decode(run)), style)
            style, run = token_style, []
        run.append(token_id)
    text.append(str(tokenizer.decode(run)), style)
    return text
