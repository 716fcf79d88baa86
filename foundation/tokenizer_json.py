"""When two tokenizer.json are the same tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import Any

from foundation.errors import UserError

# What makes ids of a text, in the order in which it is applied. `truncation` and `padding` are of the last call.
_PARTS = {
    "added_tokens": "added tokens",
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "vocab": "vocabulary",
    "merges": "merges",
    "model": "settings of the model",
    "post_processor": "post-processor",
    "decoder": "decoder",
}


class TokenizerFileError(UserError):
    """A tokenizer.json that the tokenizers library does not read."""


def content_sha256(tokenizer_json: bytes) -> str:
    """SHA-256 of what the file says, however it is laid out: a line end or another indentation is no other tokenizer.

    Raises:
        ValueError: if it is not JSON.
    """
    return hashlib.sha256(json.dumps(json.loads(tokenizer_json), sort_keys=True).encode()).hexdigest()


def differing_parts(one: Path, other: Path) -> list[str]:
    """In words, the parts of two tokenizer.json that make other ids of some text; none if they are one tokenizer.

    Releases of the tokenizers library spell the same tokenizer differently (merges as "a b" or ["a", "b"], keys that
    hold defaults), so both are read and written anew by the installed one.

    Raises:
        TokenizerFileError: for a file that it does not read.
    """
    if content_sha256(one.read_bytes()) == content_sha256(other.read_bytes()):
        return []
    mine, theirs = _parts(one), _parts(other)
    return [words for part, words in _PARTS.items() if mine[part] != theirs[part]]


def _parts(path: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    try:
        content = json.loads(Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerFileError(f"{path} is not a tokenizer that can be read: {error}. Write it again.") from None
    model = content.pop("model")
    return {**content, "vocab": model.pop("vocab", None), "merges": model.pop("merges", None), "model": model}
