"""Documents of three of HELMET's families (arXiv 2410.02694), each filled up to a number of tokens.

Recall (values of a JSON object), many-shot in-context learning with labels that are arbitrary numbers, and questions
over retrieved passages. The other four families need judge models or their own data, and are not here.
"""

import json
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from eval.filling import fill_to_length

Row = dict[str, Any]
Draft = tuple[Callable[[int], str], list[str]]  # prompt text as a function of the amount of filling, accepted answers

_DEPTHS = 6  # the passage with the answer stands at one of so many evenly spread places
_SHOTS = 2  # solved examples of recall and passages


def generate(
    kind: str,
    rows: dict[str, list[Row]],
    tokenizer: Any,
    context_tokens: int,
    documents: int,
    seed: int,
    label: str | None = None,
) -> list[Row]:
    """Rows {input, outputs, length} of `kind`: recall (needs no rows), icl or rag (rows of the splits test and demos).

    `label` is the column of an icl set that holds the class.

    Raises:
        ValueError: if a question does not fit into `context_tokens` even without filling.
    """
    generated = []
    for number in range(documents if kind == "recall" else min(documents, len(rows["test"]))):
        rng = random.Random(f"{kind}/{context_tokens}/{seed}/{number}")
        if kind == "recall":
            build, outputs = _recall(rng)
        elif kind == "icl":
            build, outputs = _many_shot(rows["test"][number], rows["demos"], str(label), rng)
        else:
            build, outputs = _passages(rows["test"][number], rows["demos"], rng)
        text, length = fill_to_length(build, tokenizer, context_tokens)
        generated.append({"input": text, "outputs": outputs, "length": length})
    return generated


def _recall(rng: random.Random) -> Draft:
    def fresh(source: random.Random) -> str:
        return str(uuid.UUID(int=source.getrandbits(128), version=4))

    pairs = [(fresh(rng), fresh(rng)) for _ in range(_SHOTS + 1)]
    place, filler_seed = rng.random(), rng.random()

    def build(amount: int) -> str:
        filler = random.Random(filler_seed)
        listed = [(fresh(filler), fresh(filler)) for _ in range(amount)]
        for offset, pair in enumerate(pairs):
            listed.insert(int((place + offset / len(pairs)) % 1 * (len(listed) + 1)), pair)
        solved = "".join(f"Key: {key}\nCorresponding value: {value}\n\n" for key, value in pairs[1:])
        return (
            f"{json.dumps(dict(listed))}\n\nGive the value that belongs to the key in the JSON object above.\n\n"
            f"{solved}Key: {pairs[0][0]}\nCorresponding value:"
        )

    return build, [pairs[0][1]]


def _many_shot(question: Row, demos: list[Row], label: str, rng: random.Random) -> Draft:
    """Every class gets a number of its own per question, so that only the examples tell what it means."""
    classes = sorted({row[label] for row in demos})
    numbers = dict(zip(classes, rng.sample(range(len(classes)), len(classes)), strict=True))
    stream = _balanced(demos, label, rng)
    drawn: list[Row] = []

    def build(amount: int) -> str:
        while len(drawn) < amount:
            drawn.append(next(stream))
        shots = "".join(f"{row['text']}\nlabel: {numbers[row[label]]}\n\n" for row in drawn[:amount])
        return (
            "Learn from the examples which label belongs to which text. Reply with the label of the last text and "
            f"nothing else.\n\n{shots}{question['text']}\nlabel:"
        )

    return build, [str(numbers[question[label]])]


def _balanced(demos: list[Row], label: str, rng: random.Random) -> Iterator[Row]:
    """Endless rounds of one example per class, each round in a new order; a class repeats when it is used up."""
    by_class: dict[Any, list[Row]] = defaultdict(list)
    for row in demos:
        by_class[row[label]].append(row)
    waiting: dict[Any, list[Row]] = {name: [] for name in by_class}
    while True:
        for name in rng.sample(sorted(by_class), len(by_class)):
            if not waiting[name]:
                waiting[name] = rng.sample(by_class[name], len(by_class[name]))
            yield waiting[name].pop()


def _passages(row: Row, demos: list[Row], rng: random.Random) -> Draft:
    holds = [any(answer.lower() in ctx["text"].lower() for answer in row["answers"]) for ctx in row["ctxs"]]
    gold = row["ctxs"][holds.index(True)] if any(holds) else row["ctxs"][0]
    others = [ctx for ctx in row["ctxs"] if ctx is not gold]
    depth = rng.randrange(_DEPTHS) / (_DEPTHS - 1)
    examples = [demo for demo in demos if demo["question"] != row["question"]]
    solved = "".join(
        f"{_joined(demo['ctxs'])}\n\nQuestion: {demo['question']}\nAnswer: {demo['answers'][0]}\n\n"
        for demo in rng.sample(examples, min(_SHOTS, len(examples)))
    )

    def build(amount: int) -> str:
        # Beyond the retrieved passages there is nothing to fill with; they start again.
        shown = [others[index % len(others)] for index in range(amount)] if others else []
        shown.insert(round(depth * len(shown)), gold)
        return (
            "Answer the question from the documents, in a few words.\n\n"
            f"{solved}{_joined(shown)}\n\nQuestion: {row['question']}\nAnswer:"
        )

    return build, [str(answer) for answer in row["answers"]]


def _joined(ctxs: list[Row]) -> str:
    return "\n\n".join(f"Document (Title: {ctx['title']}): {ctx['text']}" for ctx in ctxs)
