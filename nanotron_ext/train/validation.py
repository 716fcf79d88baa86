"""Held-out bits per byte: comparable across tokenizers, unlike a loss per token."""

import json
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch

from foundation.recipe import Recipe
from nanotron_ext.data.loader import MicroBatch, validation_batches
from nanotron_ext.train.step import TrainState


class Validation:
    """Bits per byte of every held-out source, on the same windows at every check."""

    def __init__(self, recipe: Recipe, replica: int) -> None:
        tokens, dp = recipe.tokens, recipe.parallelism.dp
        self._batches: dict[str, list[MicroBatch]] = {
            source: list(validation_batches(recipe, source, tokens.micro_batch_size, replica, dp))
            for source in recipe.data.validation
        }
        self._tokenizer_folder = Path(recipe.tokenizer.tokenizer_name_or_path)

    def bits_per_byte(self, state: TrainState, on_batch: Callable[[], None]) -> dict[str, float]:
        """Source name -> bits that the model needs per byte of the source's text. `on_batch`: before each batch."""
        result = {}
        for source, batches in self._batches.items():
            trained = sum(int(self._token_bytes[batch.label_ids][batch.label_mask].sum()) for batch in batches)
            text_bytes = state.context.sum_over_replicas(trained, state.device)
            result[source] = state.evaluate(_announced(batches, on_batch)) / math.log(2) / max(int(text_bytes), 1)
        return result

    @cached_property
    def _token_bytes(self) -> torch.Tensor:
        return token_bytes(self._tokenizer_folder)


def _announced(batches: list[MicroBatch], on_batch: Callable[[], None]) -> Iterator[MicroBatch]:
    for batch in batches:
        on_batch()
        yield batch


def token_bytes(tokenizer_folder: Path) -> torch.Tensor:
    """Bytes of text behind each token id, int64 `[vocabulary]`; 0 for special tokens, which stand for no text.

    Read off tokenizer.json: a byte-level BPE spells every byte as one character, an added token stands for itself.
    """
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    lengths = {index: len(token) for token, index in content["model"]["vocab"].items()}
    for added in content["added_tokens"]:
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    table = torch.zeros(max(lengths) + 1, dtype=torch.int64)
    for index, length in lengths.items():
        table[index] = length
    return table
