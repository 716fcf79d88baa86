"""The tokenizer of a recipe: trains the byte-level BPE of the small recipes, loads and identifies any other."""

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from datapipes.errors import SourceError
from foundation.recipe import Recipe
from foundation.tokenizer_json import content_sha256

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, "<|im_start|>", "<|im_end|>")
# Tokens of their own, but ordinary text: evaluation decodes with skip_special_tokens and must still see them.
_MARKUP_TAGS = ("think", "tool_call", "tool_response", "code")
MARKUP_TOKENS = tuple(f"<{slash}{tag}>" for tag in _MARKUP_TAGS for slash in ("", "/"))


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer and what identifies it."""

    file: Path  # tokenizer.json
    sha256: str  # of the bytes of that file
    tokenizer: Tokenizer
    eos_token: str
    eos_token_id: int

    @cached_property
    def content_sha256(self) -> str:
        """Of what the file says, however it is laid out."""
        return content_sha256(self.file.read_bytes())

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> list[int]:
        """Ids that no raw text may produce."""
        added = self.tokenizer.get_added_tokens_decoder()
        return sorted(token_id for token_id, token in added.items() if token.special)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE that ends with exactly `vocab_size` entries; special tokens get the ids 0, 1, ...

    Digits are single tokens, which is what small models need to learn arithmetic. Nothing is put before or after a
    text: documents get their end token in tokenisation.

    Raises:
        SourceError: if the texts are too few for so many merges.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise SourceError(
            f"The texts give a vocabulary of {tokenizer.get_vocab_size()}, not of tokenizer.train.vocab_size = "
            f"{vocab_size}. Lower it, or train on more sources."
        )
    return _as_ordinary(tokenizer, MARKUP_TOKENS)


def _as_ordinary(tokenizer: Tokenizer, tokens: Collection[str]) -> Tokenizer:
    """The trainer marks all its reserved tokens as special, and the library offers no way back but its file."""
    state = json.loads(tokenizer.to_str())
    for added in state["added_tokens"]:
        added["special"] = added["content"] not in tokens
    return Tokenizer.from_str(json.dumps(state))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write the folder that transformers' AutoTokenizer loads; tokenizer.json last and atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        **specials,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", specials)
    partial = folder / "tokenizer.json.partial"
    tokenizer.save(str(partial))
    partial.replace(folder / "tokenizer.json")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(recipe: Recipe) -> LoadedTokenizer:
    """The recipe's tokenizer, from its folder or (cached or online) from the hub.

    Raises:
        SourceError: if there is none, or it does not fit the recipe's model.
    """
    name, revision = recipe.tokenizer.tokenizer_name_or_path, recipe.tokenizer.tokenizer_revision
    file = Path(name) / "tokenizer.json"
    if not file.is_file():
        file = _from_hub(name, revision)
    data = file.read_bytes()
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise SourceError(f"{file} is not a tokenizer: {error}. Delete its folder to have it made anew.") from None
    model = recipe.architecture
    eos_token = tokenizer.id_to_token(model.eos_token_id) or ""
    loaded = LoadedTokenizer(file, hashlib.sha256(data).hexdigest(), tokenizer, eos_token, model.eos_token_id)
    if model.eos_token_id not in loaded.special_ids:
        raise SourceError(
            f"model.model_config.eos_token_id {model.eos_token_id} is {eos_token!r} in {file}, not a special token. "
            f"Set it to the id of the token that ends a document."
        )
    if loaded.vocab_size > model.vocab_size:
        raise SourceError(
            f"{file} has {loaded.vocab_size} tokens, more than model.model_config.vocab_size {model.vocab_size}. "
            f"Raise vocab_size, or name another tokenizer."
        )
    return loaded


def _from_hub(name: str, revision: str | None) -> Path:
    if Path(name).exists() or name.count("/") != 1 or name.startswith(("/", ".")):
        raise SourceError(
            f"tokenizer.tokenizer_name_or_path {name!r} holds no tokenizer.json. Correct the path, or add "
            f"tokenizer.train to the recipe to have one trained there."
        )
    try:
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision))
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise SourceError(
            f"The tokenizer {name!r} is neither a folder with tokenizer.json, nor in the hub's cache, nor could it be "
            f"downloaded ({type(error).__name__}). Log in with `hf auth login` if it is gated, or copy its folder here "
            f"and set tokenizer.tokenizer_name_or_path to it."
        ) from None
