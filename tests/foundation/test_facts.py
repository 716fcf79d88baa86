"""Records with facts: what they recall is noted once, and nothing else in them tells it."""

import hashlib
import re

from foundation.draws import Draws
from foundation.facts import FILLING, KINDS, facts_document

NOTED = re.compile(r"Noted: (\w+) (\w+)\.")


def test_a_record_recalls_every_fact_that_it_notes_and_no_other() -> None:
    orders = set()
    for number in range(300):
        text = facts_document("train", number, (0, 16)).text
        body, _, recalled = text.partition("\nRecall: ")
        noted = NOTED.findall(body)
        pairs = [tuple(pair.split()) for pair in recalled.removesuffix(".").split(", ")]
        assert sorted(pairs) == sorted(noted)
        assert 2 <= len({kind for kind, _ in noted}) == len(noted) <= len(KINDS)
        assert all(value in KINDS[kind] for kind, value in noted)
        orders.add(pairs == noted)
    assert orders == {True, False}  # the order is no help


def test_neither_filling_nor_another_kind_contains_a_value() -> None:
    values = [value for kind in KINDS.values() for value in kind]
    assert len(set(values)) == len(values)
    assert not set(values) & {word for sentence in FILLING for word in re.findall(r"\w+", sentence)}
    assert len({len(kind) for kind in KINDS.values()}) == 1  # the chance level holds for every kind


def test_records_are_as_long_as_asked() -> None:
    counts = {
        sum(facts_document("train", number, (20, 23)).text.count(sentence) for sentence in FILLING)
        for number in range(100)
    }
    assert counts == {20, 21, 22, 23}


def test_documents_are_those_that_this_repository_ships() -> None:
    """A platform, a Python version, or an edit without a new VERSION would change the digest."""
    texts = [facts_document(split, number, (0, 16)).text for split in ("train", "heldout") for number in range(40)]
    assert (
        hashlib.sha256("\n".join(texts).encode()).hexdigest()
        == "07fb0bdc9f740d60e8cf8eb12646e44cd4069ea50f9f2888c3bffb774a33a7f6"
    )


def test_a_sample_holds_different_choices_in_any_order() -> None:
    drawn = [tuple(Draws(f"test/{number}").sample("abc", 2)) for number in range(200)]
    assert set(drawn) == {("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b")}
