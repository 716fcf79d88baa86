"""Generated records with facts to retrieve: what the tiny recipe's long documents are made of.

A record is filling (the same few sentences, over and over) with facts noted in it, and ends by recalling them in
another order: a kind (action, name, ...) and its value, one of twelve of that kind. Nothing but the record says which,
so knowing everything else gives 1 in 12. A record is a pure function of (split, number) and of the range of its length.
"""

from collections.abc import Mapping, Sequence

from datatrove.data import Document

from foundation.draws import Draws, Split

VERSION = 1  # raise it with every change of the generated text: it is part of the pipeline's hash

# All of them are single tokens of the tiny recipe's tokenizer, of which a small model learns to copy them.
KINDS = {
    kind: tuple(values.split())
    for kind, values in {
        "action": "open read write send close delete insert update copy edit build search",
        "name": "Anna Ben Clara David Emma Felix Grace Hugo Ines Jonas Lena Marco",
        "object": "flowers stickers tickets stamps pencils apples cards shells books box car garden",
        "system": "Linux Unix Windows Debian GNOME Python SQLite PostgreSQL Bluetooth USB LVM APT",
        "type": "integer string float tuple list array char double text date byte column",
        "state": "active enabled disabled failed started closed empty full invalid deleted installed removed",
        "place": "directory path library archive cluster network domain zone stack queue tree cache",
        "protocol": "HTTP SSL LDAP MIME DNS RFC JSON XML UTC ASCII UUID URL",
    }.items()
}
FILLING = (
    "There is still time.",
    "We were on the way.",
    "It was not very far.",
    "Then they had to wait.",
    "Here is more of the same.",
    "And so it goes on.",
    "You could do it again.",
    "That took some hours.",
)


def draw_facts(draws: Draws, count: int) -> dict[str, str]:
    """`count` kinds, at most as many as KINDS, each with a value."""
    return {kind: draws.pick(KINDS[kind]) for kind in draws.sample(list(KINDS), count)}


def record(facts: Mapping[str, str], places: Sequence[float], first: int, sentences: int) -> str:
    """`sentences` sentences of filling from number `first` on, with each fact at its place, a share of the length."""
    text = [FILLING[(first + number) % len(FILLING)] for number in range(sentences)]
    noted = [f"Noted: {kind} {value}." for kind, value in facts.items()]
    for place, fact in sorted(zip(places, noted, strict=True), reverse=True):
        text.insert(int(place * (sentences + 1)), fact)
    return " ".join(text)


def facts_document(split: Split, number: int, sentences: tuple[int, int]) -> Document:
    """Record `number` of a split with at least sentences[0] and at most sentences[1] sentences of filling, and two to
    eight facts, all of which are recalled."""
    draws = Draws(f"facts-{VERSION}/{split}/{sentences[0]}-{sentences[1]}/{number}")
    facts = draw_facts(draws, draws.between(2, len(KINDS)))
    places = [draws.below(1000) / 1000 for _ in facts]
    text = record(facts, places, draws.below(len(FILLING)), draws.between(*sentences))
    recalled = ", ".join(f"{kind} {facts[kind]}" for kind in draws.sample(list(facts), len(facts)))
    return Document(text=f"{text}\nRecall: {recalled}.", id=f"facts/{split}/{sentences[0]}-{sentences[1]}/{number}")
