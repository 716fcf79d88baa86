"""RULER's prompts: repeatable to the byte, as long as asked under any tokenizer, answerable, and not by guessing."""

import hashlib
import json
import random
import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from eval.benchmarks import RULER_TASKS
from eval.engine import Doc
from eval.ruler import generate, sentences
from eval.tasks.long import match_all

TOKENS = 4096


@pytest.fixture(scope="module")
def byte_tokenizer(model_folder) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def word_tokenizer() -> Any:
    """About four bytes a token, as large vocabularies have, trained on other prompts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [
        "The special magic numbers for the words in the text are 4 6 9. Answer the question from the documents.",
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. was born in",
    ]
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("kind", RULER_TASKS)
def test_prompts_are_within_one_percent_of_the_length_and_hold_their_answers(
    kind, byte_tokenizer, word_tokenizer
) -> None:
    for tokenizer in (byte_tokenizer, word_tokenizer):
        rows = generate(kind, {}, tokenizer, TOKENS, 2, seed=3)
        assert rows[0] != rows[1]
        for row in rows:
            length = len(tokenizer.encode(row["input"]))
            assert 0.99 * TOKENS < length == row["length"] <= TOKENS
            assert all(output in row["input"] for output in row["outputs"])
    with pytest.raises(ValueError, match="the question alone has"):
        generate(kind, {}, byte_tokenizer, 100, 1, seed=3)


def test_a_seed_gives_the_same_bytes_everywhere_and_always(byte_tokenizer) -> None:
    """On every machine and in every release: a change of this digest makes scores incomparable with earlier ones."""
    rows = [generate(kind, {}, byte_tokenizer, 2000, 2, seed=0) for kind in RULER_TASKS]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert digest == "3e13022475499d2fac78b957bf0d2c27954e2cedbb730052000cbbdb6b803fc6"
    assert rows != [generate(kind, {}, byte_tokenizer, 2000, 2, seed=1) for kind in RULER_TASKS]


def test_frequent_words_really_are_the_most_frequent(byte_tokenizer) -> None:
    for kind, separator in (("cwe", " "), ("fwe", " ... ")):
        (row,) = generate(kind, {}, byte_tokenizer, 6000, 1, seed=0)
        words = row["input"].split("\n")[1].split(separator)
        words = [word for word in words if not word.rstrip(".").isdigit()]
        counted = sorted(set(words), key=lambda word: -words.count(word))
        wanted = len(row["outputs"])
        assert set(counted[:wanted]) == set(row["outputs"])
        assert words.count(counted[wanted - 1]) > words.count(counted[wanted])


def test_the_question_about_documents_has_one_answer(byte_tokenizer) -> None:
    for row in generate("qa", {}, byte_tokenizer, 6000, 5, seed=0):
        (person,) = re.findall(r"In which city was (.+) born\?", row["input"])
        assert re.findall(re.escape(person) + r" was born in (\w+) in", row["input"]) == row["outputs"]
        assert row["input"].count("Document ") > 20


def test_a_given_text_hides_the_needles(byte_tokenizer) -> None:
    essay = sentences("It was a bright cold day.\nThe clocks were striking.  Nobody\nlooked up.")
    assert len(essay) == 3 and essay[2] == "Nobody looked up."
    (row,) = generate("niah_single", {}, byte_tokenizer, 2000, 1, seed=0, haystack=essay)
    assert row["input"].count(essay[0]) > 10 and "grass" not in row["input"]


# How often a guess that knows the question's words and nothing else hits: 4 of the 8 variables named in the text,
# 5 of the different words, 3 of the 40 codes, one of 24 cities; seven digits never.
def guess(kind: str, row: dict[str, Any], rng: random.Random) -> tuple[str, float]:
    text = row["input"]
    if kind.startswith("niah"):
        return " ".join(str(rng.randint(10**6, 10**7 - 1)) for _ in row["outputs"]), 0.0
    if kind == "vt":
        options = sorted(set(re.findall(r"VAR (\w{5}) =", text)))
    elif kind == "cwe":
        options = sorted(set(re.findall(r"\d+\. (\S+)", text)))
    elif kind == "fwe":
        options = sorted(set(re.findall(r"\b[a-z]{6}\b(?= \.\.\.)", text)))
    else:
        options = sorted(set(re.findall(r"was born in (\w+) in", text)))
    wanted = len(row["outputs"])
    return ", ".join(rng.sample(options, wanted)), wanted / len(options)


@pytest.mark.parametrize("kind", RULER_TASKS)
def test_right_answers_score_100_and_guesses_their_chance(kind, byte_tokenizer) -> None:
    rng = random.Random(0)
    scores, chances = [], []
    for row in generate(kind, {}, byte_tokenizer, 2500, 12, seed=0):
        document = Doc(query=row["input"], choices=[""], gold_index=0, specific={"outputs": row["outputs"]})
        assert match_all(f"They are {', '.join(row['outputs']).upper()}.", document) == 1.0
        assert match_all("I do not know.", document) == 0.0
        for _ in range(100):
            answer, chance = guess(kind, row, rng)
            scores.append(match_all(answer, document))
            chances.append(chance)
    assert sum(scores) / len(scores) == pytest.approx(sum(chances) / len(chances), abs=0.03)
