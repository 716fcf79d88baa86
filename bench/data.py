"""The mixture loader beside public loaders: start-up and memory for a full-size run, and samples per second.

Start-up uses sparse files of the true sizes for the recipe's whole schedule, one epoch of every source. Throughput uses
three small sources in the page cache. Every loader delivers the same thing, in one process: the mixture in random order
as micro-batches of int32 tokens with the lengths of the documents and the labels that open another one; then the same
once more turned into what the model takes, int64 inputs and labels and a mask. A bare copy of random windows out of
mapped files, without any of the bookkeeping, shows what the machine's memory allows.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.recipe import Recipe, load_recipe
from nanotron_ext.data.loader import MicroBatch, MixtureLoader

TOKENS_PER_SHARD = 4_000_000_000
FAR_SAMPLE = 2_700_000_000
SMALL_SOURCES = {"web": (60_000_000, 0.6), "code": (40_000_000, 0.3), "math": (20_000_000, 0.1)}
SMALL_RECIPE = "recipes/tiny/pretrain.yaml"
VOCABULARY, EOS = 128_256, 1
MICRO_BATCH_SIZE = 3
SAMPLES_PER_STEP = {4096: 24, 65_536: 3}
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/smollm3-3b/pretrain.yaml", help="recipe of the start-up part")
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time per loader and round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        benchmark_startup(arguments.recipe, Path(folder) / "sparse")
        benchmark_throughput(Path(folder), arguments.seconds)


# ---- start-up, memory, resume


def benchmark_startup(recipe_path: str, folder: Path) -> None:
    recipe = load_recipe(recipe_path, [f"data.path={folder}", "data.validation=[]", "tokens.val_check_interval=null"])
    shards = write_sparse_sources(recipe, folder)
    with multiprocessing.get_context("spawn").Pool(1) as fresh_process:
        seconds, cpu_seconds, megabytes, far_seconds, far_step = fresh_process.apply(measure_startup, (recipe,))
    sources = {source for stage in recipe.data_stages for source in stage.mixture}
    tokens = recipe.tokens.train_steps * recipe.tokens_per_step
    counts = f"{len(recipe.data_stages)} stages, {len(sources)} sources, {shards} shards"
    print(f"{recipe_path}: {tokens:.3g} tokens, {counts}")
    print(f"  start-up, all files checked    {seconds:8.3f} s   (goal: under 0.5; {cpu_seconds:.3f} s of CPU time)")
    print(f"  peak memory beyond the imports {megabytes:8.1f} MB  (goal: under 100)")
    print(f"  fresh start to batch {far_step:<9} {far_seconds:8.3f} s   (goal: under 0.5)")


def measure_startup(recipe: Recipe) -> tuple[float, float, float, float, int]:
    """Seconds and CPU seconds to start, peak MB, seconds for a second start and the step of `FAR_SAMPLE`, that step."""
    step = min(FAR_SAMPLE // recipe.global_batch_size, recipe.tokens.train_steps)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_megabytes("VmRSS")
    started, cpu_started = perf_counter(), process_time()
    loader = MixtureLoader(recipe, 0, recipe.parallelism.dp)
    seconds, cpu_seconds = perf_counter() - started, process_time() - cpu_started
    loader.batch(1)
    megabytes = resident_megabytes("VmHWM") - before
    del loader
    started = perf_counter()
    MixtureLoader(recipe, 0, recipe.parallelism.dp).batch(step)
    return seconds, cpu_seconds, megabytes, perf_counter() - started, step


def resident_megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def write_sparse_sources(recipe: Recipe, folder: Path) -> int:
    """One epoch of every source for the whole run, as files without content; returns the number of shards."""
    needed: dict[str, int] = {}
    starts = [stage.start_training_step for stage in recipe.data_stages] + [recipe.tokens.train_steps + 1]
    for number, stage in enumerate(recipe.data_stages):
        stage_tokens = (starts[number + 1] - starts[number]) * recipe.tokens_per_step
        for source, share in stage.shares().items():
            needed[source] = needed.get(source, 0) + int(share * stage_tokens)
    for source, tokens in needed.items():
        (folder / source).mkdir(parents=True)
        full, rest = divmod(max(tokens, 10 * recipe.chunk_tokens), TOKENS_PER_SHARD)
        files = []
        sizes = [TOKENS_PER_SHARD] * full + [rest] * (rest > recipe.chunk_tokens)
        for number, size in enumerate(sizes):
            path = folder / source / f"{number:05d}.ds"
            documents = size // 900
            write_sparse(path, size, np.uint32(recipe.architecture.eos_token_id))
            write_sparse(Path(f"{path}.index"), documents, np.uint64(size))
            files.append((path.name, documents, size))
        write_manifest(folder / source, files, recipe.architecture.vocab_size, recipe.architecture.eos_token_id)
    return sum(1 for _ in folder.rglob("*.ds"))


def write_sparse(path: Path, entries: int, last: np.generic) -> None:
    with path.open("wb") as file:
        file.seek((entries - 1) * last.nbytes)
        file.write(last.tobytes())


def write_manifest(folder: Path, files: list[tuple[str, int, int]], vocab_size: int, eos_token_id: int) -> None:
    digest = "0" * 64
    manifest = {
        "format": "token-shards/1",
        "source": folder.name,
        "revision": "benchmark",
        "pipeline_sha256": digest,
        "tokenizer_sha256": digest,
        "vocab_size": vocab_size,
        "token_bytes": 4,
        "eos_token_id": eos_token_id,
        "documents": sum(documents for _, documents, _ in files),
        "tokens": sum(tokens for _, _, tokens in files),
        "files": [
            {"name": name, "documents": documents, "tokens": tokens, "sha256": digest, "index_sha256": digest}
            for name, documents, tokens in files
        ],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


# ---- throughput

Corpus = dict[str, NDArray[np.uint32]]
OURS, BARE_COPY, LITDATA = "this loader", "bare copy of windows (numpy)", "litdata CombinedStreamingDataset"


def benchmark_throughput(folder: Path, seconds: float) -> None:
    corpus = write_small_sources(folder / "small")
    # Once a block of this size was freed, as in any training process, glibc reuses memory for batches (mallopt(3),
    # M_MMAP_THRESHOLD); before, mapping and clearing fresh pages for each batch would dwarf the loaders' own work.
    np.empty(2**25 - 2**16, np.uint8)
    for sequence_length in SAMPLES_PER_STEP:
        loaders: dict[str, Iterator[MicroBatch]] = {
            OURS: ours(folder / "small", sequence_length),
            BARE_COPY: bare_copy(folder / "small", sequence_length),
            "datatrove DatatroveFolderDataset": datatrove(folder / "small", sequence_length),
            "datasets, memory-mapped": hf_datasets(folder, corpus, sequence_length),
        }
        if importlib.util.find_spec("litdata"):
            loaders[LITDATA] = litdata(folder, corpus, sequence_length)
        for for_the_model in (False, True):
            rates: dict[str, list[float]] = {name: [] for name in loaders}
            for round_number in range(ROUNDS + 1):
                for name, loader in loaders.items():
                    rate = samples_per_second(loader, seconds, for_the_model)
                    if round_number:  # the first round warms the page cache
                        rates[name].append(rate)
            report(sequence_length, for_the_model, rates)
    if LITDATA not in loaders:
        print("litdata is not installed (pip install litdata==0.2.76) and was left out")


def samples_per_second(loader: Iterator[MicroBatch], seconds: float, for_the_model: bool) -> float:
    """By CPU time, all threads counted: nothing here waits for a disk, and other programs do not disturb it."""
    samples, started = 0, process_time()
    while process_time() - started < seconds:
        micro_batch = next(loader)
        samples += len(micro_batch.samples)
        if for_the_model:
            _ = micro_batch.input_ids, micro_batch.label_ids, micro_batch.label_mask
    return samples / (process_time() - started)


def report(sequence_length: int, for_the_model: bool, rates: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    product = "int64 inputs, labels, mask" if for_the_model else "int32 tokens, document boundaries"
    print(f"\nsequence length {sequence_length}: {product} (page cache, {ROUNDS} interleaved rounds)")
    for name, rate in medians.items():
        spread = f"{min(rates[name]) * sequence_length / 1e6:.0f} to {max(rates[name]) * sequence_length / 1e6:.0f}"
        ratio = "" if name == OURS else f"   {OURS}: {medians[OURS] / rate:.2f} x"
        tokens = rate * sequence_length / 1e6
        print(f"  {name:34} {rate:8.0f} samples, {tokens:5.0f} M tokens per CPU second ({spread}){ratio}")


def write_small_sources(folder: Path) -> Corpus:
    """Write the sources in this project's format and return their tokens; documents are log-normal, 900 on average."""
    generator = np.random.default_rng(0)
    corpus = {}
    for source, (tokens, _) in SMALL_SOURCES.items():
        (folder / source).mkdir(parents=True)
        lengths = generator.lognormal(6.3, 1.0, tokens // 800).astype(np.int64) + 1
        ends = np.cumsum(lengths)
        ends = np.append(ends[ends < tokens], tokens)
        content = generator.integers(2, VOCABULARY, tokens).astype("<u4")
        content[ends - 1] = EOS
        content.tofile(folder / source / "0.ds")
        ends.astype("<u8").tofile(folder / source / "0.ds.index")
        write_manifest(folder / source, [("0.ds", len(ends), tokens)], VOCABULARY, EOS)
        corpus[source] = content
    return corpus


def small_recipe(folder: Path, sequence_length: int) -> Recipe:
    weights = {source: weight for source, (_, weight) in SMALL_SOURCES.items()}
    return load_recipe(
        SMALL_RECIPE,
        [
            f"data={{path: {folder}, seed: 1, chunk_tokens: {sequence_length}}}",
            f"data_stages=[{{name: all, start_training_step: 1, mixture: {json.dumps(weights)}}}]",
            "parallelism={}",
            "tokenizer.tokenizer_name_or_path=benchmark/tokenizer",
            f"model.model_config.vocab_size={VOCABULARY}",
            f"model.model_config.eos_token_id={EOS}",
            f"model.model_config.max_position_embeddings={sequence_length}",
            f"tokens={{sequence_length: {sequence_length}, train_steps: 1000000, micro_batch_size: {MICRO_BATCH_SIZE}, "
            f"batch_accumulation_per_replica: {SAMPLES_PER_STEP[sequence_length] // MICRO_BATCH_SIZE}}}",
            "optimizer.learning_rate_scheduler={learning_rate: 1e-3, lr_decay_style: constant}",
        ],
    )


def ours(folder: Path, sequence_length: int) -> Iterator[MicroBatch]:
    loader = MixtureLoader(small_recipe(folder, sequence_length), 0, 1)
    for step in range(1, 1_000_000):
        yield from loader.batch(step).micro_batches


def bare_copy(folder: Path, sequence_length: int) -> Iterator[MicroBatch]:
    """Knows nothing of documents: what copying alone costs."""
    tokens = {source: np.memmap(folder / source / "0.ds", np.int32, "r") for source in SMALL_SOURCES}
    draws = random_windows({source: len(array) // (sequence_length + 1) for source, array in tokens.items()})
    lengths, none = [sequence_length] * MICRO_BATCH_SIZE, torch.empty(0, dtype=torch.int64)
    while True:
        samples = np.empty((MICRO_BATCH_SIZE, sequence_length + 1), np.int32)
        for row in range(MICRO_BATCH_SIZE):
            source, window = next(draws)
            first = window * sequence_length
            samples[row] = tokens[source][first : first + sequence_length + 1]
        yield MicroBatch(torch.from_numpy(samples), none, lengths)


def finish(windows: list[NDArray[Any]], starts: list[NDArray[np.int64]]) -> MicroBatch:
    """What a peer's windows of `sequence_length + 1` tokens lack; `starts` are the places where documents begin."""
    length = len(windows[0]) - 1
    samples = np.empty((len(windows), length + 1), np.int32)
    lengths: list[int] = []
    untrained = []
    for row, (window, row_starts) in enumerate(zip(windows, starts, strict=True)):
        samples[row] = window
        inner = row_starts[row_starts > 0]
        untrained.append(inner - 1 + row * length)
        lengths += np.diff(inner[inner < length], prepend=0, append=length).tolist()
    return MicroBatch(torch.from_numpy(samples), torch.from_numpy(np.concatenate(untrained)), lengths)


def after_eos(window: NDArray[Any]) -> NDArray[np.int64]:
    return np.flatnonzero(window[:-1] == EOS) + 1


def random_windows(windows: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Source by weight and a random window of it, drawn in blocks so that drawing costs next to nothing."""
    generator = np.random.default_rng(1)
    names = list(SMALL_SOURCES)
    weights = [weight for _, weight in SMALL_SOURCES.values()]
    counts = np.array([windows[name] for name in names])
    while True:
        sources = generator.choice(len(names), 10_000, p=weights)
        for source, window in zip(sources.tolist(), generator.integers(counts[sources]).tolist(), strict=True):
            yield names[source], window


def datatrove(folder: Path, sequence_length: int) -> Iterator[MicroBatch]:
    """Boundaries by EOS id: its reader of index files only goes forward."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    datasets = {
        source: DatatroveFolderDataset(
            str(folder / source), sequence_length, token_size=4, return_positions=True, positions_from_eos_token_id=EOS
        )
        for source in SMALL_SOURCES
    }
    draws = random_windows({source: len(dataset) for source, dataset in datasets.items()})
    while True:
        items = [datasets[source][window] for source, window in (next(draws) for _ in range(MICRO_BATCH_SIZE))]
        starts = [np.flatnonzero(item["positions"].numpy() == 0) for item in items]
        yield finish([item["input_ids"].numpy() for item in items], starts)


def hf_datasets(folder: Path, corpus: Corpus, sequence_length: int) -> Iterator[MicroBatch]:
    """Windows as fixed-length rows of memory-mapped Arrow tables, read as numpy arrays."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint32"), length=sequence_length + 1)})
    tables = {}
    for source, tokens in corpus.items():
        rows = tokens[: len(tokens) // (sequence_length + 1) * (sequence_length + 1)].reshape(-1, sequence_length + 1)
        path = str(folder / f"datasets-{source}-{sequence_length}")
        datasets.Dataset.from_dict({"tokens": list(rows)}, features=features).save_to_disk(path)
        tables[source] = datasets.Dataset.load_from_disk(path).with_format("numpy")
    draws = random_windows({source: len(table) for source, table in tables.items()})
    while True:
        windows = [tables[source][row]["tokens"] for source, row in (next(draws) for _ in range(MICRO_BATCH_SIZE))]
        yield finish(windows, [after_eos(window) for window in windows])


def litdata(folder: Path, corpus: Corpus, sequence_length: int) -> Iterator[MicroBatch]:
    """Chunk-wise shuffled streams of memory-mapped tokens, mixed by weight."""
    from litdata import CombinedStreamingDataset, StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    block_size = sequence_length + 1
    datasets = []
    for source, tokens in corpus.items():
        path = str(folder / f"litdata-{source}-{sequence_length}")
        cache = Cache(
            path, chunk_size=block_size * (4_194_304 // sequence_length), item_loader=TokensLoader(block_size)
        )
        for number, part in enumerate(np.array_split(tokens.astype(np.int32), 64)):
            cache[number] = torch.from_numpy(part)
        cache.done()
        cache.merge()
        datasets.append(StreamingDataset(path, item_loader=TokensLoader(block_size), shuffle=True, seed=1))
    weights = [weight for _, weight in SMALL_SOURCES.values()]
    while True:
        mixed = iter(CombinedStreamingDataset(datasets, weights=weights, iterate_over_all=False, seed=1))
        while len(windows := [window.numpy() for window, _ in zip(mixed, range(MICRO_BATCH_SIZE), strict=False)]) == (
            MICRO_BATCH_SIZE
        ):
            yield finish(windows, [after_eos(window) for window in windows])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
