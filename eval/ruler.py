"""Documents after RULER's synthetic tasks (arXiv 2404.06654), each filled up to a number of tokens of the tokenizer.

A short form: the task families are the paper's, but not all of their variants, counts and lengths, and all text is
ours, so that nothing is downloaded; scores compare with no published ones (eval/published.py). The filling of the
needle and variable tasks is a noise sentence or, when given, a text of the user's (the paper's essays).
"""

import heapq
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from eval.benchmarks import RULER_TASKS
from eval.filling import fill_to_length
from eval.words import ADJECTIVES, CITIES, FAMILY_NAMES, GIVEN_NAMES, NOUNS, TRADES

_NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")

Row = dict[str, Any]
Draft = tuple[Callable[[int], str], list[str]]  # prompt text as a function of the amount of filling, wanted strings


def generate(
    kind: str,
    rows: dict[str, list[Row]],
    tokenizer: Any,
    context_tokens: int,
    documents: int,
    seed: int,
    haystack: Sequence[str] = _NOISE,
) -> list[Row]:
    """`documents` rows {input, outputs, length} of task `kind` (see RULER_TASKS); none of them uses source `rows`.

    The filling is as large as fits into `context_tokens`; the tokenizer decides, special tokens not counted.
    `haystack` are the sentences that hide needles and variables, over and over.

    Raises:
        ValueError: if the task does not fit into `context_tokens` even without filling.
    """
    assert kind in RULER_TASKS
    generated = []
    for number in range(documents):
        # Text as seed: the stream depends on nothing but these values.
        build, outputs = _DRAFTS[kind](random.Random(f"{kind}/{context_tokens}/{seed}/{number}"), haystack)
        text, length = fill_to_length(build, tokenizer, context_tokens)
        generated.append({"input": text, "outputs": outputs, "length": length})
    return generated


def sentences(text: str) -> list[str]:
    """A text's sentences, each on one line."""
    return re.split(r"(?<=[.!?]) ", " ".join(text.split())) if text.strip() else []


def _words(rng: random.Random, count: int) -> list[str]:
    """Different words, drawn at random."""
    pairs = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]


def _hidden(facts: list[str], places: list[float], sentences: Sequence[str], amount: int) -> str:
    """`amount` sentences with the facts among them: each at its place, a share of the length, in their order."""
    text = [sentences[number % len(sentences)] for number in range(amount)]
    for fact, place in sorted(zip(facts, places, strict=True), key=lambda pair: pair[1], reverse=True):
        text.insert(int(place * (amount + 1)), fact)
    return " ".join(text)


def _needles(keys: int, values_per_key: int, queries: int) -> Callable[[random.Random, Sequence[str]], Draft]:
    def draft(rng: random.Random, haystack: Sequence[str]) -> Draft:
        names = _words(rng, keys)
        numbers = {name: [str(rng.randint(10**6, 10**7 - 1)) for _ in range(values_per_key)] for name in names}
        asked = names[:queries]
        facts = [f"One of the special magic numbers for {name} is: {n}." for name in names for n in numbers[name]]
        places = [rng.random() for _ in facts]
        question = f"What are all the special magic numbers for {', '.join(asked)} mentioned in the text?"

        def build(amount: int) -> str:
            return (
                "Some special magic numbers are hidden in the text below. Memorize them.\n"
                f"{_hidden(facts, places, haystack, amount)}\n{question}\n"
                f"The special magic numbers for {', '.join(asked)} mentioned in the text are"
            )

        return build, [number for name in asked for number in numbers[name]]

    return draft


def _variable_tracking(rng: random.Random, haystack: Sequence[str]) -> Draft:
    names = ["".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)) for _ in range(8)]
    value, other = rng.sample(range(10_000, 99_999), 2)
    facts = [f"VAR {names[0]} = {value}.", *(f"VAR {names[i]} = VAR {names[i - 1]}." for i in range(1, 4))]
    facts += [f"VAR {names[4]} = {other}.", *(f"VAR {names[i]} = VAR {names[i - 1]}." for i in range(5, 8))]
    # Chains stay in order: each assignment refers to an earlier one.
    places = sorted(rng.random() for _ in range(4)) + sorted(rng.random() for _ in range(4))

    def build(amount: int) -> str:
        return (
            "Follow the variable assignments hidden in the text below.\n"
            f"{_hidden(facts, places, haystack, amount)}\nWhich variables have the value {value}?\n"
            f"The variables that have the value {value} are"
        )

    return build, names[:4]


def _common_words(rng: random.Random, haystack: Sequence[str]) -> Draft:
    words = _words(rng, len(ADJECTIVES) * len(NOUNS))
    common, others = words[:5], words[5:]
    order = rng.random()

    def build(amount: int) -> str:
        # Five words appear 10 times and the others twice, more of them the longer the list.
        listed = common * 10 + [others[number // 2 % len(others)] for number in range(amount + 10)]
        random.Random(order).shuffle(listed)
        numbered = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
        return (
            f"Memorize the words that appear most often in this numbered list.\n{numbered}\n"
            "What are the 5 most common words in the list?\nThe 5 most common words in the list are"
        )

    return build, common


def _frequent_words(rng: random.Random, haystack: Sequence[str]) -> Draft:
    codes = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(40)]
    order = rng.random()

    def build(amount: int) -> str:
        # Counts fall like 1/rank (Zipf). From 30 words on the third is more frequent than the fourth.
        listed = _zipf(codes, amount + 30)
        random.Random(order).shuffle(listed)
        return (
            "Read this coded text and track how often each coded word appears.\n"
            f"{' ... '.join(listed)}\n"
            "What are the 3 most frequent coded words?\nThe 3 most frequent coded words are"
        )

    return build, codes[:3]


def _zipf(codes: list[str], total: int) -> list[str]:
    """`total` words with counts as near to 1/rank as whole numbers get; one more word changes one count by one."""
    next_up = [(rank, rank, 1) for rank in range(1, len(codes) + 1)]  # count x rank, rank, count
    listed = []
    for _ in range(total):
        _, rank, count = next_up[0]
        listed.append(codes[rank - 1])
        heapq.heapreplace(next_up, ((count + 1) * rank, rank, count + 1))
    return listed


def _question_answering(rng: random.Random, haystack: Sequence[str]) -> Draft:
    people = [
        f"{given} {middle}. {family}" for given in GIVEN_NAMES for middle in "ABCDEFGH" for family in FAMILY_NAMES
    ]
    rng.shuffle(people)
    asked, *others = people
    city, *other_cities = rng.sample(CITIES, len(CITIES))
    place, lives = rng.random(), rng.random()

    def life(person: str, birthplace: str, rng: random.Random) -> list[str]:
        """Words, always equally many."""
        return (
            f"{person} was born in {birthplace} in {rng.randint(1840, 1960)}. "
            f"The family had a {rng.choice(TRADES)}'s shop near the market. "
            f"{person} trained as a {rng.choice(TRADES)} and moved to {rng.choice(other_cities)}. "
            f"Later work as a {rng.choice(TRADES)} brought {rng.randint(2, 9)} prizes."
        ).split()

    def build(amount: int) -> str:
        stories = random.Random(lives)
        answer = life(asked, city, stories)
        whole, rest = divmod(amount, len(answer))
        names = (others[number % len(others)] for number in range(whole + 1))
        documents = [life(name, stories.choice(other_cities), stories) for name in names]
        documents[-1] = documents[-1][:rest]
        documents.insert(int(place * len(documents)), answer)
        text = "\n".join(f"Document {number}: {' '.join(lines)}" for number, lines in enumerate(documents, 1) if lines)
        return (
            f"Answer the question from the documents below, with the answer only.\n{text}\n"
            f"Question: In which city was {asked} born?\nAnswer:"
        )

    return build, [city]


_DRAFTS: dict[str, Callable[[random.Random, Sequence[str]], Draft]] = {
    "niah_single": _needles(keys=1, values_per_key=1, queries=1),
    "niah_multikey": _needles(keys=4, values_per_key=1, queries=1),
    "niah_multivalue": _needles(keys=1, values_per_key=4, queries=1),
    "niah_multiquery": _needles(keys=4, values_per_key=1, queries=4),
    "vt": _variable_tracking,
    "cwe": _common_words,
    "fwe": _frequent_words,
    "qa": _question_answering,
}
