"""Starting and saving at 384 ranks behind 1,725 checkpoints: `make bench-checkpoints-at-scale`.

    python bench/checkpoints_at_scale.py [--checkpoints 1725] [--results results/checkpoints_at_scale.json]

The layout is that of the 3B recipe, 192 replicas x 2 tensor-parallel ranks with ZeRO-1: 1,152 files of 32 MB in each
checkpoint. Their bytes are holes, so that they have their real sizes and take no disk; older checkpoints are hard links
to the newest one's files, with manifests as 0.2.0 wrote them, without an index. The first rank of each of the 48
machines, which lists the folder, and some of the others, in turn open what they go on from and read their state: this
project's own code, on process groups that only pretend, where the other ranks' answers are made up from the layout.
Models and gradients are on torch's meta device; masters and moments are real.

Opens and bytes are counted from outside, by strace, for one rank that lists and one that does not, behind all
checkpoints and behind two. Then one rank's 96 MB of random state are saved and loaded, beside a plain copy of the same
files: what `shutil.copyfile` takes, and a flush where they are saved; the page cache is dropped before every load.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from bench.checkpoints import peak_bytes, reset_peak
from foundation.files import flush
from foundation.recipe import Recipe, load_recipe
from nanotron_ext.checkpoint import CheckpointReader, checkpoint_folder, index_of, list_checkpoints, merged
from nanotron_ext.engine import ParallelContext
from nanotron_ext.train import agreement, persistence
from nanotron_ext.train.startup import find_checkpoint
from nanotron_ext.train.step import TrainState
from tools.figure_blocks import markdown

RECIPE = "recipes/smollm3-3b/pretrain.yaml"
LAYOUT = ["optimizer.zero_stage=1"]
PER_MACHINE = 8
REPEATS = 7


class OtherRanks:
    """What the ranks that are not there answer in `all_gather_object`, in place of it."""

    def __init__(self, rank: int, offer: Any, files: list[str]) -> None:
        """`offer`: of a machine's first rank; `files`: of the newest checkpoint, sorted."""
        self._rank, self._offer = rank, offer
        shards = [tuple(map(int, re.findall(r"tp(\d+)-dp(\d+)", file)[0])) for file in files]
        self._held = [sum(1 << i for i, s in enumerate(shards) if s == (r % 2, r // 2)) for r in range(384)]

    def __call__(self, everywhere: list[Any], mine: Any, group: Any = None) -> None:
        if self._offer is not None:  # the first question of a start
            everywhere[:] = [self._offer if rank % PER_MACHINE == 0 else None for rank in range(len(everywhere))]
            self._offer = None
        elif isinstance(mine, tuple):  # which files it reads as a whole
            everywhere[:] = [(0, held) for held in self._held]
            assert everywhere[self._rank] == mine
        elif isinstance(mine, dict):  # what it has written
            everywhere[:] = [{"files": {}, "index": merged([])} for _ in everywhere]
        else:  # problems: none
            everywhere[:] = [[] if isinstance(mine, list) else None for _ in everywhere]
        if mine is not None:
            everywhere[self._rank] = mine


@contextlib.contextmanager
def as_rank(recipe: Recipe, rank: int, in_memory: bool = True) -> Iterator[TrainState]:
    """A rank's state: masters and moments in memory, the rest without bytes; its process groups only pretend."""
    world_size, local_rank = recipe.parallelism.world_size, rank % PER_MACHINE
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    gather = torch.distributed.all_gather_object
    try:
        p = recipe.parallelism
        state = TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp), torch.device("meta"), draws=False)
        for flat in state.optimizer.groups if in_memory else ():
            flat.master = torch.zeros_like(flat.master, device="cpu")
        for kind in recipe.optimizer.state_kinds:
            list(state.optimizer.state(kind))
        yield state
    finally:
        torch.distributed.all_gather_object = gather
        torch.distributed.destroy_process_group()


def start(recipe: Recipe, state: TrainState, offer: Any, files: list[str]) -> dict[str, float]:
    """All that a start has to do with checkpoints, on one rank."""
    rank = torch.distributed.get_rank()
    torch.distributed.all_gather_object = OtherRanks(rank, offer, files)  # type: ignore[assignment]
    held = sum(part.nbytes for kind in recipe.optimizer.state_kinds for _, _, part in state.optimizer.state(kind))
    reset_peak()
    before, began = peak_bytes(), time.perf_counter()
    found = find_checkpoint(recipe) if agreement.looks_for_checkpoints() else None
    checkpoint = agreement.newest_of_all(found)
    assert checkpoint is not None
    opened = time.perf_counter()
    persistence.load_checkpoint(state, checkpoint)
    return {
        "held_bytes": held,
        "open_seconds": opened - began,
        "start_seconds": time.perf_counter() - began,
        "extra_peak_bytes": peak_bytes() - before,
    }


def write_checkpoints(recipe: Recipe, count: int) -> None:
    """`count` checkpoints of step 2000, 4000, ...; the newest with an index."""
    step = recipe.checkpoints.checkpoint_interval
    newest = checkpoint_folder(recipe.run_folder, count * step)
    newest.mkdir(parents=True)
    files, indices, zeros = {}, [], memoryview(bytes(1 << 26))
    for rank in range(recipe.parallelism.world_size):
        with as_rank(recipe, rank, in_memory=False) as state:
            shard, parts = persistence.shard_name(state.context), persistence.state_parts(state.optimizer, "master")
            indices.append(index_of(shard, parts))
        header: dict[str, Any] = {"__metadata__": {}}
        end = 0
        for name, placement, start_element, tensor in parts:
            header["__metadata__"][name] = json.dumps({**placement.to_json(), "start": start_element})
            header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [end, end + tensor.nbytes]}
            end += tensor.nbytes
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text
        digest = hashlib.sha256(content)
        digest.update(zeros[:end])
        for kind in recipe.optimizer.state_kinds:
            path = newest / f"{kind}-{shard}.safetensors"
            path.write_bytes(content)
            os.truncate(path, len(content) + end)
            files[path.name] = {"bytes": len(content) + end, "sha256": digest.hexdigest()}
    manifest = {
        "format": "smollm3-checkpoint/1", "recipe_hash": recipe.hash(), "recipe": recipe.to_dict(), "data": {},
        "model_config": recipe.architecture.model_dump(mode="json"), "skipped_samples": [], "files": files,
    }  # fmt: skip
    for number in range(1, count + 1):
        folder = checkpoint_folder(recipe.run_folder, number * step)
        own = {**manifest, "step": number * step}
        if folder == newest:
            own["index"] = merged(indices)
        else:
            folder.mkdir()
            for name in files:
                os.link(f"{newest}/{name}", f"{folder}/{name}")
        (folder / "checkpoint.json").write_text(json.dumps(own, indent=1))


def keep_two(source: Path, run: Path) -> None:
    """The newest two checkpoints once more, in a run folder of their own."""
    for folder in list_checkpoints(source)[-2:]:
        (run / "checkpoints" / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            os.link(path, run / "checkpoints" / folder.name / path.name)


def counted(run: Path, rank: int) -> dict[str, float]:
    """What strace sees a rank do below the run folder when it starts."""
    log = run.parent / f"strace-{rank}"
    program = [sys.executable, "-m", "bench.checkpoints_at_scale", "--rank", str(rank), "--root", str(run.parent)]
    watched = "trace=%file,read,pread64,preadv,preadv2,getdents64"
    command = ["strace", "-y", "-s", "0", "-e", watched, "-ff", "-o", str(log), *program, "--run", run.name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = {"opens": 0, "stats": 0, "bytes": 0}
    logs = log.parent.glob(f"{log.name}.*")  # one of each thread
    for line in (line for path in logs for line in path.read_text(errors="replace").splitlines()):
        if f"{run}/checkpoints" not in line:
            continue
        call, result = line.split("(", 1)[0].split()[-1], re.search(r"= (\d+)(<|$)", line)
        if call in ("openat", "open"):
            found["opens"] += result is not None
        elif call in ("read", "pread64", "preadv", "preadv2"):
            found["bytes"] += int(result[1]) if result else 0
        elif call != "getdents64":
            found["stats"] += 1
    return found


def beside_a_copy(recipe: Recipe, root: Path) -> dict[str, float]:
    """Seconds to save and to load one rank's state, and to copy its files; medians of turns."""
    seconds: dict[str, list[float]] = {"save": [], "copy_out": [], "load": [], "copy_in": []}
    with as_rank(recipe, 0) as state:
        for kind in recipe.optimizer.state_kinds:
            for _, _, part in state.optimizer.state(kind):
                part.uniform_()
        torch.distributed.all_gather_object = OtherRanks(0, None, [])  # type: ignore[assignment]
        writer = persistence.CheckpointWriter(state, [], lambda activity, work: None)
        for step in range(1, REPEATS + 1):
            with timed(seconds["save"]):
                writer.start(step, {})
                writer.commit()
            folder = checkpoint_folder(recipe.run_folder, step)
            reader = CheckpointReader(folder)
            with timed(seconds["copy_out"]):
                for name in reader.files:
                    shutil.copyfile(folder / name, root / name)
                    flush(root / name)
            drop_from_cache(folder)
            torch.distributed.all_gather_object = OtherRanks(0, None, reader.files)  # type: ignore[assignment]
            with timed(seconds["load"]):
                persistence.load_checkpoint(state, reader)
            drop_from_cache(folder)
            with timed(seconds["copy_in"]):
                for name in reader.files:
                    shutil.copyfile(folder / name, root / name)
            shutil.rmtree(folder)
    return {what: statistics.median(of_turns) for what, of_turns in seconds.items()}


@contextlib.contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recipe_in(root: Path, run: str) -> Recipe:
    return load_recipe(RECIPE, [*LAYOUT, f"general.runs_path={root}", f"general.run={run}"])


def offer_of(root: Path, run: str) -> tuple[Any, list[str]]:
    """What a machine's first rank finds, and the files of that checkpoint; read before anything is counted."""
    found = json.loads((root / f"{run}.json").read_text())
    return agreement._Offer(**found["offer"]), found["files"]


def simulated_ranks(world_size: int) -> list[int]:
    """The first rank of every machine, which lists the folder, and of every sixth machine another one."""
    return sorted([*range(0, world_size, PER_MACHINE), *range(PER_MACHINE - 1, world_size, 6 * PER_MACHINE)])


def measure(root: Path, checkpoints: int) -> dict[str, Any]:
    result: dict[str, Any] = {"checkpoints": checkpoints}
    for run in ("many", "few"):
        recipe = recipe_in(root, run)
        if run == "many":
            write_checkpoints(recipe, checkpoints)
        else:
            keep_two(recipe_in(root, "many").run_folder, recipe.run_folder)
        newest = find_checkpoint(recipe)
        assert newest is not None
        offer = {"step": newest.step, "folder": str(newest.folder), "digest": newest.digest, "finder": "rank 0"}
        (root / f"{run}.json").write_text(json.dumps({"offer": offer, "files": newest.files}))
        result["manifest_bytes"] = (newest.folder / "checkpoint.json").stat().st_size
        result[run] = {rank: counted(recipe.run_folder, rank) for rank in (0, 1)}
        print(time.strftime("%X"), run, result[run], flush=True)
    ranks = []
    for rank in simulated_ranks(recipe.parallelism.world_size):
        with as_rank(recipe, rank) as state:
            ranks.append(start(recipe, state, *offer_of(root, "many")))
        del state
        gc.collect()  # the gradients' hooks hold the model, and it them
    result["simulated"] = len(ranks)
    result["slowest"] = max(ranks, key=lambda of_rank: of_rank["start_seconds"])
    result["median_start_seconds"] = statistics.median(of_rank["start_seconds"] for of_rank in ranks)
    result["extra_peak_bytes"] = max(of_rank["extra_peak_bytes"] for of_rank in ranks)
    result["beside_a_copy"] = beside_a_copy(recipe_in(root, "real"), root)
    return result


def table(result: dict[str, Any]) -> dict[str, Any]:
    """The result as a file of results/."""
    slowest, copy, held = result["slowest"], result["beside_a_copy"], result["slowest"]["held_bytes"]
    many, few, name = result["many"], result["few"], f"{result['checkpoints']:,}"
    read = [many[rank]["bytes"] - result["manifest_bytes"] for rank in (0, 1)]
    rows = [
        [f"files and folders opened at a start behind {name} checkpoints of 1,152 files (behind 2)",
         f"{many[0]['opens']} ({few[0]['opens']}) by the first rank of a machine, {many[1]['opens']} "
         f"({few[1]['opens']}) by the others"],
        ["files asked about without being opened",
         f"{many[0]['stats']:,} ({few[0]['stats']:,}) by the first rank of a machine, which compares the sizes of the "
         f"newest checkpoint's files, {many[1]['stats']} ({few[1]['stats']}) by the others"],
        ["bytes read for what a rank holds, checksums included",
         f"{max(read) / held:.3f} times the {held / 1e6:.1f} MB that it holds, and a manifest of "
         f"{result['manifest_bytes'] / 1e6:.1f} MB"],
        [f"slowest start of {result['simulated']} of the 384 ranks, in turn, reading and comparing included",
         f"{slowest['start_seconds']:.1f} s, {slowest['open_seconds']:.1f} s of it to find and open the checkpoint; "
         f"the median is {result['median_start_seconds']:.1f} s"],
        ["memory at the peak of a start, beside the state",
         f"{result['extra_peak_bytes'] / 1e6:.0f} MB"],
        [f"a rank's save of {held / 1e6:.1f} MB, flushed and hashed, beside a copy that is flushed",
         f"{copy['save']:.3f} s, {copy['save'] / copy['copy_out']:.2f} times the copy's {copy['copy_out']:.3f} s"],
        ["its load, compared with its checksums, beside a copy of the files; none in the page cache",
         f"{copy['load']:.3f} s, {copy['load'] / copy['copy_in']:.2f} times the copy's {copy['copy_in']:.3f} s"],
    ]  # fmt: skip
    return {
        "measured": time.strftime("%Y-%m"),
        "machine": "AMD EPYC, 2 cores",
        "command": "make bench-checkpoints-at-scale",
        "columns": ["what, in the 3B recipe's layout with ZeRO-1", "result"],
        "align": ["left", "left"],
        "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=1725)
    parser.add_argument("--results", type=Path, help="the file of results/ to write")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.rank is not None:
        recipe = recipe_in(options.root, options.run)
        with as_rank(recipe, options.rank) as state:
            print(start(recipe, state, *offer_of(options.root, options.run)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-checkpoints-") as folder:
        result = measure(Path(folder), options.checkpoints)
    print(json.dumps(result, indent=1))
    document = table(result)
    print(markdown(document["columns"], document["rows"]))
    if options.results:
        options.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
