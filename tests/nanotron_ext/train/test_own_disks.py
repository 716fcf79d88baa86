"""Machines that share no file system: two ranks, each the first of a machine with a run folder of its own."""

import os
import shutil
from pathlib import Path

import torch

from foundation.journal import read_metrics
from foundation.outcome import Outcome
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader, list_checkpoints, resolve_checkpoint
from nanotron_ext.engine import ParallelContext, initialize_distributed, node_name
from nanotron_ext.train.persistence import load_checkpoint
from nanotron_ext.train.run import run
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import STATE_KINDS
from tests.nanotron_ext.tiny_run import damage, prepare, tiny_recipe


def run_on_own_disk(recipes: list[Recipe]) -> Outcome:
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = "0"
    return run(recipes[rank])


def recipes_of(root: Path, stop_step: int, run: str = "run", **checkpoints: str) -> list[Recipe]:
    """Of two machines; in `checkpoints`, paths below the machine's own disk."""
    return [
        tiny_recipe(
            root,
            general__runs_path=root / machine,
            general__run=run,
            checkpoints="{checkpoint_interval: 4, checkpoints_path_is_shared_file_system: false}",
            tokens__stop_step=stop_step,
            **{f"checkpoints__{key}": root / machine / path for key, path in checkpoints.items()},
        )
        for machine in ("first", "second")
    ]


def steps(recipe: Recipe) -> list[str]:
    return [path.name for path in list_checkpoints(recipe.run_folder)]


def test_a_checkpoint_is_put_together_from_the_machines_that_wrote_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    straight = tiny_recipe(tmp_path)
    run_ranks(run, 2, straight)
    expected = CheckpointReader(resolve_checkpoint(straight.run_folder))

    first, second = recipes_of(tmp_path, 4)
    run_ranks(run_on_own_disk, 2, [first, second])
    for number, recipe in enumerate((first, second)):
        assert steps(recipe) == ["4"]
        files = [path.name for path in (recipe.run_folder / "checkpoints" / "4").glob("*.safetensors")]
        assert len(files) == 3 and all(name.endswith(f"dp{number}.safetensors") for name in files)

    both = recipes_of(tmp_path, 8)
    assert run_ranks(run_on_own_disk, 2, both)[0] == Outcome("finished", 8)
    losses = [row["loss"] for row in read_metrics(straight.run_folder)]
    assert [row["loss"] for row in read_metrics(both[0].run_folder)] == losses

    # Step 8 was committed on one machine alone: it is not whole, and both go on from step 4, which both have in full.
    shutil.rmtree(both[1].run_folder / "checkpoints" / "8")
    (both[0].run_folder / "metrics.jsonl").unlink()
    assert run_ranks(run_on_own_disk, 2, both)[0] == Outcome("finished", 8)
    assert [row["loss"] for row in read_metrics(both[0].run_folder)] == losses[4:]
    for source in (both[1].run_folder / "checkpoints" / "8").glob("*.safetensors"):
        shutil.copy(source, both[0].run_folder / "checkpoints" / "8")
    reader = CheckpointReader(both[0].run_folder / "checkpoints" / "8")
    assert reader.damaged_files() == []
    for kind in STATE_KINDS:
        assert all(torch.equal(reader.read(kind, name), expected.read(kind, name)) for name in expected.names())


def test_a_run_that_is_continued_or_gives_its_weights_is_put_together_too(tmp_path: Path) -> None:
    prepare(tmp_path)
    straight = tiny_recipe(tmp_path)
    run_ranks(run, 2, straight)
    losses = [row["loss"] for row in read_metrics(straight.run_folder)]
    run_ranks(run_on_own_disk, 2, recipes_of(tmp_path, 4))

    continued = recipes_of(tmp_path, 8, "continued", resume_checkpoint_path="run")
    assert run_ranks(run_on_own_disk, 2, continued)[0] == Outcome("finished", 8)
    assert [row["loss"] for row in read_metrics(continued[0].run_folder)] == losses[4:]

    shutil.rmtree(tmp_path / "second" / "run")  # brought here for the run above; by now the first machine has all of it
    from_weights = recipes_of(tmp_path, 8, "weights", load_weights_path="run/checkpoints/4")
    assert run_ranks(run_on_own_disk, 2, from_weights)[0] == Outcome("finished", 8)
    rows = read_metrics(from_weights[0].run_folder)
    assert [row["step"] for row in rows] == list(range(1, 9)) and rows[0]["loss"] < losses[0] - 0.1


def found_damage(recipe: Recipe, folders: list[Path]) -> str:
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_RANK"] = "0"
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 2), device)
    try:
        load_checkpoint(state, CheckpointReader(folders[rank]), is_shared=False)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_damage_on_any_machine_is_found_on_all(tmp_path: Path) -> None:
    """A file of each machine is damaged there alone."""
    prepare(tmp_path)
    run_ranks(run, 1, tiny_recipe(tmp_path, parallelism="{dp: 1}", tokens__stop_step=4))
    folders = [tmp_path / machine for machine in ("first", "second")]
    victims = []
    for folder, kind in zip(folders, STATE_KINDS, strict=False):
        shutil.copytree(tmp_path / "runs" / "run" / "checkpoints" / "4", folder)
        victims.append(next(folder.glob(f"{kind}-*")))
        damage(victims[-1])
    expected = "; ".join(f"{victim} does not match its checksum on {node_name()}" for victim in victims)
    recipe = tiny_recipe(tmp_path)
    assert run_ranks(found_damage, 2, recipe, folders) == [expected] * 2
    # With the kinds the other way round, it is the other share of each machine's files.
    for folder, victim, kind in zip(folders, victims, STATE_KINDS[1::-1], strict=True):
        shutil.copy(tmp_path / "runs" / "run" / "checkpoints" / "4" / victim.name, victim)
        damage(next(folder.glob(f"{kind}-*")))
    assert [found.count("checksum") for found in run_ranks(found_damage, 2, recipe, folders)] == [2, 2]
