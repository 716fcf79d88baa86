"""What the data tests build their inputs from."""

import hashlib
import random
from pathlib import Path

import numpy as np

from datapipes.pipeline import SourceBuild
from datapipes.state import state_of
from datapipes.tokenizer import EOS, LoadedTokenizer, save_tokenizer, train_tokenizer

WORDS = ("water", "stone", "bridge", "morning", "letter", "garden", "window", "silver", "engine", "river", "paper")


def random_text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) + generator.choice(["", "s", ",", "."]) for _ in range(words))


def make_tokenizer(folder: Path, vocab_size: int = 400) -> LoadedTokenizer:
    texts = ["".join(random.Random(number).choices("etaoinshrdlu mcfgyp", k=400)) for number in range(100)]
    tokenizer = train_tokenizer(texts, vocab_size)
    save_tokenizer(tokenizer, folder, model_max_length=64)
    file = folder / "tokenizer.json"
    return LoadedTokenizer(file, hashlib.sha256(file.read_bytes()).hexdigest(), tokenizer, EOS, 1)


def read_documents(folder: Path, token_dtype: str = "<u2") -> list[list[int]]:
    """Every document of a folder of shards, EOS included, straight from the bytes."""
    documents = []
    for path in sorted(folder.glob("*.ds")):
        tokens = np.fromfile(path, dtype=token_dtype)
        ends = np.fromfile(f"{path}.index", dtype="<u8").astype(int)
        documents += [part.tolist() for part in np.split(tokens, ends[:-1])]
    return documents


def shard_bytes(folder: Path) -> dict[str, bytes]:
    """Content of everything that a prepared source is made of, without the logs."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def is_done(build: SourceBuild) -> bool:
    return state_of(build, print).kind == "done"
