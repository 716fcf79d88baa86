"""Micro-batches as a pure function of the recipe and the step; nothing is stored, nothing grows with the run."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanotron_ext.data.errors import DataError
from nanotron_ext.data.manifest import open_sources
from nanotron_ext.data.mixture import Mixture, Stage
from nanotron_ext.data.permutation import permute, source_key
from nanotron_ext.data.shards import ShardSet
from nanotron_ext.recipe import Recipe

PREFETCHED_STEPS = 2


@dataclass(frozen=True)
class MicroBatch:
    """Samples laid end to end: `tokens = micro_batch_size * sequence_length`.

    input_ids: int64 `[tokens]`.
    label_ids: int64 `[tokens]`, the token that follows.
    label_mask: bool `[tokens]`, False where the label opens another document and is not to be predicted.
    lengths: tokens of each piece of a document, in order; no piece spans two samples, and they sum to `tokens`.
    """

    input_ids: Tensor
    label_ids: Tensor
    label_mask: Tensor
    lengths: list[int]


@dataclass(frozen=True)
class StepBatch:
    """One data-parallel rank's part of a step. `first_sample` is its first sample, counted over the whole run."""

    step: int
    first_sample: int
    micro_batches: list[MicroBatch]
    trained_tokens: int


@dataclass(frozen=True)
class SourceProgress:
    """How far a source has been read."""

    tokens: int
    epochs: float


@dataclass(frozen=True)
class SourcePlan:
    """What a run will take from a source. `dropped_tokens` are ends of files too short for a window."""

    source: str
    available_tokens: int
    dropped_tokens: int
    planned_tokens: int
    planned_epochs: float


class MixtureLoader:
    """The training data of one data-parallel rank.

    Step t owns the global samples `[(t - 1) G, t G)` with G the global batch size; rank r takes their r-th contiguous
    part, so that the order of samples over all ranks does not depend on the number of ranks.

    Attributes:
        plan: for each source, what there is and what the whole run takes.
        share_rounding: for each stage whose shares are too fine to be kept exactly, the largest change of a share.
        fingerprints: for each source, a digest of its files; a change alters which tokens a step gets.

    Raises:
        DataError: listing everything that is wrong with the prepared data, training and validation; or the global
            batch does not split over `dp_size` ranks.
    """

    def __init__(self, recipe: Recipe, dp_rank: int, dp_size: int) -> None:
        micro_batch_size = recipe.tokens.micro_batch_size
        if recipe.global_batch_size % (dp_size * micro_batch_size) or not 0 <= dp_rank < dp_size:
            raise DataError(
                [
                    f"parallelism.dp: A global batch of {recipe.global_batch_size} samples does not split into "
                    f"micro-batches of {micro_batch_size} on rank {dp_rank} of {dp_size}. Change parallelism.dp or "
                    f"tokens.micro_batch_size."
                ]
            )
        self._recipe = recipe
        self._samples_per_rank = recipe.global_batch_size // dp_size
        self._rank_offset = dp_rank * self._samples_per_rank
        self._mixture = Mixture(_stages(recipe))
        names = self._mixture.sources
        sources = open_sources(recipe, dict.fromkeys([*names, *recipe.data.validation]))[: len(names)]
        self._shards = ShardSet(sources, recipe.tokens.sequence_length)
        self._keys = np.array([source_key(recipe.data.seed, name) for name in names], np.uint64)
        self.fingerprints = {source.manifest.source: source.fingerprint for source in sources}
        self.share_rounding = {
            stage.name: schedule.rounding
            for stage, schedule in zip(self._mixture.stages, self._mixture.schedules, strict=True)
            if schedule.rounding
        }
        planned = self.consumed(recipe.tokens.train_steps)
        self.plan = [
            SourcePlan(
                source=source.manifest.source,
                available_tokens=source.manifest.tokens,
                dropped_tokens=int(dropped),
                planned_tokens=planned[source.manifest.source].tokens,
                planned_epochs=planned[source.manifest.source].epochs,
            )
            for source, dropped in zip(sources, self._shards.dropped_tokens, strict=True)
        ]

    def batch(self, step: int) -> StepBatch:
        """This rank's samples of a step. A pure function, equally fast for every step."""
        source, start_token, sequence_length = self._windows(step)
        micro_batches = _read_micro_batches(
            self._shards,
            source,
            start_token,
            sequence_length,
            self._recipe.tokens.micro_batch_size,
            self._recipe.architecture.document_mask,
        )
        trained_tokens = sum(int(np.count_nonzero(micro_batch.label_mask)) for micro_batch in micro_batches)
        return StepBatch(step, self._first_sample(step), micro_batches, trained_tokens)

    def sample_ids(self, step: int) -> list[tuple[str, int]]:
        """Source and window number of each of this rank's samples."""
        source, start_token, sequence_length = self._windows(step)
        return [
            (self._mixture.sources[number], window)
            for number, window in zip(source.tolist(), (start_token // sequence_length).tolist(), strict=True)
        ]

    def consumed(self, step: int) -> dict[str, SourceProgress]:
        """How far all ranks together have read each source once `step` steps are done; in closed form."""
        tokens = self._mixture.position_tokens(step * self._recipe.global_batch_size)
        epochs = tokens / (self._shards.chunks * self._shards.chunk_tokens)
        return {
            name: SourceProgress(int(tokens[number]), float(epochs[number]))
            for number, name in enumerate(self._mixture.sources)
        }

    def iterate(self, first_step: int, last_step: int) -> Iterator[tuple[StepBatch, float]]:
        """Batches of steps `first_step` to `last_step`, read ahead in a thread, each with the seconds waited for it.

        The thread ends with the iterator; its exceptions are raised here.
        """
        steps = iter(range(first_step, last_step + 1))
        reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixture-loader")
        try:
            ahead = deque(reader.submit(self.batch, step) for step in itertools.islice(steps, PREFETCHED_STEPS))
            while ahead:
                started = perf_counter()
                batch = ahead.popleft().result()
                waited_seconds = perf_counter() - started
                ahead.extend(reader.submit(self.batch, step) for step in itertools.islice(steps, 1))
                yield batch, waited_seconds
        finally:
            reader.shutdown(cancel_futures=True)

    def _first_sample(self, step: int) -> int:
        if not 1 <= step <= self._recipe.tokens.train_steps:
            raise ValueError(f"Step {step} lies outside the run's steps 1 to {self._recipe.tokens.train_steps}.")
        return (step - 1) * self._recipe.global_batch_size + self._rank_offset

    def _windows(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Source, first token within the source's chunks, and length of this rank's windows."""
        source, position, sequence_length = self._mixture.draw(self._first_sample(step), self._samples_per_rank)
        place, offset = np.divmod(position, self._shards.chunk_tokens)
        chunks = self._shards.chunks[source]
        epoch, place = np.divmod(place, chunks)
        chunk = permute(place, chunks, self._keys[source], epoch)
        return source, chunk * self._shards.chunk_tokens + offset, sequence_length


def validation_batches(
    recipe: Recipe, source: str, micro_batch_size: int, dp_rank: int, dp_size: int
) -> list[MicroBatch]:
    """The first `tokens.limit_val_batches` windows of a held-out source, in the order of its text.

    Every rank gets equally many full micro-batches; places behind the last window are filled with samples of which no
    label counts (`label_mask` False throughout).

    Raises:
        DataError: when the source is unusable; `MixtureLoader` has checked all of `data.validation` before.
    """
    sequence_length = recipe.tokens.sequence_length
    shards = ShardSet(open_sources(recipe, [source]), sequence_length)
    windows = min(recipe.tokens.limit_val_batches, int(shards.chunks[0]))
    samples_per_rank = -(-windows // (micro_batch_size * dp_size)) * micro_batch_size
    sample = np.arange(dp_rank * samples_per_rank, (dp_rank + 1) * samples_per_rank)
    is_padding = sample >= windows
    micro_batches = _read_micro_batches(
        shards,
        np.zeros_like(sample),
        np.where(is_padding, 0, sample) * sequence_length,
        sequence_length,
        micro_batch_size,
        recipe.architecture.document_mask,
    )
    for micro_batch, padding in zip(micro_batches, is_padding.reshape(-1, micro_batch_size), strict=True):
        micro_batch.label_mask.view(micro_batch_size, sequence_length)[torch.from_numpy(padding)] = False
    return micro_batches


def _stages(recipe: Recipe) -> list[Stage]:
    starts = [stage.start_training_step - 1 for stage in recipe.data_stages] + [recipe.tokens.train_steps]
    return [
        Stage(
            name=stage.name,
            first_sample=start * recipe.global_batch_size,
            samples=(end - start) * recipe.global_batch_size,
            sequence_length=recipe.tokens.sequence_length,
            shares=stage.shares(),
        )
        for stage, start, end in zip(recipe.data_stages, starts[:-1], starts[1:], strict=True)
    ]


def _read_micro_batches(
    shards: ShardSet,
    source: NDArray[np.int64],
    start_token: NDArray[np.int64],
    sequence_length: int,
    micro_batch_size: int,
    document_mask: bool,
) -> list[MicroBatch]:
    """Read samples `[samples]` and cut them into micro-batches, which share their memory."""
    samples = len(source)
    input_ids = np.empty((samples, sequence_length), np.int64)
    label_ids = np.empty_like(input_ids)
    document_ends = shards.read(*shards.locate(source, start_token), input_ids, label_ids)

    is_last = np.zeros(samples * sequence_length, np.bool_)
    if document_mask:
        is_last[document_ends - 1] = True
    label_mask = ~is_last
    is_last[sequence_length - 1 :: sequence_length] = True
    piece_ends = is_last.nonzero()[0] + 1
    lengths = np.diff(piece_ends, prepend=0)

    micro_batches = samples // micro_batch_size
    tokens = micro_batch_size * sequence_length
    cuts = piece_ends.searchsorted(np.arange(1, micro_batches) * tokens, side="right")
    columns = (torch.from_numpy(column).view(-1, tokens) for column in (input_ids, label_ids, label_mask))
    pieces = (part.tolist() for part in np.split(lengths, cuts))
    return [MicroBatch(*fields) for fields in zip(*columns, pieces, strict=True)]
