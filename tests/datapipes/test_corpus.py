import json
import lzma
import re
from pathlib import Path

import pytest

from datapipes.registry import CORPUS_FOLDER

SPLITS = sorted(path.name.removesuffix("-heldout.jsonl.xz") for path in CORPUS_FOLDER.glob("*-heldout.jsonl.xz"))


def rows(name: str) -> list[dict[str, str]]:
    with lzma.open(CORPUS_FOLDER / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def ngrams(text: str, length: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.parametrize("name", SPLITS)
def test_the_held_out_split_is_new_text(name: str) -> None:
    train, heldout = rows(name), rows(f"{name}-heldout")
    assert not {row["text"] for row in train} & {row["text"] for row in heldout}
    pages = [{row["id"].partition("#")[0] for row in split} for split in (train, heldout)]
    assert not pages[0] & pages[1]
    trained = set().union(*(ngrams(row["text"]) for row in train))
    unseen = [ngrams(row["text"]) for row in heldout]
    shared = sum(len(grams & trained) for grams in unseen) / sum(map(len, unseen))
    assert shared < 0.1


def test_a_page_is_held_out_in_all_languages_or_none() -> None:
    web = [name for name in SPLITS if name.startswith("tiny-web")]
    trained = {row["id"].partition("#")[0] for name in web for row in rows(name)}
    heldout = {row["id"].partition("#")[0] for name in web for row in rows(f"{name}-heldout")}
    assert not trained & heldout


@pytest.mark.parametrize("path", sorted(CORPUS_FOLDER.glob("*.xz")), ids=lambda path: path.name)
def test_documents_have_unique_ids_and_sensible_lengths(path: Path) -> None:
    documents = rows(path.name.removesuffix(".jsonl.xz"))
    assert len({row["id"] for row in documents}) == len(documents)
    assert all(200 <= len(row["text"]) <= 20_000 for row in documents)


def test_the_corpus_keeps_a_checkout_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS_FOLDER.rglob("*") if path.is_file()) < 5_000_000
