"""Ranks write equal shares and read what they hold, and no damage goes unseen, whoever holds the damaged bytes."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader, resolve_checkpoint
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.train.persistence import load_checkpoint
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import STATE_KINDS, save_checkpoint, small_recipe
from tests.nanotron_ext.tiny_run import damage

WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 1024}


def recipe_of(root: Path, run: str, zero_stage: int, **parallelism: int) -> Recipe:
    return small_recipe(
        general={"run": run, "runs_path": str(root)},
        parallelism=parallelism,
        optimizer={"zero_stage": zero_stage},
        model_config=WIDE,
    )


def state_of(recipe: Recipe, draws: bool = True) -> TrainState:
    device, p = initialize_distributed().device, recipe.parallelism
    return TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp), device, draws)


def save(recipe: Recipe) -> None:
    """With moments that differ from element to element."""
    state = state_of(recipe)
    generator = torch.Generator().manual_seed(0)
    for kind in STATE_KINDS[1:]:
        for _, _, part in state.optimizer.state(kind):
            part.copy_(torch.rand(part.shape, generator=generator))
    save_checkpoint(state, 2)


def written(recipe: Recipe) -> Path:
    run_ranks(save, recipe.parallelism.world_size, recipe)
    return resolve_checkpoint(recipe.run_folder)


def bytes_read() -> int:
    """By this process so far, as the kernel counts them."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])  # type: ignore[index]


def load_and_count(recipe: Recipe, folder: Path) -> tuple[int, int, list[str]]:
    """Bytes read, bytes held, and files opened to load a checkpoint."""
    state, opened = state_of(recipe, draws=False), []
    state.optimizer.masters_to_model = lambda: None  # type: ignore[method-assign]  # reads from sockets

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)):
            opened.append(Path(arguments[0]).name)

    held = sum(part.nbytes for kind in STATE_KINDS for _, _, part in state.optimizer.state(kind))
    sys.addaudithook(note)
    before = bytes_read()
    load_checkpoint(state, CheckpointReader(folder, compares_sizes=False))
    return bytes_read() - before, held, sorted(opened)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_every_replica_writes_its_share(zero_stage: int, tmp_path: Path) -> None:
    folder = written(recipe_of(tmp_path, "run", zero_stage, dp=4))
    sizes = [path.stat().st_size for path in folder.glob("master-*")]
    assert len(sizes) == 4 and max(sizes) < 1.2 * min(sizes)
    assert CheckpointReader(folder).incomplete_parameters() == []


def test_a_rank_reads_what_it_holds_once(tmp_path: Path) -> None:
    """Checksums included, of files that one rank wrote and reads; and it opens those alone."""
    recipe = recipe_of(tmp_path, "run", 1, dp=2, tp=2)
    folder = written(recipe)
    manifest_bytes = (folder / "checkpoint.json").stat().st_size
    for rank, (read, held, opened) in enumerate(run_ranks(load_and_count, 4, recipe, folder)):
        assert held > 500_000 and held <= read - manifest_bytes < 1.05 * held
        assert len(opened) == 4 and opened[0] == "checkpoint.json"
        assert all(name.endswith(f"-tp{rank % 2}-dp{rank // 2}.safetensors") for name in opened[1:])


@pytest.mark.parametrize("layout", [{"tp": 2}, {"dp": 2}, {"pp": 2}], ids=str)
def test_other_layouts_read_what_they_hold_and_each_file_once_for_its_checksum(
    layout: dict[str, int], tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, "writer", 1, dp=2)
    folder = written(recipe)
    reader = recipe_of(tmp_path, "reader", 0, **layout)
    counted = run_ranks(load_and_count, 2, reader, folder)
    read, held = (sum(rank[column] for rank in counted) for column in (0, 1))
    manifests = 2 * (folder / "checkpoint.json").stat().st_size
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert held <= read - manifests <= 1.05 * (held + files)


def load_or_error(recipe: Recipe, folder: Path) -> str:
    try:
        load_checkpoint(state_of(recipe), CheckpointReader(folder))
    except CheckpointError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("layout", [{"dp": 2}, {"tp": 2}], ids=str)
@pytest.mark.parametrize("place", ["last byte", "header", "in the index"])
def test_damage_is_found_on_all_ranks(layout: dict[str, int], place: str, tmp_path: Path) -> None:
    folder = written(recipe_of(tmp_path, "writer", 1, dp=2))
    victim = folder / "exp_avg-pp0-tp0-dp1.safetensors"
    if place == "last byte":
        damage(victim)
    elif place == "header":
        content = bytearray(victim.read_bytes())
        content[20] ^= 1
        victim.write_bytes(content)
    else:
        manifest = json.loads((folder / "checkpoint.json").read_text())
        del manifest["sha256"]
        manifest["index"]["shards"]["pp0-tp0-dp1"][0][2] -= 1
        (folder / "checkpoint.json").write_text(json.dumps(manifest))
    found = run_ranks(load_or_error, 2, recipe_of(tmp_path, "reader", 1, **layout), folder)
    if place == "in the index":
        assert len(set(found)) == 1 and "a file is missing" in found[0]
    else:
        assert found == [f"{victim} does not match its checksum"] * 2


def test_checkpoints_without_an_index_are_read_from_their_headers(tmp_path: Path) -> None:
    """As older releases left them, here written by the format's own library in an order of its own."""
    folder = written(recipe_of(tmp_path, "writer", 1, dp=2))
    expected = CheckpointReader(folder)
    wanted = {(kind, name): expected.read(kind, name) for kind in STATE_KINDS for name in expected.names()}
    manifest = json.loads((folder / "checkpoint.json").read_text())
    del manifest["index"], manifest["sha256"]
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        save_file(tensors, path, metadata)
        manifest["files"][path.name]["bytes"] = path.stat().st_size
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    reader = CheckpointReader(folder)
    assert reader.names() == expected.names()
    assert all(torch.equal(reader.read(kind, name), value) for (kind, name), value in wanted.items())


def test_a_changed_digit_of_the_index_is_found(tmp_path: Path) -> None:
    """Weights at other places are as many as before: what is found adds up, and no file has changed."""
    folder = written(recipe_of(tmp_path, "writer", 1, dp=4))
    text = (folder / "checkpoint.json").read_text()
    index = json.loads(text)["index"]["shards"]
    cut = next(part for part in index["pp0-tp0-dp1"] if part[1] > 16 and part[0].endswith("weight"))
    entry = json.dumps(cut)
    assert text.count(entry) == 1
    changed = json.dumps([cut[0], cut[1] ^ 1, cut[2]])
    (folder / "checkpoint.json").write_text(text.replace(entry, changed))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json cannot be read: .* does not match its own checksum"):
        CheckpointReader(folder)
