"""Documents of RULER's synthetic tasks, each filled up to a number of tokens of the given tokenizer."""

import random
from collections.abc import Callable
from typing import Any

from eval.benchmarks import RULER_TASKS
from eval.filling import fill_to_length

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_ADJECTIVES = "amber brave calm dusty eager fancy gentle hollow icy jolly keen lively misty noble odd plain"
_NOUNS = "anchor bridge candle desert engine forest garden harbor island jacket kettle ladder meadow needle"
_WORDS = [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]

Row = dict[str, Any]
Draft = tuple[Callable[[int], str], list[str]]  # prompt text as a function of the amount of filling, wanted strings


def generate(
    kind: str, rows: dict[str, list[Row]], tokenizer: Any, context_tokens: int, documents: int, seed: int
) -> list[Row]:
    """`documents` rows {input, outputs, length} of task `kind` (see RULER_TASKS); none of them uses source `rows`.

    The filling is as large as fits into `context_tokens`; the tokenizer decides, special tokens not counted.

    Raises:
        ValueError: if the task does not fit into `context_tokens` even without filling.
    """
    assert kind in RULER_TASKS
    generated = []
    for number in range(documents):
        # Text as seed: the stream depends on nothing but these values.
        build, outputs = _DRAFTS[kind](random.Random(f"{kind}/{context_tokens}/{seed}/{number}"))
        text, length = fill_to_length(build, tokenizer, context_tokens)
        generated.append({"input": text, "outputs": outputs, "length": length})
    return generated


def _scattered(facts: list[str], amount: int, rng_seed: float) -> str:
    """`amount` noise sentences with the facts at random places."""
    rng = random.Random(rng_seed)
    sentences = [_NOISE] * amount
    for fact in facts:
        sentences.insert(rng.randint(0, len(sentences)), fact)
    return " ".join(sentences)


def _needles(keys: int, values_per_key: int, queries: int) -> Callable[[random.Random], Draft]:
    def draft(rng: random.Random) -> Draft:
        names = rng.sample(_WORDS, keys)
        numbers = {name: [str(rng.randint(10**6, 10**7 - 1)) for _ in range(values_per_key)] for name in names}
        asked = names[:queries]
        facts = [f"One of the special magic numbers for {name} is: {n}." for name in names for n in numbers[name]]
        place = rng.random()
        question = f"What are all the special magic numbers for {', '.join(asked)} mentioned in the text?"

        def build(amount: int) -> str:
            return (
                "Some special magic numbers are hidden in the text below. Memorize them.\n"
                f"{_scattered(facts, amount, place)}\n{question}\n"
                f"The special magic numbers for {', '.join(asked)} mentioned in the text are"
            )

        return build, [number for name in asked for number in numbers[name]]

    return draft


def _variable_tracking(rng: random.Random) -> Draft:
    names = ["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)) for _ in range(8)]
    value, other = rng.sample(range(10_000, 99_999), 2)
    facts = [f"VAR {names[0]} = {value}.", *(f"VAR {names[i]} = VAR {names[i - 1]}." for i in range(1, 4))]
    facts += [f"VAR {names[4]} = {other}.", *(f"VAR {names[i]} = VAR {names[i - 1]}." for i in range(5, 8))]
    place = rng.random()

    def build(amount: int) -> str:
        order = random.Random(place)
        slots = sorted(order.randint(0, amount) for _ in facts)
        # Chains stay in order: each assignment refers to an earlier line.
        sentences = [_NOISE] * amount
        for slot, fact in reversed(list(zip(slots, facts, strict=True))):
            sentences.insert(slot, fact)
        return (
            "Follow the variable assignments hidden in the text below.\n"
            f"{' '.join(sentences)}\nWhich variables have the value {value}?\n"
            f"The variables that have the value {value} are"
        )

    return build, names[:4]


def _common_words(rng: random.Random) -> Draft:
    words = rng.sample(_WORDS, 60)
    common, rare = words[:5], words[5:]
    place = rng.random()

    def build(amount: int) -> str:
        # Common words appear 8 times as often as rare ones, whatever the length.
        rounds = amount // 20 + 1
        listed = common * (8 * rounds) + (rare * rounds)[: 5 + amount]
        random.Random(place).shuffle(listed)
        numbered = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
        return (
            f"Memorize the words that appear most often in this numbered list.\n{numbered}\n"
            "What are the 5 most common words in the list?\nThe 5 most common words in the list are"
        )

    return build, common


def _frequent_words(rng: random.Random) -> Draft:
    codes = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(40)]
    place = rng.random()

    def build(amount: int) -> str:
        # Counts fall like 1/rank (Zipf); "..." is noise.
        listed = [code for rank, code in enumerate(codes, 1) for _ in range(max(1, (amount + 12) // rank))]
        random.Random(place).shuffle(listed)
        return (
            f"Read this coded text and track how often each coded word appears.\n{' ... '.join(listed)}\n"
            "What are the 3 most frequent coded words?\nThe 3 most frequent coded words are"
        )

    return build, codes[:3]


_DRAFTS: dict[str, Callable[[random.Random], Draft]] = {
    "niah_single": _needles(keys=1, values_per_key=1, queries=1),
    "niah_multikey": _needles(keys=4, values_per_key=1, queries=1),
    "niah_multivalue": _needles(keys=1, values_per_key=4, queries=1),
    "niah_multiquery": _needles(keys=4, values_per_key=1, queries=4),
    "vt": _variable_tracking,
    "cwe": _common_words,
    "fwe": _frequent_words,
}
