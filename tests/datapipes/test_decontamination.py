import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from datapipes.decontaminate import NGRAM_WORDS, build_index, ngram_hashes
from datapipes.errors import SourceError
from datapipes.pipeline import SourceBuild
from datapipes.registry import Source
from datapipes.tokenizer import LoadedTokenizer
from datapipes.words import words_of
from tests.datapipes.helpers import read_documents

VOCABULARY = [f"{first}{second}" for first in ("ba", "ke", "mi", "lo", "su", "ra", "ti") for second in "abcdefghijklm"]


def sentence(generator: random.Random, words: int) -> list[str]:
    return generator.choices(VOCABULARY, k=words)


def benchmark(folder: Path, name: str, items: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    rows = [{"question": item, "choices": [{"text": "yes"}, "no"], "gold": 1} for item in items]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_match_is_exactly_a_shared_run_of_words(tmp_path: Path) -> None:
    """Against a search for every run of words as a string."""
    generator = random.Random(0)
    items = [" ".join(sentence(generator, generator.randint(5, 40))) for _ in range(60)]
    benchmark(tmp_path / "sets", "quiz", items)
    index = build_index(tmp_path / "sets")
    runs = {
        " ".join(words[start : start + NGRAM_WORDS])
        for words in map(str.split, items)
        for start in range(len(words) - NGRAM_WORDS + 1)
    }
    hits = 0
    for _ in range(400):
        document = sentence(generator, 60)
        planted = generator.choice(items).split()[: generator.randint(8, 20)]
        position = generator.randrange(60)
        document[position:position] = planted
        text = " ".join(document)
        expected = any(f" {run} " in f" {text} " for run in runs)
        assert (index.first_match(text) == "quiz") == expected
        hits += expected
    assert 100 < hits < 390


def test_case_punctuation_and_layout_do_not_hide_a_passage_but_numbers_do_count(tmp_path: Path) -> None:
    item = "A train leaves at 9 and travels 120 km in 2 hours; what is its speed?"
    benchmark(tmp_path / "sets", "gsm", [item])
    index = build_index(tmp_path / "sets")
    disguised = "Homework:\nA TRAIN leaves, at 9, and\ttravels 120 km in 2 hours... What is its speed"
    assert index.first_match(disguised) == "gsm"
    assert index.first_match(disguised.replace("120", "130").replace("9", "8")) is None


def test_scripts_without_spaces_are_compared_by_character(tmp_path: Path) -> None:
    assert words_of("Le garçon 中文字 x2") == ["le", "garçon", "中", "文", "字", "x2"]
    item = "一列火车每小时行驶一百二十公里需要多长时间"
    benchmark(tmp_path / "sets", "mgsm", [item])
    assert build_index(tmp_path / "sets").first_match(f"问题 {item}。") == "mgsm"


def test_texts_shorter_than_a_passage(tmp_path: Path) -> None:
    assert len(ngram_hashes(" ".join(["word"] * (NGRAM_WORDS - 1)))) == 0
    benchmark(tmp_path / "sets", "short", ["too short to match"])
    assert build_index(tmp_path / "sets").first_match("too short to match " * 10) is None


def test_planted_items_are_dropped_and_counted_per_benchmark(
    make_source: Callable[..., Source], tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    generator = random.Random(1)
    items = {name: [" ".join(sentence(generator, 30)) for _ in range(20)] for name in ("arc", "mmlu")}
    for name, texts in items.items():
        benchmark(tmp_path / "sets", name, texts)
    clean = [" ".join(sentence(generator, 80)) for _ in range(200)]
    dirty = [f"{' '.join(sentence(generator, 30))} {item}" for texts in items.values() for item in texts[:7]]
    source = make_source([*clean, *dirty], files=2, tasks=2, decontaminate=True)
    build = SourceBuild(source, tokenizer, tmp_path / "data", benchmarks=build_index(tmp_path / "sets"))
    build.build(workers=1)
    assert build.summary(rebuilt=True).dropped == {"in arc": 7, "in mmlu": 7}
    kept = {tokenizer.tokenizer.decode(document[:-1]) for document in read_documents(tmp_path / "data/letters")}
    recall, precision = 1 - len(kept & set(dirty)) / len(dirty), len(dirty) / (214 - len(kept))
    print(f"decontamination: recall {recall:.3f}, precision {precision:.3f}")
    assert kept == set(clean)


def test_a_source_to_decontaminate_needs_the_sets(
    make_source: Callable[..., Source], tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="--benchmarks"):
        SourceBuild(make_source(["a"], decontaminate=True), tokenizer, tmp_path)
    with pytest.raises(SourceError, match="no evaluation set"):
        build_index(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"a": "b"}\n{"a": ', encoding="utf-8")
    with pytest.raises(SourceError, match=r"Line 2 of .*bad\.jsonl"):
        build_index(tmp_path)
