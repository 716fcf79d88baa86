"""A checkpoint written by any layout holds the same whole tensors, and any layout reads them back."""

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from foundation.progress import Work
from foundation.recipe import Recipe
from nanotron_ext import checkpoint
from nanotron_ext.checkpoint import CheckpointReader, resolve_checkpoint
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.train import buckets
from nanotron_ext.train.persistence import load_checkpoint
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import STATE_KINDS, random_batch, save_checkpoint, small_recipe

LAYOUTS = [
    {"tp": tp, "pp": pp, "dp": dp, "context_parallel_size": 1, "zero_stage": zero}
    for tp, pp, dp, zero in itertools.product((1, 2), (1, 2), (1, 2), (0, 1))
    if not (dp == 1 and zero == 1)
]
LAYOUTS += [
    {"tp": 1, "pp": 1, "dp": 1, "context_parallel_size": 2, "zero_stage": 1},
    {"tp": 2, "pp": 1, "dp": 1, "context_parallel_size": 2, "zero_stage": 0},
]


def recipe_for(layout: dict[str, int], run: str, runs_path: Path) -> Recipe:
    parallelism = {name: size for name, size in layout.items() if name != "zero_stage"}
    return small_recipe(
        general={"run": run, "runs_path": str(runs_path)},
        parallelism=parallelism,
        tokens={"micro_batch_size": 4 // layout["dp"] // 2, "batch_accumulation_per_replica": 2},
        optimizer={"zero_stage": layout["zero_stage"]},
        # Odd sizes: flat shards end in the middle of parameters, norms among them.
        model_config={"hidden_size": 24, "intermediate_size": 38, "vocab_size": 98},
    )


def build(recipe: Recipe) -> tuple[TrainState, int]:
    device = initialize_distributed().device
    p = recipe.parallelism
    context = ParallelContext(p.tp, p.pp, p.dp, p.context_parallel_size)
    return TrainState(recipe, context, device), context.replica


def train_and_save(recipe: Recipe) -> list[float]:
    """Two steps, a checkpoint, and the losses of the next two; in other buckets than the reader's."""
    buckets.BUCKET_BYTES = 1 << 14
    state, replica = build(recipe)
    for step in (1, 2):
        state.train_step(random_batch(recipe, step, replica))
    save_checkpoint(state, 2)
    return [state.train_step(random_batch(recipe, step, replica)).loss for step in (3, 4)]


def load_and_save_and_train(recipe: Recipe, source: Path) -> list[float]:
    state, replica = build(recipe)
    load_checkpoint(state, CheckpointReader(resolve_checkpoint(source)))
    save_checkpoint(state, 2)
    return [state.train_step(random_batch(recipe, step, replica)).loss for step in (3, 4)]


def whole_state(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    reader = CheckpointReader(resolve_checkpoint(folder))
    return {(kind, name): reader.read(kind, name) for kind in STATE_KINDS for name in reader.names()}


@pytest.mark.parametrize("position", range(len(LAYOUTS)), ids=lambda i: "-".join(map(str, LAYOUTS[i].values())))
def test_written_by_one_layout_read_by_another(position: int, tmp_path: Path) -> None:
    """Each layout writes for the one that follows it in a fixed shuffle: every layout writes once and reads once."""
    writer = recipe_for(LAYOUTS[position], "writer", tmp_path)
    reader = recipe_for(LAYOUTS[(position * 5 + 7) % len(LAYOUTS)], "reader", tmp_path)
    losses = run_ranks(train_and_save, writer.parallelism.world_size, writer)[0]
    again = run_ranks(load_and_save_and_train, reader.parallelism.world_size, reader, writer.run_folder)[0]
    written, rewritten = whole_state(writer.run_folder), whole_state(reader.run_folder)
    assert written.keys() == rewritten.keys() and len(written) > 3 * 20
    assert all(torch.equal(written[key], rewritten[key]) for key in written)
    assert again == pytest.approx(losses, rel=1e-5)


def test_files_are_what_safetensors_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in blocks and flushed on the way; the format's own library and hashlib read the same."""
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 64)
    monkeypatch.setattr(checkpoint, "FLUSH_BYTES", 1000)
    tensors = {"even": torch.randn(30, 16), "odd": torch.randn(7, 5).t(), "empty": torch.empty(0), "one": torch.ones(1)}
    work = Work(total_bytes=sum(tensor.nbytes for tensor in tensors.values()))
    path = tmp_path / "file.safetensors"
    described = checkpoint.save_tensors(path, tensors, {"größe": "eins"}, work.advance)
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"größe": "eins"}
    content = path.read_bytes()
    assert described == {path.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    assert work.done_bytes == len(content) and work.advances > work.total_bytes / 64
