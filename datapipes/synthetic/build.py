"""From prompts to training rows: ask, judge, write.

`<output>/answers/` keeps what the teachers said, `train.jsonl` the rows in smoltalk2's schema (`messages`, or `chosen`
and `rejected`, with `chat_template_kwargs`), `report.json` the counts.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from rich.console import Console
from rich.table import Table

from datapipes.decontaminate import BenchmarkIndex, build_index
from datapipes.errors import SourceError
from datapipes.synthetic.answers import AnswerLog, Unusable, parse_answer
from datapipes.synthetic.prompts import Message, read_prompts
from datapipes.synthetic.recipe import SyntheticRecipe, Teacher
from datapipes.synthetic.teacher import ask
from datapipes.words import words_of

_COMMON_ANSWER_WORDS = 20  # equal answers of fewer words are no sign of a parrot: "Paris", "yes", "42"


@dataclass
class Report:
    """What became of the prompts. `lost` has the reasons; `prompts` counts repeated and unusable ones too.

    `passed_on`: how many of the prompts that were asked came with a system text, and with several questions.
    """

    prompts: int = 0
    rows: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    passed_on: Counter[str] = field(default_factory=Counter)


def build(recipe: SyntheticRecipe) -> Report:
    """Make the set of a recipe, or go on with it; nothing is asked twice.

    Raises:
        SourceError: a teacher does not answer, the disk is full, or too much is lost. The answers so far are kept. Or
            the folder holds a set of other origin.
    """
    folder = recipe.output_folder
    if (folder / "train.jsonl").exists() and not (folder / "answers").is_dir():
        raise SourceError(f"{folder} holds a train.jsonl without answers: it was not made here. Choose another output.")
    benchmarks = build_index(Path(recipe.benchmarks)) if recipe.benchmarks else None
    report = Report()
    thinking = recipe.teacher.thinking
    log = _open_log(folder, "teacher", recipe.teacher)
    ids: set[str] = set()
    ask(recipe.teacher, read_prompts(recipe.prompts, ids, report.lost, report.passed_on), log)
    report.prompts = len(ids) + report.lost.total()
    rows = _conversations(log, ids, thinking, benchmarks, report.lost)
    if recipe.rejected is not None:
        weaker = _open_log(folder, "rejected", recipe.rejected)
        ask(recipe.rejected, _questions_of(_conversations(log, ids, thinking, benchmarks, Counter())), weaker)
        rows = _pairs(rows, weaker, thinking, report.lost)
    _write(rows, recipe, report)
    return report


def _open_log(folder: Path, name: str, teacher: Teacher) -> AnswerLog:
    """The log of a teacher, which must be the one that it was begun with."""
    record = folder / "answers" / f"{name}.json"
    asked = {"model": teacher.model, "thinking": teacher.thinking, "request": teacher.request}
    if not record.is_file():
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    elif (before := json.loads(record.read_text(encoding="utf-8"))) != asked:
        raise SourceError(
            f"{record} was begun with {before}, the recipe now says {asked}. Give this set its own output, or delete "
            f"{record.parent} to ask anew."
        )
    return AnswerLog(record.with_suffix(".jsonl"))


def _conversations(
    log: AnswerLog, ids: set[str], thinking: bool, benchmarks: BenchmarkIndex | None, lost: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Supervised rows: each prompt with its answers, if all can be used; ordered by id, not by the server's speed."""
    said: set[int] = set()
    for record in log.read(sorted(ids)):
        try:
            messages = _answered(record, thinking)
            _refuse_parrot(messages[-1]["content"], said)
            text = "\n".join(message["content"] for message in messages)
            if benchmarks is not None and (name := benchmarks.first_match(text)) is not None:
                raise Unusable(f"passage of {name}")
        except Unusable as unusable:
            lost[str(unusable)] += 1
            continue
        yield {"id": record["id"], "messages": messages, "chat_template_kwargs": {"enable_thinking": thinking}}


def _answered(record: dict[str, Any], thinking: bool) -> list[Message]:
    if "refused" in record:
        raise Unusable("refused by the server")
    answers = iter(record["turns"])
    messages: list[Message] = []
    asked = record["messages"]
    for message, following in zip(asked, [*asked[1:], None], strict=True):
        messages.append(message)
        if message["role"] == "user" and not (following and following["role"] == "assistant"):
            messages.append({"role": "assistant", "content": parse_answer(next(answers), thinking).content})
    return messages


def _refuse_parrot(answer: str, said: set[int]) -> None:
    """An answer that was given to another prompt word for word is about neither."""
    if len(words_of(answer)) < _COMMON_ANSWER_WORDS:
        return
    if hash(answer) in said:
        raise Unusable("answer given before")
    said.add(hash(answer))


def _questions_of(conversations: Iterator[dict[str, Any]]) -> Iterator[Document]:
    """The prompts of accepted conversations, for the weaker model to answer their last turn."""
    for row in conversations:
        yield Document(text="", id=row["id"], metadata={"messages": row["messages"][:-1]})


def _pairs(
    conversations: Iterator[dict[str, Any]], weaker: AnswerLog, thinking: bool, lost: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Preference rows: the teacher's last answer over the weaker model's."""
    for row in conversations:
        chosen = row.pop("messages")
        (weaker_record,) = weaker.read([row["id"]])
        try:
            row |= {"chosen": chosen, "rejected": _answered(weaker_record, thinking)}
            if row["chosen"] == row["rejected"]:
                raise Unusable("chosen equals rejected")
        except Unusable as unusable:
            lost[f"rejected: {unusable}"] += 1
            continue
        yield row


def _write(rows: Iterator[dict[str, Any]], recipe: SyntheticRecipe, report: Report) -> None:
    """Rows and report, if enough is left; an unfinished file never has the final name."""
    folder = recipe.output_folder
    part = folder / "train.jsonl.part"
    try:
        with part.open("wb") as file:
            for row in rows:
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                report.rows += 1
        (folder / "report.json").write_text(json.dumps(vars(report), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be written: {error.strerror}. Free some space; the answers are kept."
        ) from None
    lost = report.lost.total()
    if not report.rows or lost > recipe.max_lost_fraction * report.prompts:
        counts = "; ".join(f"{count} x {reason}" for reason, count in report.lost.most_common(5))
        raise SourceError(
            f"{lost} of {report.prompts} conversations are lost: {counts}. max_lost_fraction allows "
            f"{recipe.max_lost_fraction:g}. Look into {folder / 'answers'}, correct the request, or raise the limit."
        )
    part.replace(folder / "train.jsonl")


def print_report(report: Report, console: Console) -> None:
    """How many of the prompts became conversations, and why the others did not."""
    table = Table("prompts", "conversations", "share")
    table.add_row("all", str(report.prompts), "")
    table.add_row("kept", str(report.rows), f"{report.rows / report.prompts:.1%}")
    for what, count in report.passed_on.items():
        table.add_row(f"with {what}", str(count), f"{count / report.prompts:.1%}")
    for reason, count in report.lost.most_common():
        table.add_row(f"lost: {reason}", str(count), f"{count / report.prompts:.1%}")
    console.print(table)
