"""A recipe's own tokenizer stands as long as its texts and settings do."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from datapipes.errors import SourceError
from datapipes.math_problems import VERSION
from datapipes.registry import Source, find_source
from datapipes.trained_tokenizer import train_tokenizer_once
from foundation.recipe import Recipe, load_recipe
from foundation.recipe.schema import TrainTokenizer

TEXTS = [f"letter {number} about water and stone" for number in range(40)]
TRAIN = TrainTokenizer(vocab_size=280, sources=["letters"])


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    return load_recipe("recipes/tiny/pretrain.yaml")


def test_texts_count_by_their_contents(
    recipe: Recipe, make_source: Callable[..., Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, console = make_source(TEXTS), Console()
    file = tmp_path / "run" / "tokenizer" / "tokenizer.json"

    def train(train: TrainTokenizer = TRAIN) -> None:
        train_tokenizer_once(recipe, train, [source], console)

    train()
    made = file.stat().st_ino
    raw = Path(source.reader.path, "000.jsonl")
    raw.touch()
    train()
    raw.write_text(raw.read_text().replace("water", "metal"))
    with pytest.raises(SourceError, match=r"letters: files: 000\.jsonl: other content"):
        train()
    with pytest.raises(SourceError, match=r"vocab_size: 280 -> 290; letters: files"):
        train(TRAIN.model_copy(update={"vocab_size": 290}))
    shutil.rmtree(raw.parent)
    capsys.readouterr()
    train()  # its texts are gone, and it is what models were trained with
    assert "The tokenizer is taken as it is: Source letters finds no file" in capsys.readouterr().out
    assert file.stat().st_ino == made


def test_a_tokenizer_of_an_earlier_release_stands(recipe: Recipe, tmp_path: Path) -> None:
    """Its record holds revisions alone, which the corpus and the generators still have."""
    sources = [find_source("tiny-math-heldout"), find_source("tiny-web-deu-heldout")]
    train = TrainTokenizer(vocab_size=300, sources=[source.name for source in sources])
    train_tokenizer_once(recipe, train, sources, Console())
    record = tmp_path / "run" / "tokenizer" / "trained_on.json"
    corpus = "sha256:" + hashlib.sha256(Path("datapipes/corpus/tiny-web-deu-heldout.jsonl.xz").read_bytes()).hexdigest()
    old = {"vocab_size": 300, "sources": {"tiny-math-heldout": f"math-{VERSION}", "tiny-web-deu-heldout": corpus}}
    record.write_text(json.dumps(old))
    train_tokenizer_once(recipe, train, sources, Console())
    record.write_text(json.dumps(old).replace(corpus, "sha256:of-other-texts"))
    with pytest.raises(SourceError, match="tiny-web-deu-heldout: revision: sha256:of-other-texts -> sha256:"):
        train_tokenizer_once(recipe, train, sources, Console())
