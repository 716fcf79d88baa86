"""Mode following and taught tasks on held-out prompts.

Every prompt runs in both modes, the mode set by the template argument for one half of the prompts and by a flag in the
system message for the other. The prompt ends with the bare assistant header, also with reasoning off: the model itself
has to open with an empty or a filled think block.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from foundation.json_text import loads
from posttrain.generate import ChatModel, ModelError, Sampling
from posttrain.template import EMPTY_THINK_BLOCK, Mode, parse_reply

MODES: tuple[Mode, ...] = ("think", "no_think")


@dataclass(frozen=True)
class Judged:
    """One reply: did it stay in the mode, end its turn, and give the right answer."""

    task: str
    mode: Mode
    seed: int
    followed_mode: bool
    ended: bool
    correct: bool
    question: str
    text: str


@dataclass(frozen=True)
class Proportion:
    """A share with its 95 % interval. Trials of one prompt under several seeds count as separate trials."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        return self.successes / self.trials

    def interval(self) -> tuple[float, float]:
        """Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22), z = 1.96."""
        z, n, p = 1.959963984540054, self.trials, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{100 * self.value:5.1f} [{100 * low:.0f}, {100 * high:.0f}]"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval()
        return {**asdict(self), "value": self.value, "low": low, "high": high}


def bare_prompt(chat_model: ChatModel, row: dict[str, Any], mode: Mode, flag_in_system: bool, date: str) -> str:
    """The prompt without the empty think block that the template adds with reasoning off."""
    arguments: dict[str, Any] = {"xml_tools": row.get("xml_tools") or None, "date_string": date}
    messages = [{"role": "user", "content": row["question"]}]
    if flag_in_system:
        messages.insert(0, {"role": "system", "content": f"/{mode}"})
    else:
        arguments["enable_thinking"] = mode == "think"
    return chat_model.prompt(messages, **arguments).removesuffix(EMPTY_THINK_BLOCK)


def judge(row: dict[str, Any], mode: Mode, seed: int, text: str, ended: bool) -> Judged:
    """The answer after the think block must equal the expected text; tool calls must equal the expected call."""
    reply, expected = parse_reply(text), parse_reply(row["answer"])
    correct = reply.answer == expected.answer and reply.tool_calls == expected.tool_calls
    return Judged(
        row["task"], mode, seed, reply.mode == mode, ended, ended and correct, row["question"], text
    )  # fmt: skip


def evaluate(
    chat_model: ChatModel,
    rows: Sequence[dict[str, Any]],
    *,
    seeds: Iterable[int],
    sampling: Sampling,
    date: str,
    batch_size: int = 64,
) -> list[Judged]:
    """All prompts in both modes under every seed."""
    runs = [(row, mode, bool(index % 2)) for index, row in enumerate(rows) for mode in MODES]
    prompts = [bare_prompt(chat_model, row, mode, flag, date) for row, mode, flag in runs]
    judged = []
    for seed in seeds:
        torch.manual_seed(seed)
        replies = chat_model.sample(prompts, sampling, batch_size)
        judged += [
            judge(row, mode, seed, text, ended)
            for (row, mode, _), (text, ended) in zip(runs, replies, strict=True)
        ]  # fmt: skip
    return judged


def summarise(judged: Sequence[Judged]) -> dict[str, dict[str, dict[str, Proportion]]]:
    """task (or "all") -> mode -> correct, followed_mode, ended."""
    summary: dict[str, dict[str, dict[str, Proportion]]] = {}
    for task in ["all", *dict.fromkeys(item.task for item in judged)]:
        summary[task] = {}
        for mode in MODES:
            items = [item for item in judged if task in ("all", item.task) and item.mode == mode]
            summary[task][mode] = {
                name: Proportion(sum(getattr(item, name) for item in items), len(items))
                for name in ("correct", "followed_mode", "ended")
            }
    return summary


def print_table(results: dict[str, list[Judged]], console: Console) -> None:
    for name, judged in results.items():
        table = Table("task", "mode", "correct", "follows mode", "ends turn", title=f"{name}: % with 95 % intervals")
        for task, modes in summarise(judged).items():
            for mode, shares in modes.items():
                table.add_row(task, mode, *map(str, shares.values()))
        console.print(table)


def load_prompts(path: Path) -> list[dict[str, Any]]:
    """JSON lines with task, question, answer and optionally xml_tools and multi_step (of a task that takes several
    steps: there the report compares the modes).

    Raises:
        ModelError: absent, not JSON, or a row without those keys.
    """
    try:
        rows = [loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ModelError(f"The prompts {path} cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        missing = [key for key in ("task", "question", "answer") if not isinstance(row, dict) or key not in row]
        if missing:
            raise ModelError(f"{path}:{number} has no {' and no '.join(missing)}.")
    if not rows:
        raise ModelError(f"{path} holds no prompt.")
    return rows


def evaluate_models(
    folders: Sequence[str], rows: Sequence[dict[str, Any]], *, seeds: int, sampling: Sampling, date: str
) -> dict[str, list[Judged]]:
    """`evaluate` for each of the transformers folders; a base model is given our chat template.

    Raises:
        ModelError: one is no model that can be asked.
    """
    logging.disable_progress_bar()
    results = {}
    for folder in folders:
        chat_model = ChatModel.load(folder, template_if_none="dual_mode")
        print(f"{folder}: {len(rows)} prompts x 2 modes x {seeds} seeds", file=sys.stderr, flush=True)
        results[folder] = evaluate(chat_model, rows, seeds=range(seeds), sampling=sampling, date=date)
    return results


def to_document(
    prompts: Path, rows: Sequence[dict[str, Any]], results: dict[str, list[Judged]], seeds: int, sampling: Sampling
) -> dict[str, Any]:
    """The results for JSON, with every reply."""
    return {
        "prompts": str(prompts),
        "multi_step_tasks": list(dict.fromkeys(row["task"] for row in rows if row.get("multi_step"))),
        "seeds": seeds,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "models": {
            name: {
                "summary": {
                    task: {
                        mode: {key: share.to_dict() for key, share in shares.items()} for mode, shares in modes.items()
                    }
                    for task, modes in summarise(judged).items()
                },
                "replies": [asdict(item) for item in judged],
            }
            for name, judged in results.items()
        },
    }
