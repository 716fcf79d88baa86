"""What every variant computes: model sizes, the recipe of each, and the batches."""

import math
from dataclasses import dataclass
from typing import Any

VOCABULARY = 128_256
LEARNING_RATE = 1e-3
SIZES = {  # with the vocabulary of SmolLM3, most of a small model is its embedding
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "heads": (4, 2)},
    "30m": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 12, "heads": (6, 2)},
    "135m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24, "heads": (8, 2)},
    "360m": {"hidden_size": 1024, "intermediate_size": 2304, "num_hidden_layers": 24, "heads": (16, 4)},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "heads": (16, 4)},
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "heads": (16, 4)},
}


@dataclass(frozen=True)
class Work:
    """One global step: `micro_batches` of `micro_batch_size` packed samples of `sequence_length` tokens."""

    size: str
    dtype: str
    sequence_length: int
    micro_batch_size: int
    micro_batches: int
    loss_chunk_tokens: int
    mean_document_tokens: int = 900
    options: tuple[str, ...] = ()  # of this trainer: `section.key=value` of the recipe
    distinct_steps: int = 0  # how many different batches there are, over and over; 0: each step has its own

    @property
    def tokens(self) -> int:
        return self.sequence_length * self.micro_batch_size * self.micro_batches

    def recipe(self, tp: int = 1, dp: int = 1, overrides: tuple[str, ...] = ()) -> Any:
        """The trainer's recipe; with replicas, each takes its share of the micro-batches."""
        from foundation.recipe import load_recipe

        shape = dict(SIZES[self.size])
        heads, kv_heads = shape.pop("heads")  # type: ignore[misc]
        model = {**shape, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": VOCABULARY}
        model["max_position_embeddings"] = self.sequence_length
        return load_recipe(
            "recipes/tiny/pretrain.yaml",
            [
                *(f"model.model_config.{key}={value}" for key, value in model.items()),
                f"model.dtype={self.dtype}",
                f"parallelism={{tp: {tp}, dp: {dp}, loss_chunk_tokens: {self.loss_chunk_tokens}}}",
                "tokenizer={tokenizer_name_or_path: none}",
                "data={path: none, seed: 1}",
                "data_stages=[{name: all, start_training_step: 1, mixture: {none: 1.0}}]",
                f"tokens={{sequence_length: {self.sequence_length}, train_steps: 1000, "
                f"micro_batch_size: {self.micro_batch_size}, "
                f"batch_accumulation_per_replica: {self.micro_batches // dp}}}",
                f"optimizer.zero_stage={int(dp > 1)}",
                f"optimizer.learning_rate_scheduler={{learning_rate: {LEARNING_RATE}, lr_decay_style: constant}}",
                *self.options,
                *overrides,
            ],
        )

    def _draw(self, step: int) -> int:
        return (step - 1) % self.distinct_steps + 1 if self.distinct_steps else step

    def lengths(self, step: int) -> list[list[int]]:
        """Of every micro-batch's documents: log-normal, cut at the ends of samples."""
        import numpy as np

        generator = np.random.default_rng([self._draw(step), 1])
        micro_batches = []
        for _ in range(self.micro_batches):
            lengths: list[int] = []
            for _ in range(self.micro_batch_size):
                ends = np.cumsum(
                    generator.lognormal(math.log(self.mean_document_tokens) - 0.5, 1.0, self.sequence_length).astype(
                        np.int64
                    )
                    + 1
                )
                ends = np.append(ends[ends < self.sequence_length], self.sequence_length)
                lengths += np.diff(ends, prepend=0).tolist()
            micro_batches.append(lengths)
        return micro_batches

    def flops(self, step: int) -> float:
        """6 x parameters x tokens + 6 x layers x hidden_size x the sum of squared document lengths."""
        from nanotron_ext.flops import step_flops

        return step_flops(self.recipe().architecture, self.tokens, self.tokens * self.document_tokens(step))

    def document_tokens(self, step: int) -> int:
        """Mean document length, weighted by tokens."""
        return round(sum(length**2 for lengths in self.lengths(step) for length in lengths) / self.tokens)

    def batch(self, step: int, replica: int = 0, replicas: int = 1) -> Any:
        """The step's samples, or a replica's part of them, with tokens as unevenly frequent as words are."""
        import numpy as np
        import torch

        from nanotron_ext.data.loader import MicroBatch, StepBatch

        generator = np.random.default_rng([self._draw(step), 2])
        micro_batches = []
        for lengths in self.lengths(step):
            ids = generator.zipf(1.2, (self.micro_batch_size, self.sequence_length + 1)) % (VOCABULARY - 2) + 2
            untrained = torch.tensor(lengths).cumsum(0) - 1
            micro_batches.append(MicroBatch(torch.from_numpy(ids.astype(np.int32)), untrained, lengths))
        share = self.micro_batches // replicas
        mine = micro_batches[replica * share : (replica + 1) * share]
        labels = share * self.micro_batch_size * self.sequence_length
        return StepBatch(step, 0, mine, labels - sum(len(batch.untrained) for batch in mine))
