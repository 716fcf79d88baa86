"""The sets of the tiny profile on disk."""

from pathlib import Path

import pytest

from posttrain.tiny_data import SetsError, write_sets
from smollm3.command_line import main

SIZES = {"midtrain": 3, "sft": 2, "apo": 2, "heldout": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_sets_again_are_no_question(tmp_path: Path) -> None:
    assert write_sets(tmp_path, 6, SIZES) == write_sets(tmp_path, 6, SIZES)


def test_other_sets_are_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sets(tmp_path, 6, SIZES)
    with (tmp_path / "sft_think" / "train.jsonl").open("a") as file:
        file.write("a row of the user's own\n")
    before = contents(tmp_path)
    with pytest.raises(SetsError, match=r"sft_think/train\.jsonl holds other rows .* Nothing was written"):
        write_sets(tmp_path, 6, SIZES)
    assert main(["posttrain-data", str(tmp_path), "--seed=7", "--midtrain=3", "--sft=2", "--apo=2"]) == 2
    assert "error: " in capsys.readouterr().err
    assert contents(tmp_path) == before
    write_sets(tmp_path, 6, SIZES, replace=True)
    assert b"user's own" not in contents(tmp_path)["sft_think/train.jsonl"]
