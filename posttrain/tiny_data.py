"""Data sets of the tiny profile: templated tasks that a model of a few million parameters can learn.

`smollm3 posttrain-data` writes, in the schema of smoltalk2, `<set>/train.jsonl` for mid-training, SFT and APO, and
`heldout.jsonl` for `smollm3 capabilities`. Everything follows from the seed. A problem is held out or trained on in all
sets alike, decided by a hash of its text.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from foundation.errors import UserError

HELD_OUT_FRACTION = 0.15


@dataclass(frozen=True)
class Problem:
    """A question with its worked solution. `tool_call` stands in for `answer` where the right reply is a call."""

    task: str
    question: str
    thinking: str
    answer: str
    wrong_thinking: str
    wrong_answer: str
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.question.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_FRACTION * 2**32


LARGEST = 9  # operands and results are single digits, one token each

_ADDITION_WORDINGS = ("What is {}?", "Compute {}.", "How much is {}?")


def addition(rng: random.Random) -> Problem:
    """One sum of digits that is a digit, in one of three wordings."""
    total = rng.randint(0, LARGEST)
    a = rng.randint(0, total)
    b = total - a
    question = rng.choice(_ADDITION_WORDINGS).format(f"{a}+{b}")
    wrong = _another_digit(total, rng)
    return Problem("addition", question, f"{a}+{b}={total}", str(total), f"{a}+{b}={wrong}", str(wrong))


def _another_digit(digit: int, rng: random.Random) -> int:
    return (digit + rng.randint(1, LARGEST)) % (LARGEST + 1)


def chain(rng: random.Random) -> Problem:
    """Three additions or subtractions; operands and intermediate results are digits."""
    value = rng.randint(0, LARGEST)
    expression, steps = str(value), []
    for _ in range(3):
        result = _another_digit(value, rng)
        operation = f"{'+' if result > value else '-'}{abs(result - value)}"
        expression += operation
        steps.append(f"{value}{operation}={result}")
        value = result
    wrong = _another_digit(value, rng)
    wrong_steps = [*steps[:-1], f"{steps[-1][:-1]}{wrong}"]
    return Problem("chain", f"Compute {expression}.", "\n".join(steps), str(value), "\n".join(wrong_steps), str(wrong))


_UNITS = {("km", "m"): 1000, ("m", "cm"): 100, ("cm", "mm"): 10, ("kg", "g"): 1000, ("l", "ml"): 1000, ("dm", "cm"): 10}


def conversion(rng: random.Random) -> Problem:
    """A whole number of a unit in a smaller one."""
    (large, small), factor = rng.choice(sorted(_UNITS.items()))
    count = rng.randint(2, 9)
    fact = f"1 {large}={factor} {small}"
    result, wrong = count * factor, count * factor * 10
    return Problem(
        "conversion",
        f"{rng.choice(['Convert', 'Change'])} {count} {large} to {small}.",
        f"{fact}\n{count}*{factor}={result}",
        f"{result} {small}",
        f"{fact}\n{count}*{factor}={wrong}",
        f"{wrong} {small}",
    )


def sorting(rng: random.Random) -> Problem:
    """Three different digits in ascending order."""
    digits = rng.sample(range(LARGEST + 1), 3)
    low, middle, high = sorted(digits)
    return Problem(
        "sorting",
        f"Sort {digits[0]},{digits[1]},{digits[2]}.",
        f"{low}<{middle}<{high}",
        f"{low},{middle},{high}",
        f"{middle}<{low}<{high}",
        f"{middle},{low},{high}",
    )


# Feminine nouns. Every English word follows a space wherever it stands, so that it is the same single token everywhere.
_NOUNS = {
    "table": "table", "car": "voiture", "box": "boite", "hand": "main", "week": "semaine", "line": "ligne",
    "place": "place", "part": "partie", "language": "langue",
}  # fmt: skip
_ADJECTIVES = {
    "red": "rouge", "clean": "propre", "empty": "vide", "long": "longue", "free": "libre", "hard": "dure",
    "full": "pleine", "clear": "claire", "short": "courte",
}  # fmt: skip


def translation(rng: random.Random) -> Problem:
    """An English adjective and noun in French, where the noun comes first."""
    adjective, noun = rng.choice(sorted(_ADJECTIVES)), rng.choice(sorted(_NOUNS))
    french_adjective, french_noun = _ADJECTIVES[adjective], _NOUNS[noun]
    thinking = f"the {noun} = la {french_noun}, {adjective} = {french_adjective}"
    right, wrong = f"la {french_noun} {french_adjective}", f"la {french_adjective} {french_noun}"
    return Problem("translation", f"Translate to French: the {adjective} {noun}", thinking, right, thinking, wrong)


_FUNCTIONS = ("open", "close", "read", "write", "list", "search")
_PARAMETERS = ("file", "line", "level")


def tool_call(rng: random.Random) -> Problem:
    """Choose one of two offered functions and fill in its argument."""
    name, other = rng.sample(_FUNCTIONS, 2)
    parameter, other_parameter = rng.choices(_PARAMETERS, k=2)
    number = rng.randint(0, LARGEST)
    offered = [(name, parameter), (other, other_parameter)]
    tools = [{"name": tool, "parameters": [key]} for tool, key in rng.sample(offered, 2)]
    right, wrong = (
        "<tool_call>\n" + json.dumps({"name": tool, "arguments": {key: number}}) + "\n</tool_call>"
        for tool, key in offered
    )
    question = f"Please {name} {parameter} {number}."
    thinking, wrong_thinking = (f"to {tool} {key} {number}" for tool, key in offered)
    return Problem("tool_call", question, thinking, right, wrong_thinking, wrong, tools)


TASKS: dict[str, Callable[[random.Random], Problem]] = {
    "addition": addition,
    "chain": chain,
    "conversion": conversion,
    "sorting": sorting,
    "translation": translation,
    "tool_call": tool_call,
}
MULTI_STEP_TASKS = ("chain",)
# Shares of the training rows; the harder the task, the more.
TASK_WEIGHTS = {"addition": 2, "chain": 6, "conversion": 2, "sorting": 3, "translation": 2, "tool_call": 3}

FURTHER_TURNS = (0, 0, 1, 2)
PERSONAS = ("You are a careful tutor.", "You answer for a travel office.", "Be brief.")


def problems(rng: random.Random, held_out: bool) -> Iterator[Problem]:
    """Endless problems of one side of the split, tasks drawn by weight."""
    while True:
        task = rng.choices(list(TASK_WEIGHTS), list(TASK_WEIGHTS.values()))[0]
        problem = TASKS[task](rng)
        if problem.held_out == held_out:
            yield problem


def reply(thinking: str | None, answer: str) -> dict[str, str]:
    """The assistant's message; without thinking the template adds the empty think block."""
    return {"role": "assistant", "content": f"<think>\n{thinking}\n</think>\n{answer}" if thinking else answer}


def exchanges(first: Problem, stream: Iterator[Problem], rng: random.Random) -> list[Problem]:
    """The problems of one conversation: the first alone, or with one or two more from the stream, in any order.

    Further turns make the model find the last question whatever stands before it, and the system turn is paid for once.
    Tools are named in the system turn, so at most one problem needs them.
    """
    asked = [first, *islice((problem for problem in stream if not problem.tools), rng.choice(FURTHER_TURNS))]
    rng.shuffle(asked)
    return asked


def conversation(asked: Sequence[Problem], mode: str, rng: random.Random) -> dict[str, Any]:
    """System message, first question and template arguments of a row.

    The mode is set by the template argument or by a flag in the system message (over a contrary argument), so that
    both ways are trained; some rows have a persona.
    """
    thinking = mode == "think"
    persona = rng.choice(PERSONAS) if rng.random() < 0.2 else ""
    system = persona
    if rng.random() < 0.5:
        system = f"{persona} /{mode}".strip()
        thinking = rng.random() < 0.5
    messages = [{"role": "system", "content": system}] if system else []
    arguments: dict[str, Any] = {"enable_thinking": thinking}
    tools = [json.dumps(tool) for problem in asked for tool in problem.tools]
    if tools:
        arguments["xml_tools"] = tools
    return {"messages": [*messages, {"role": "user", "content": asked[0].question}], "chat_template_kwargs": arguments}


def midtrain_row(asked: Sequence[Problem]) -> dict[str, Any]:
    """Plain questions and reasoning, as in the public reasoning sets; which tools there are is said from SFT on."""
    messages = []
    for problem in asked:
        messages += [{"role": "user", "content": problem.question}, reply(problem.thinking, problem.answer)]
    return {"messages": messages}


def sft_row(asked: Sequence[Problem], mode: str, rng: random.Random) -> dict[str, Any]:
    """Questions and the right replies in the mode."""
    row = conversation(asked, mode, rng)
    for problem in asked:
        if problem is not asked[0]:
            row["messages"].append({"role": "user", "content": problem.question})
        row["messages"].append(reply(problem.thinking if mode == "think" else None, problem.answer))
    return row


def preference_row(problem: Problem, mode: str, rng: random.Random) -> dict[str, Any]:
    """Right against wrong in the same mode, as a strong and a weak teacher give them."""
    row = conversation([problem], mode, rng)
    prompt = row.pop("messages")
    thinks = mode == "think"
    row["chosen"] = [*prompt, reply(problem.thinking if thinks else None, problem.answer)]
    row["rejected"] = [*prompt, reply(problem.wrong_thinking if thinks else None, problem.wrong_answer)]
    return row


def heldout_row(problem: Problem) -> dict[str, Any]:
    """A prompt for `smollm3 capabilities`, which runs it in both modes."""
    return {
        "task": problem.task,
        "question": problem.question,
        "answer": problem.answer,
        "multi_step": problem.task in MULTI_STEP_TASKS,
        "xml_tools": [json.dumps(tool) for tool in problem.tools],
    }


class SetsError(UserError):
    """Sets that cannot be written as asked; nothing was."""


def write_sets(folder: Path, seed: int, sizes: dict[str, int], replace: bool = False) -> dict[str, int]:
    """Write all sets; returns rows per file. `sizes`: rows of midtrain, sft (per mode), apo (per mode), heldout.

    Raises:
        SetsError: if a file with other rows is there and `replace` does not allow to replace it.
    """

    def drawn(name: str, count: int) -> Iterator[tuple[Problem, Iterator[Problem], random.Random]]:
        rng = random.Random(f"{seed} {name}")
        stream = problems(rng, held_out=False)
        for problem in islice(stream, count):
            yield problem, stream, rng

    sets = {
        "midtrain_reasoning/train.jsonl": [
            midtrain_row(exchanges(*drawing)) for drawing in drawn("midtrain", sizes["midtrain"])
        ]
    }
    for mode in ("think", "no_think"):
        sets[f"sft_{mode}/train.jsonl"] = [
            sft_row(exchanges(*drawing), mode, drawing[2]) for drawing in drawn(f"sft {mode}", sizes["sft"])
        ]
        sets[f"apo_{mode}/train.jsonl"] = [
            preference_row(p, mode, rng) for p, _, rng in drawn(f"apo {mode}", sizes["apo"])
        ]
    sets["heldout.jsonl"] = heldout_rows(seed, sizes["heldout"])
    texts = {
        folder / name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        for name, content in sets.items()
    }
    others = [file for file, text in texts.items() if file.exists() and file.read_bytes() != text.encode()]
    if others and not replace:
        raise SetsError(
            f"{others[0]} holds other rows than would be written now, as do {len(others) - 1} other sets. Nothing was "
            f"written. Give --replace to have them replaced, or another folder."
        )
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    return {name: len(content) for name, content in sets.items()}


def heldout_rows(seed: int, per_task: int) -> list[dict[str, Any]]:
    """Up to `per_task` different held-out problems of every task."""
    rng = random.Random(f"{seed} heldout")
    found: dict[str, Problem] = {}
    for make in TASKS.values():
        questions: dict[str, Problem] = {}
        for _ in range(400 * per_task):
            problem = make(rng)
            if problem.held_out and len(questions) < per_task:
                questions[problem.question] = problem
        found |= questions
    return [heldout_row(problem) for problem in found.values()]
