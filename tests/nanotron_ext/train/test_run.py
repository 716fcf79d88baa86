"""Whole runs: what they write, and that stopping and going on, also in another layout, changes nothing."""

import io
import json
import logging
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.journal import StepLog, last_row, read_metrics, read_samples
from foundation.outcome import Outcome
from foundation.recipe import Recipe, load_recipe
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader, list_checkpoints, resolve_checkpoint
from nanotron_ext.data.loader import MixtureLoader, StepBatch
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.export import export
from nanotron_ext.import_hf import import_hf
from nanotron_ext.retention import prune_checkpoints
from nanotron_ext.rewind import rewind
from nanotron_ext.train import persistence, startup
from nanotron_ext.train.run import run
from nanotron_ext.train.startup import StartupError
from nanotron_ext.train.step import NonFiniteError, TrainState
from nanotron_ext.train.validation import token_bytes
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import STATE_KINDS, random_batch, small_recipe
from tests.nanotron_ext.tiny_run import damage, prepare, tiny_recipe

TOKENS = "{sequence_length: 16, train_steps: 8, micro_batch_size: %d, batch_accumulation_per_replica: %d, %s}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def straight(root: Path) -> Recipe:
    """Eight steps in one go on two replicas."""
    recipe = tiny_recipe(root, general__run="straight")
    run_ranks(run, 2, recipe)
    return recipe


def state_of(recipe: Recipe) -> dict[tuple[str, str], torch.Tensor]:
    reader = CheckpointReader(resolve_checkpoint(recipe.run_folder))
    assert reader.damaged_files() == []
    return {(kind, name): reader.read(kind, name) for kind in STATE_KINDS for name in reader.names()}


def test_a_run_leaves_everything_a_reader_needs(straight: Recipe) -> None:
    rows = read_metrics(straight.run_folder)
    assert [row["step"] for row in rows] == list(range(1, 9))
    needed = {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "data_wait_seconds", "mfu"}
    assert all(needed <= row.keys() for row in rows)
    assert [row["tokens"] for row in rows] == [step * 64 for step in range(1, 9)]
    assert abs(rows[0]["loss"] - math.log(4096)) < 0.2
    assert [row["step"] for row in rows if "validation_bits_per_byte" in row] == [4, 8]
    data = rows[-1]["data"]
    assert data["a"]["tokens"] == 16 * (0.75 * 16 + 0.5 * 16) and data["b"]["tokens"] == 16 * 12
    assert [path.name for path in list_checkpoints(straight.run_folder)] == ["4", "8"]
    assert (straight.run_folder / "latest").read_text() == "8"
    assert load_recipe(straight.run_folder / "recipe.yaml").hash() == straight.hash()


@pytest.mark.parametrize(
    ("layout", "micro_batch_size", "accumulation", "exact"),
    [
        ("{dp: 2}", 2, 1, True),
        ("{dp: 1}", 4, 1, False),
        ("{dp: 1, tp: 2, pp: 2}", 2, 2, False),
        ("{dp: 2, context_parallel_size: 2}", 2, 1, False),
    ],
)
def test_stop_and_go_on_equals_one_run(
    root: Path, straight: Recipe, layout: str, micro_batch_size: int, accumulation: int, exact: bool
) -> None:
    name = f"resumed-on-{layout}".translate(str.maketrans("", "", " {},:"))
    first = tiny_recipe(root, general__run=name, tokens=TOKENS % (2, 1, "val_check_interval: 4, stop_step: 4"))
    run_ranks(run, 2, first)
    tokens = TOKENS % (micro_batch_size, accumulation, "val_check_interval: 4")
    second = tiny_recipe(root, general__run=name, tokens=tokens, parallelism=layout)
    run_ranks(run, second.parallelism.world_size, second)
    rows, expected_rows = read_metrics(second.run_folder), read_metrics(straight.run_folder)
    assert [row["step"] for row in rows] == list(range(1, 9))
    state, expected = state_of(second), state_of(straight)
    assert state.keys() == expected.keys()
    if exact:
        assert [row["loss"] for row in rows] == [row["loss"] for row in expected_rows]
        assert all(torch.equal(state[key], expected[key]) for key in state)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row["loss"] == pytest.approx(expected_row["loss"], rel=1e-5)
        assert row.get("data") == expected_row.get("data")
        bits, expected_bits = (r.get("validation_bits_per_byte", {}).get("held", 0) for r in (row, expected_row))
        assert bits == pytest.approx(expected_bits, rel=1e-5)
    for key in state:
        torch.testing.assert_close(state[key], expected[key], rtol=1e-3, atol=2e-5)


def run_noting_what_is_saved(recipe: Recipe) -> list[str]:
    sync, finish, order = StepLog.sync, persistence.finish_checkpoint, []

    def noting_sync(log: StepLog) -> None:
        order.append(f"{Path(log._file.name).stem} {(last_row(Path(log._file.name)) or {})['step']}")
        sync(log)

    def noting_finish(*arguments: Any) -> None:
        order.append(f"checkpoint {arguments[1].name}")
        finish(*arguments)

    StepLog.sync, persistence.finish_checkpoint = noting_sync, noting_finish  # type: ignore[method-assign]
    run(recipe)
    return order


def test_torn_journals_stop_no_resume_and_reach_the_disk_before_a_checkpoint(root: Path, straight: Recipe) -> None:
    """As a kill and a power cut leave them: a line cut in its middle, and zeros behind the last one."""
    keys = {"general__run": "torn", "logging__log_samples": "true"}
    first = tiny_recipe(root, **keys, tokens=TOKENS % (2, 1, "val_check_interval: 4, stop_step: 4"))
    order, _ = run_ranks(run_noting_what_is_saved, 2, first)
    assert order == ["metrics 4", "samples 4", "checkpoint 4"]
    for name, torn in (("metrics.jsonl", b'{"step": 5, "loss": 8.1'), ("samples.jsonl", bytes(4000) + b"\n")):
        with (first.run_folder / name).open("ab") as file:
            file.write(torn)
    recipe = tiny_recipe(root, **keys)
    run_ranks(run, 2, recipe)
    rows, expected = read_metrics(recipe.run_folder), read_metrics(straight.run_folder)
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in expected]
    assert list(read_samples(recipe.run_folder)) == list(range(1, 9))


def test_a_segment_continues_its_predecessor_and_nothing_else(root: Path, straight: Recipe) -> None:
    first = tiny_recipe(root, general__run="part1", tokens=TOKENS % (2, 1, "stop_step: 4"))
    run_ranks(run, 2, first)
    path = str(first.run_folder)
    second = tiny_recipe(root, general__run="part2", checkpoints__resume_checkpoint_path=path)
    run_ranks(run, 2, second)
    assert [row["step"] for row in read_metrics(second.run_folder)] == [5, 6, 7, 8]
    assert torch.equal(
        state_of(second)["master", "head.final_layernorm.weight"],
        state_of(straight)["master", "head.final_layernorm.weight"],
    )
    nowhere = tiny_recipe(root, general__run="part3", checkpoints__resume_checkpoint_path="nowhere")
    with pytest.raises(RuntimeError, match=r"There is no complete checkpoint in nowhere"):
        run_ranks(run, 2, nowhere)
    other = tiny_recipe(root, general__run="part4", checkpoints__resume_checkpoint_path=path, general__seed=5)
    with pytest.raises(RuntimeError, match=r"another recipe, and the difference changes the result"):
        run_ranks(run, 2, other)
    assert not nowhere.run_folder.exists() and not other.run_folder.exists()


def test_damaged_checkpoints_are_named(root: Path, straight: Recipe, tmp_path: Path) -> None:
    shutil.copytree(straight.run_folder, tmp_path / "copy")
    folder = resolve_checkpoint(tmp_path / "copy")
    victim = next(folder.glob("exp_avg-*"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert CheckpointReader(folder).damaged_files() == [f"{victim} does not match its checksum"]
    victim.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=rf"{victim.name} is missing or was cut short"):
        CheckpointReader(folder)


def poisoned_step(recipe: Recipe) -> tuple[str, bool]:
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 1), device)
    state.train_step(random_batch(recipe, 1))
    before = [group.params.clone() for group in state.optimizer.groups]
    norm = state.model.head.pp_block.final_layernorm.weight
    with torch.no_grad():
        good = norm.clone()
        norm[0] = float("nan")
    try:
        state.train_step(random_batch(recipe, 2))
    except NonFiniteError as error:
        with torch.no_grad():
            norm.copy_(good)
        unchanged = all(
            torch.equal(old, group.params) for old, group in zip(before, state.optimizer.groups, strict=True)
        )
        state.train_step(random_batch(recipe, 2))  # and the state is usable again
        return str(error), unchanged
    return "no error", False


def test_a_loss_that_is_not_a_number_stops_before_the_update() -> None:
    [(message, unchanged)] = run_ranks(poisoned_step, 1, small_recipe(tokens={"micro_batch_size": 4}))
    assert "Step 2 gave loss nan" in message and "samples are 4 to 7" in message and "last checkpoint" in message
    assert unchanged


def test_token_bytes_of_a_real_tokenizer(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "Ein Satz mit Umlauten: äöü, ein Gedanke: 思い出, and some English words words words."
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<thïnk>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(text + "<thïnk><|end|>").ids
    assert int(token_bytes(tmp_path)[torch.tensor(ids)].sum()) == len((text + "<thïnk>").encode())


def run_and_be_stopped(recipe: Recipe) -> Outcome:
    """A run whose second rank gets SIGUSR1 while it reads the data of step 5."""
    read = MixtureLoader.batch

    def read_and_signal(loader: MixtureLoader, step: int) -> StepBatch:
        if step == 5 and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return read(loader, step)

    MixtureLoader.batch = read_and_signal  # type: ignore[method-assign]
    return run(recipe)


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(root: Path, straight: Recipe) -> None:
    recipe = tiny_recipe(root, general__run="signalled")
    first, second = run_ranks(run_and_be_stopped, 2, recipe)
    assert first == second and first.outcome == "stopped" and 1 <= first.step <= 5
    assert json.loads((recipe.run_folder / "outcome.json").read_text()) == {
        "outcome": "stopped",
        "step": first.step,
        "message": "",
    }
    assert list_checkpoints(recipe.run_folder)[-1].name == str(first.step)
    assert run_ranks(run, 2, recipe)[0] == Outcome("finished", 8)
    assert [row["loss"] for row in read_metrics(recipe.run_folder)] == [
        row["loss"] for row in read_metrics(straight.run_folder)
    ]
    state, expected = state_of(recipe), state_of(straight)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_new_run_from_imported_weights(root: Path, straight: Recipe, tmp_path: Path) -> None:
    """Export, import, and start: the first loss is the trained model's, and Adam state is asked for by name."""
    folder = export(straight.run_folder, tmp_path / "hf")
    import_hf(folder, tmp_path / "imported")
    recipe = tiny_recipe(root, general__run="new", checkpoints__load_weights_path=tmp_path / "imported")
    run_ranks(run, 2, recipe)
    rows = read_metrics(recipe.run_folder)
    assert rows[0]["step"] == 1
    assert rows[0]["loss"] < read_metrics(straight.run_folder)[0]["loss"] - 0.1
    with pytest.raises(CheckpointError, match="holds no exp_avg"):
        CheckpointReader(resolve_checkpoint(tmp_path / "imported")).read("exp_avg", "head.final_layernorm.weight")


def test_changed_data_is_noticed_on_resume(tmp_path: Path) -> None:
    prepare(tmp_path)
    first = tiny_recipe(tmp_path, tokens=TOKENS % (2, 1, "stop_step: 4"))
    run_ranks(run, 2, first)
    shard = tmp_path / "data" / "b" / "000.ds"
    manifest = shard.with_name("manifest.json")
    old_sha = json.loads(manifest.read_text())["files"][0]["sha256"]
    manifest.write_text(manifest.read_text().replace(old_sha, "1" * 64))
    with pytest.raises(RuntimeError, match=r"(?s)is not what .* was trained on.*b\.files: [0-9a-f]+ then"):
        run_ranks(run, 2, tiny_recipe(tmp_path))


@pytest.mark.parametrize("name", ["flipped", "cut", "lost"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(root: Path, straight: Recipe, name: str) -> None:
    """A flipped bit is found by checksum, a cut or missing file by its size; the run ends the same from step 4."""
    damage, complaint = {
        "flipped": (flip_a_bit, "does not match its checksum"),
        "cut": (cut_short, "is missing or was cut short"),
        "lost": (Path.unlink, "is missing or was cut short"),
    }[name]
    recipe = tiny_recipe(root, general__run=name)
    shutil.copytree(straight.run_folder, recipe.run_folder)
    victim = next((recipe.run_folder / "checkpoints" / "8").glob("master-*"))
    damage(victim)
    outcome, log = run_ranks(run_and_listen, 2, recipe)[0]
    assert outcome == Outcome("finished", 8)
    assert f"{victim} {complaint}" in log and f"Continuing {recipe.run_folder}/checkpoints/4 after step 4" in log
    rows = read_metrics(recipe.run_folder)
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(straight.run_folder)]
    assert all(torch.equal(value, state_of(straight)[key]) for key, value in state_of(recipe).items())


def test_a_damaged_checkpoint_is_not_exported(root: Path, straight: Recipe, tmp_path: Path) -> None:
    """One flipped bit of a weight makes another model, finite and whole."""
    shutil.copytree(straight.run_folder, tmp_path / "run")
    victim = next((tmp_path / "run" / "checkpoints" / "8").glob("master-*"))
    damage(victim)
    with pytest.raises(CheckpointError, match=rf"{victim} does not match its checksum\. Export another checkpoint"):
        export(tmp_path / "run", tmp_path / "hf")
    assert not (tmp_path / "hf").exists() and not (tmp_path / "hf.tmp").exists()


def run_and_listen(recipe: Recipe) -> tuple[Outcome, str]:
    """Also what the run says."""
    heard = io.StringIO()
    logging.basicConfig(level="INFO", stream=heard, force=True)
    return run(recipe), heard.getvalue()


def flip_a_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_second_job_is_kept_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(root, general__run="taken", parallelism="{dp: 1}", tokens=TOKENS % (4, 1, ""))
    first = startup.take_run_folder(recipe)
    monkeypatch.setattr(startup, "LOCK_WAIT_SECONDS", 0.3)
    with pytest.raises(StartupError, match=rf"Process {os.getpid()} on \S+ is training in .*taken already"):
        startup.check_not_running(recipe)
    assert list_checkpoints(recipe.run_folder) == []
    release = threading.Timer(2, first.close)  # as when the kernel has cleared away a killed process
    release.start()
    assert run_ranks(run, 1, recipe) == [Outcome("finished", 8)]
    release.join()


def test_resume_modes_and_retention(root: Path, straight: Recipe) -> None:
    with pytest.raises(RuntimeError, match=r"resume is required, but .* has no checkpoint"):
        run_ranks(run, 2, tiny_recipe(root, general__run="absent", checkpoints__resume="required"))
    with pytest.raises(RuntimeError, match=r"resume is never, but .* has checkpoints up to step 8"):
        run_ranks(run, 2, tiny_recipe(root, general__run="straight", checkpoints__resume="never"))
    recipe = tiny_recipe(
        root, general__run="kept", checkpoints="{checkpoint_interval: 1, keep_last: 2, keep_every_steps: 3}"
    )
    run_ranks(run, 2, recipe)
    assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["3", "6", "7", "8"]
    assert sorted(path.name for path in (recipe.run_folder / "checkpoints").iterdir()) == ["3", "6", "7", "8"]


def test_damaged_checkpoints_do_not_push_out_what_was_written_since(root: Path) -> None:
    """The last two are damaged: the run goes back behind them, and is stopped before it has come there again."""
    for stop_step in (8, 5):
        recipe = tiny_recipe(
            root,
            general__run="pushed",
            parallelism="{dp: 1}",
            tokens=TOKENS % (4, 1, f"stop_step: {stop_step}"),
            checkpoints="{checkpoint_interval: 2, keep_last: 2, keep_every_steps: 4}",
        )
        folder = recipe.run_folder / "checkpoints"
        run_ranks(run, 1, recipe)
        if stop_step == 8:
            assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["4", "6", "8"]
            for step in "68":
                damage(next((folder / step).glob("master-*")))
    assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["4", "5", "6", "8"]
    assert prune_checkpoints(recipe.run_folder, 1, None) == [folder / "4"]
    assert CheckpointReader(folder / "5").damaged_files() == []


def test_checkpoints_that_an_earlier_recipe_kept_are_not_pruned_unasked(root: Path) -> None:
    """Neither by the start whose recipe first has a keep_last, nor by those that follow; and it says what stays."""
    for stop_step, keep_last, expected in (
        (3, None, ["1", "2", "3"]),
        (5, 1, ["1", "2", "3", "5"]),
        (7, 1, ["1", "2", "3", "7"]),
        (8, None, ["1", "2", "3", "7", "8"]),
    ):
        keys = {"checkpoint_interval": 1} | ({"keep_last": keep_last} if keep_last else {})
        tokens = TOKENS % (4, 1, f"stop_step: {stop_step}")
        recipe = tiny_recipe(
            root, general__run="spared", parallelism="{dp: 1}", tokens=tokens, checkpoints=json.dumps(keys)
        )
        [(_, log)] = run_ranks(run_and_listen, 1, recipe)
        assert [path.name for path in list_checkpoints(recipe.run_folder)] == expected
        advice = f"smollm3 checkpoints prune {recipe.run_folder} --keep-last 1"
        assert (advice in log) == (stop_step == 5), log
    assert prune_checkpoints(recipe.run_folder, 1, None) == [recipe.run_folder / "checkpoints" / s for s in "1237"]


def test_a_rewind_ends_the_sparing_of_checkpoints_behind_its_step(root: Path) -> None:
    """Those that an earlier recipe kept went to rewound/; new ones at the same steps are the present recipe's."""
    for stop_step, keep_last, expected in ((3, "null", "123"), (4, "1", "1234"), (6, "1", "126")):
        recipe = tiny_recipe(
            root, general__run="rewound", parallelism="{dp: 1}", tokens=TOKENS % (4, 1, f"stop_step: {stop_step}"),
            checkpoints=f"{{checkpoint_interval: 1, keep_last: {keep_last}}}",
        )  # fmt: skip
        run_ranks(run, 1, recipe)
        assert "".join(path.name for path in list_checkpoints(recipe.run_folder)) == expected
        if stop_step == 4:
            rewind(recipe.run_folder, 2, None)
