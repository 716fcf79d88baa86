"""Micro-batches as a pure function of the recipe and the step; nothing is stored, nothing grows with the run."""

import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.recipe import Recipe
from foundation.shards.errors import ShardError
from foundation.shards.manifest import open_sources
from foundation.shards.reader import ShardSet
from nanotron_ext.checkpoint import MANIFEST, resolve_checkpoint
from nanotron_ext.data.mixture import Mixture, Stage
from nanotron_ext.data.order import TokenOrder
from nanotron_ext.data.permutation import source_key
from nanotron_ext.data.start import RUN_START, DataStart
from nanotron_ext.ledger import Samples

PREFETCHED_STEPS = 2
DRAWN_TOGETHER = 512
"""Samples whose windows are computed at once: numpy's 80 calls take longer than their work on a step's few samples."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples, and where documents end in them.

    What the model takes are the properties, with the samples laid end to end: `tokens = micro_batch_size *
    sequence_length`. Inputs and labels are the same tokens but one, so they are held once, and in four bytes.

    samples: int32 `[micro_batch_size, sequence_length + 1]`; the last token of a row is only a label.
    untrained: int64 `[labels]`, places of the labels that open another document and are not to be predicted.
    lengths: tokens of each piece of a document, in order; no piece spans two samples, and they sum to `tokens`.
    """

    samples: Tensor
    untrained: Tensor
    lengths: list[int]

    @property
    def input_ids(self) -> Tensor:
        """int64 `[tokens]`."""
        return self.samples[:, :-1].to(torch.int64).flatten()

    @property
    def label_ids(self) -> Tensor:
        """int64 `[tokens]`, the token that follows."""
        return self.samples[:, 1:].to(torch.int64).flatten()

    @property
    def label_mask(self) -> Tensor:
        """bool `[tokens]`, False where the label is not to be predicted."""
        return torch.ones(sum(self.lengths), dtype=torch.bool).index_fill_(0, self.untrained, False)


@dataclass(frozen=True)
class StepBatch:
    """One data-parallel rank's part of a step. `first_sample` is its first sample, counted over the whole run."""

    step: int
    first_sample: int
    micro_batches: list[MicroBatch]
    trained_tokens: int


@dataclass(frozen=True)
class SourceProgress:
    """How far a source has been read by this run and those that it continues, last in windows of `sequence_length`."""

    tokens: int
    epochs: float
    sequence_length: int


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

    With a `start` behind an earlier part of the run, step t owns the samples behind those of step t - 1 in the same
    way, and every source goes on where that part has left it.

    `skipped` are ranges of samples that the run leaves out, (first, number): the samples behind them move up, and the
    stage that they begin in draws on for as long as it lasts.

    Attributes:
        plan: for each source, what there is and what the whole run takes.
        share_rounding: for each stage whose shares are too fine to be kept exactly, the largest change of a share.
        fingerprints: for each source, a digest of its files; a change alters which tokens a step gets.
        carried_over: what the run of `data.continue_from` says of sources that this run does not use, for a later one.

    Raises:
        ShardError: listing everything that is wrong with the prepared data, training and validation; or the global
            batch does not split over `dp_size` ranks.
    """

    def __init__(
        self,
        recipe: Recipe,
        dp_rank: int,
        dp_size: int,
        skipped: Sequence[Samples] = (),
        start: DataStart = RUN_START,
    ) -> None:
        micro_batch_size = recipe.tokens.micro_batch_size
        if recipe.global_batch_size % (dp_size * micro_batch_size) or not 0 <= dp_rank < dp_size:
            raise ShardError(
                [
                    f"parallelism.dp: A global batch of {recipe.global_batch_size} samples does not split into "
                    f"micro-batches of {micro_batch_size} on rank {dp_rank} of {dp_size}. Change parallelism.dp or "
                    f"tokens.micro_batch_size."
                ]
            )
        self._recipe = recipe
        self._samples_per_rank = recipe.global_batch_size // dp_size
        self._rank_offset = dp_rank * self._samples_per_rank
        self._skipped, self._start = sorted(skipped), start
        self._mixture = Mixture(_stages(recipe, start, self._skipped))
        names = self._mixture.sources
        sources = open_sources(recipe, dict.fromkeys([*names, *recipe.data.validation]))[: len(names)]
        self.fingerprints = {source.manifest.source: source.fingerprint for source in sources}
        self._shards = ShardSet(sources, recipe.chunk_tokens)
        keys = np.array([source_key(recipe.data.seed, name) for name in names], np.uint64)
        self._order = TokenOrder(self._shards.chunks, recipe.chunk_tokens, keys)
        left = left_behind(recipe, self.fingerprints) if start.sources is None else start.sources
        self.carried_over = {source: record for source, record in left.items() if source not in self.fingerprints}
        self._start_tokens = _start_tokens(left, names, recipe.tokens.sequence_length, self._order)
        self.share_rounding = {
            stage.name: schedule.rounding
            for stage, schedule in zip(self._mixture.stages, self._mixture.schedules, strict=True)
            if schedule.rounding
        }
        self._steps_drawn_together = max(DRAWN_TOGETHER // self._samples_per_rank, 1)
        self._drawn: tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None
        planned = self._mixture.counts(self.data_position(recipe.tokens.train_steps))
        planned_tokens = planned * recipe.tokens.sequence_length
        self.plan = [
            SourcePlan(source.manifest.source, source.manifest.tokens, int(dropped), int(tokens), float(epochs))
            for source, dropped, tokens, epochs in zip(
                sources,
                self._shards.dropped_tokens,
                planned_tokens,
                planned_tokens / self._order.epoch_tokens,
                strict=True,
            )
        ]

    def batch(self, step: int) -> StepBatch:
        """This rank's samples of a step. A pure function, equally fast for every step."""
        first_sample, source, start_token = self._windows(step)
        micro_batches = _read_micro_batches(
            self._shards,
            source,
            start_token,
            self._recipe.tokens.sequence_length,
            self._recipe.tokens.micro_batch_size,
            self._recipe.architecture.document_mask,
        )
        labels = self._samples_per_rank * self._recipe.tokens.sequence_length
        untrained = sum(len(micro_batch.untrained) for micro_batch in micro_batches)
        return StepBatch(step, first_sample, micro_batches, labels - untrained)

    def sample_ids(self, step: int) -> list[tuple[str, int]]:
        """Source and window number of each of this rank's samples."""
        _, source, start_token = self._windows(step)
        windows = start_token // self._recipe.tokens.sequence_length
        return [
            (self._mixture.sources[number], window)
            for number, window in zip(source.tolist(), windows.tolist(), strict=True)
        ]

    def consumed(self, step: int) -> dict[str, SourceProgress]:
        """How far all ranks together have read each source once `step` steps are done; in closed form."""
        drawn = self._mixture.counts(self.data_position(step))
        length = self._recipe.tokens.sequence_length
        tokens = self._start_tokens + drawn * length
        epochs = tokens / self._order.epoch_tokens
        return {
            name: SourceProgress(int(tokens[number]), float(epochs[number]), length)
            for number, name in enumerate(self._mixture.sources)
        }

    def data_position(self, step: int) -> int:
        """How many samples the run has behind it after `step` steps, those that it left out on its way included."""
        return self._start.samples_after(step, self._recipe, self._skipped)

    def stage_end(self, sample: int) -> int:
        """The first sample behind the stage that `sample` belongs to."""
        ends = (stage.first_sample + stage.samples for stage in self._mixture.stages)
        return next((end for end in ends if sample < end), sample)

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

    def _windows(self, step: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """This rank's first sample of a step; source, and first token among those of its chunks, of its windows."""
        first, last = self._start.step + 1, self._recipe.tokens.train_steps
        if not first <= step <= last:
            raise ValueError(f"Step {step} lies outside the run's steps {first} to {last}.")
        block, row = divmod(step - first, self._steps_drawn_together)
        drawn = self._drawn  # read once: threads may share the loader
        if drawn is None or drawn[0] != block:
            self._drawn = drawn = (block, *self._windows_of_block(block))
        return int(drawn[1][row]), drawn[2][row], drawn[3][row]

    def _windows_of_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """As `_windows`, for all steps of a block: `[steps]`, and twice `[steps, samples]`."""
        steps = self._recipe.tokens.train_steps - self._start.step
        first_step = block * self._steps_drawn_together
        step = np.arange(first_step, min(first_step + self._steps_drawn_together, steps))
        number = step[:, None] * self._recipe.global_batch_size + self._rank_offset + np.arange(self._samples_per_rank)
        sample = self._start.places(number, self._skipped)
        length = self._recipe.tokens.sequence_length
        source, ordinal = self._mixture.draw(sample)
        position = self._start_tokens[source] + ordinal * length
        start_token = self._order.window(source.ravel(), position.ravel(), length)
        return sample[:, 0], source, start_token.reshape(source.shape)


def left_behind(recipe: Recipe, fingerprints: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What the run of `data.continue_from` recorded of its sources; empty without one.

    Raises:
        CheckpointError: there is no such run.
        ShardError: its tokens came in another order, so that there is no place to go on from.
    """
    if recipe.data.continue_from is None:
        return {}
    folder = resolve_checkpoint(Path(recipe.data.continue_from), "data.continue_from")
    left = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    there: dict[str, dict[str, Any]] = left["data"]
    data_then, tokens_then = left["recipe"]["data"], left["recipe"]["tokens"]
    problems = [
        f"data.{key}: It is {now}, but {then} in {folder}, so that this run would not go on with what that one left. "
        f"Set it to {then}, or remove data.continue_from to begin every source anew."
        for key, then, now in (
            ("seed", data_then["seed"], recipe.data.seed),
            ("chunk_tokens", data_then["chunk_tokens"] or tokens_then["sequence_length"], recipe.chunk_tokens),
        )
        if then != now
    ]
    problems += [
        f"{recipe.data.path}/{source}: Its files are not those that {folder} was trained on. Restore them, give the "
        f"source another name, or remove data.continue_from."
        for source, files in fingerprints.items()
        if source in there and there[source]["files"] != files
    ]
    if problems:
        raise ShardError(problems)
    return there


def _start_tokens(
    left: dict[str, dict[str, Any]], sources: list[str], sequence_length: int, order: TokenOrder
) -> NDArray[np.int64]:
    """Where in its stream each source begins, in tokens `[sources]`."""
    records = [left.get(source, {"tokens": 0, "sequence_length": sequence_length}) for source in sources]
    position = np.array([record["tokens"] for record in records], np.int64)
    same_windows = np.array([record["sequence_length"] == sequence_length for record in records])
    return np.where(same_windows, position, order.next_group(position))


def validation_batches(
    recipe: Recipe, source: str, micro_batch_size: int, dp_rank: int, dp_size: int
) -> list[MicroBatch]:
    """The first `tokens.limit_val_batches` windows of a held-out source, in the order of its text.

    Every rank gets equally many full micro-batches; places behind the last window are filled with samples of which no
    label counts (`label_mask` False throughout).

    Raises:
        ShardError: when the source is unusable; `MixtureLoader` has checked all of `data.validation` before.
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
    padding = torch.from_numpy(is_padding.repeat(sequence_length)).view(len(micro_batches), -1)
    return [
        dataclasses.replace(micro_batch, untrained=torch.nonzero(~micro_batch.label_mask | is_padded).flatten())
        for micro_batch, is_padded in zip(micro_batches, padding, strict=True)
    ]


def _stages(recipe: Recipe, start: DataStart, skipped: Sequence[Samples]) -> list[Stage]:
    """What is left of the stages behind `start`, in samples; what is left out of a stage makes it that much longer."""
    borders = [stage.start_training_step - 1 for stage in recipe.data_stages] + [recipe.tokens.train_steps]
    stages, first_sample = [], start.samples
    for stage, (begin, end) in zip(recipe.data_stages, pairwise(borders), strict=True):
        if end <= start.step and stage is not recipe.data_stages[-1]:
            continue
        stop = first_sample + max(end - max(begin, start.step), 0) * recipe.global_batch_size
        for first, count in skipped:
            if first_sample <= first < stop:
                stop += count
        stages.append(Stage(stage.name, first_sample, stop - first_sample, stage.shares()))
        first_sample = stop
    return stages


def _read_micro_batches(
    shards: ShardSet,
    source: NDArray[np.int64],
    start_token: NDArray[np.int64],
    sequence_length: int,
    micro_batch_size: int,
    document_mask: bool,
) -> list[MicroBatch]:
    """Read samples `[samples]` and cut them into micro-batches, which share their memory."""
    tokens = np.empty((len(source), sequence_length + 1), np.int32)
    document_ends = shards.read(*shards.locate(source, start_token), tokens)
    if not document_mask:
        document_ends = document_ends[:0]
    ends = np.concatenate([document_ends, np.arange(1, len(source) + 1) * sequence_length])
    ends.sort()
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]  # 0 where a document ends with its window

    tokens_per_batch = micro_batch_size * sequence_length
    borders = np.arange(0, len(source) * sequence_length + 1, tokens_per_batch)
    samples = torch.from_numpy(tokens).split(micro_batch_size)
    pieces = pairwise(ends.searchsorted(borders, side="right").tolist())
    labels = pairwise(document_ends.searchsorted(borders, side="right").tolist())
    return [
        MicroBatch(
            part,
            torch.from_numpy(document_ends[first_end:last_end] - (number * tokens_per_batch + 1)),
            [length for length in lengths[first:last].tolist() if length],
        )
        for number, (part, (first, last), (first_end, last_end)) in enumerate(zip(samples, pieces, labels, strict=True))
    ]
