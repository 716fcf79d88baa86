"""Retrieval for miniatures: one question about a record of foundation/facts.py, filled up to a number of tokens.

RULER's needles are seven-digit numbers under two-word keys, which a model of a few million parameters does not learn to
copy; this asks for the same with values of one word. Guessing among the twelve values of a kind scores 8.3 %.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from eval.filling import fill_to_length
from foundation.draws import Draws
from foundation.facts import FILLING, draw_facts, record

_FACTS = 4  # in every record; one of them is asked for


def generate(
    rows: dict[str, Any], tokenizer: Any, context_tokens: int, documents: int, seed: int
) -> list[dict[str, Any]]:
    """`documents` rows {input, outputs, length}, none of which is in the training split; `rows` is not used.

    Raises:
        ValueError: if the record does not fit into `context_tokens` even without filling.
    """
    generated = []
    for number in range(documents):
        draws = Draws(f"facts/eval/{context_tokens}/{seed}/{number}")
        facts = draw_facts(draws, _FACTS)
        places = [draws.below(1000) / 1000 for _ in facts]
        asked = draws.pick(list(facts))
        prompt = partial(_prompt, facts, asked, places, draws.below(len(FILLING)))
        text, length = fill_to_length(prompt, tokenizer, context_tokens)
        generated.append({"input": text, "outputs": [facts[asked]], "length": length})
    return generated


def _prompt(facts: Mapping[str, str], asked: str, places: Sequence[float], first: int, sentences: int) -> str:
    return f"{record(facts, places, first, sentences)}\nRecall: {asked}"
