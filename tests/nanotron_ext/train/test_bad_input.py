"""What a user can get wrong: one screen that says what to do, exit code 2, nothing written."""

import os
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from foundation.recipe import load_recipe
from nanotron_ext.train.startup import StartupError, check_world_size, save_recipe
from smollm3.command_line import main
from tests.nanotron_ext.tiny_run import overrides, prepare, tiny_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    prepare(folder)
    return folder


def start(monkeypatch: pytest.MonkeyPatch, values: list[str]) -> int:
    """`smollm3 train` up to the moment when torchrun would take over (exit code 0)."""
    monkeypatch.setattr(os, "execve", lambda program, command, environment: None)
    return main(["train", "recipes/tiny/pretrain.yaml", *values])


TABLE = {
    "unknown key": ({"tokens__micro_batchsize": 4}, ["micro_batchsize", "Did you mean 'micro_batch_size'"]),
    "wrong type": ({"optimizer__weight_decay": "much"}, ["optimizer.weight_decay", "'much'", "command line"]),
    "heads not divisible by tp": ({"parallelism": "{tp: 3}"}, ["tp 3 does not divide num_attention_heads 8"]),
    "fewer layers than stages": ({"parallelism": "{pp: 3}"}, ["2 layers cannot fill 3 pipeline stages"]),
    "missing data folder": ({"data__path": "/nowhere/data"}, ["/nowhere/data/a", "smollm3 data"]),
    "sequence longer than the data": (
        {
            "tokens": "{sequence_length: 4096, train_steps: 8, micro_batch_size: 1}",
            "model__model_config__max_position_embeddings": 4096,
        },
        ["data/a", "tokens.sequence_length"],
    ),
    "no checkpoint to continue": (
        {"checkpoints__resume_checkpoint_path": "runs/nothing"},
        ["There is no complete checkpoint in runs/nothing", "correct checkpoints.resume_checkpoint_path"],
    ),
    "no weights to start from": (
        {"checkpoints__load_weights_path": "runs/nothing"},
        ["There is no complete checkpoint in runs/nothing", "correct checkpoints.load_weights_path"],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_refused_before_anything_is_written(
    case: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected = TABLE[case]
    assert start(monkeypatch, overrides(root, general__run=f"bad {case}", **changes)) == 2
    assert_explained(capsys, expected)
    assert not (root / "runs").exists()


def assert_explained(capsys: pytest.CaptureFixture[str], expected: list[str]) -> None:
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert len(message.splitlines()) <= 24
    for part in expected:
        assert part in message, message


def test_the_good_recipe_is_not_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, overrides(root)) == 0


def test_another_tokenizer_than_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    tokenizer = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert start(monkeypatch, overrides(tmp_path)) == 2
    assert_explained(capsys, ["tokenizer", str(tmp_path / "data" / "a"), "smollm3 data"])


def test_run_folder_of_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    save_recipe(tiny_recipe(tmp_path))
    assert start(monkeypatch, overrides(tmp_path, optimizer__weight_decay=0.2)) == 2
    assert_explained(
        capsys,
        [
            "was written by another recipe, and the difference changes the result",
            "optimizer.weight_decay: 0.1 there, 0.2 here",
        ],
    )
    assert start(monkeypatch, overrides(tmp_path, parallelism="{dp: 1}", tokens__micro_batch_size=4)) == 0


def test_disk_full(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 10**5, 10**5))
    assert start(monkeypatch, overrides(root)) == 2
    assert_explained(capsys, ["A checkpoint takes 0.00 GB", "general.runs_path"])


def test_wandb_unreachable(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        assert start(monkeypatch, overrides(root, wandb__mode="online")) == 2
        assert_explained(capsys, ["wandb.mode is online", "does not answer", "wandb.mode=offline"])
        assert start(monkeypatch, overrides(root, wandb__mode="auto")) == 0


def test_world_size_of_torchrun(root: Path) -> None:
    recipe = load_recipe("recipes/tiny/pretrain.yaml", overrides(root))
    check_world_size(recipe, 2)
    with pytest.raises(StartupError, match=r"dp 2 x pp 1 x tp 1 needs 2 processes, but 8 were started"):
        check_world_size(recipe, 8)
