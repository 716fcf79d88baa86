import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from datapipes.errors import SourceError
from datapipes.tokenizer import MARKUP_TOKENS, SPECIAL_TOKENS, LoadedTokenizer, load_tokenizer, train_tokenizer
from foundation.recipe import Recipe, load_recipe
from tests.datapipes.helpers import make_tokenizer, random_text

TRAIN = """
import random, sys
from datapipes.tokenizer import train_tokenizer
letters = "etaoinshrdlu mcfgyp"
texts = ["".join(random.Random(n).choices(letters, k=400)) for n in range(200)]
sys.stdout.write(train_tokenizer(texts, 700).to_str())
"""


def test_training_is_deterministic_for_any_number_of_threads_and_hash_seed() -> None:
    """Random letters give many pairs of equal count, where ties could fall either way."""
    trained = {
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "5")
    }
    assert len(trained) == 1


def test_ids_of_the_reserved_tokens(tokenizer: LoadedTokenizer) -> None:
    reserved = [*SPECIAL_TOKENS, *MARKUP_TOKENS]
    assert [tokenizer.tokenizer.token_to_id(token) for token in reserved] == list(range(len(reserved)))
    assert tokenizer.special_ids == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.vocab_size == 400


def test_any_text_survives_the_round_trip(tokenizer: LoadedTokenizer) -> None:
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(chr(generator.choice([*range(32, 600), 9, 10, 0x1F600, 0x4E2D])) for _ in range(40))
        assert tokenizer.tokenizer.decode(tokenizer.tokenizer.encode(text).ids) == text


def test_digits_are_single_tokens(tokenizer: LoadedTokenizer) -> None:
    assert tokenizer.tokenizer.encode("1234567").tokens == list("1234567")


def test_transformers_loads_the_folder_and_agrees(tokenizer: LoadedTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer.file.parent)
    text = "Garden 12 <think>letters</think><|im_end|>\n  <code>x = 1</code> über"
    ids = loaded(text).input_ids
    assert ids == tokenizer.tokenizer.encode(text).ids
    assert loaded.decode(ids) == text
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (0, 1, 2, 400)
    without_specials = loaded.decode(ids, skip_special_tokens=True)
    assert "<think>letters</think>" in without_specials
    assert "<code>" in without_specials


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(SourceError, match="vocab_size = 5000"):
        train_tokenizer([random_text(random.Random(0), 20)], 5000)


def recipe_with(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(
        "recipes/tiny/pretrain.yaml", [f"tokenizer.tokenizer_name_or_path={folder}", "tokenizer.train=null", *overrides]
    )


def test_loading_identifies_the_tokenizer(tokenizer: LoadedTokenizer) -> None:
    loaded = load_tokenizer(recipe_with(tokenizer.file.parent))
    assert (loaded.sha256, loaded.eos_token) == (tokenizer.sha256, "<|end_of_text|>")
    assert loaded.special_ids == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model.model_config.eos_token_id=50"], "eos_token_id 50"),
        (["model.model_config.eos_token_id=4000"], "eos_token_id 4000"),
        (["model.model_config.vocab_size=256"], "400 tokens, more than"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model(
    tokenizer: LoadedTokenizer, overrides: list[str], complaint: str
) -> None:
    with pytest.raises(SourceError, match=complaint):
        load_tokenizer(recipe_with(tokenizer.file.parent, *overrides))


def test_a_folder_without_tokenizer_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no tokenizer\.json"):
        load_tokenizer(recipe_with(tmp_path / "absent"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}), encoding="utf-8")
    with pytest.raises(SourceError, match="is not a tokenizer"):
        load_tokenizer(recipe_with(tmp_path))


def test_a_hub_tokenizer_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match="copy its folder here"):
        load_tokenizer(recipe_with(Path("nobody/no-such-tokenizer")))


def test_a_retrained_tokenizer_has_another_hash(tmp_path: Path, tokenizer: LoadedTokenizer) -> None:
    same, other = make_tokenizer(tmp_path / "same"), make_tokenizer(tmp_path / "other", 401)
    assert same.sha256 == tokenizer.sha256
    assert other.sha256 != tokenizer.sha256
    assert Tokenizer.from_file(str(other.file)).get_vocab_size() == 401
