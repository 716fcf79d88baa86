"""`smollm3 checkpoints`: what it lists, finds damaged and deletes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanotron_ext.checkpoint import list_checkpoints
from nanotron_ext.retention import in_use
from nanotron_ext.train.run import run
from smollm3.command_line import main
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 2, 4, 6 and 8."""
    root = tmp_path_factory.mktemp("run")
    prepare(root)
    recipe = tiny_recipe(root, checkpoints__checkpoint_interval=2)
    run_ranks(run, 2, recipe)
    return recipe.run_folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def command(*arguments: object) -> int:
    return main(["checkpoints", *map(str, arguments)])


def steps(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_list_and_verify(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("verify", folder) == 0
    assert capsys.readouterr().out.count(": whole") == 4
    damaged = next((folder / "checkpoints" / "4").glob("exp_avg-*"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    next((folder / "checkpoints" / "6").glob("master-*")).unlink()
    (folder / "checkpoints" / "10.tmp").mkdir()
    assert command("verify", folder) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(": whole") for line in lines] == [True, False, False, True]
    assert "does not match its checksum" in lines[1] and "is missing or was cut short" in lines[2]
    assert command("verify", folder, "--step", 8) == 0
    capsys.readouterr()
    assert command("list", folder) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["2", "4", "6", "8", "10.tmp"]
    assert "dp 2 x pp 1 x tp 1" in lines[0] and "6 files" in lines[0] and "damaged" in lines[2]
    assert command("list", tmp_path) == 2
    said = capsys.readouterr().err
    assert "There is no complete checkpoint" in said and "correct the path" in said


def test_prune_spares_what_another_process_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("prune", folder, "--keep-last", 1, "--keep-every-steps", 4, "--dry-run") == 0
    assert "2 checkpoints stay" in capsys.readouterr().out and steps(folder) == ["2", "4", "6", "8"]
    prune = [sys.executable, "-m", "smollm3", "checkpoints", "prune", str(folder), "--keep-last", "1"]
    with in_use(folder / "checkpoints" / "4"):
        output = subprocess.run(prune, capture_output=True, text=True, check=True).stdout
    assert steps(folder) == ["4", "8"]
    assert "checkpoints/4: kept, in use" in output and "checkpoints/2: deleted" in output
    assert command(*prune[4:]) == 0
    assert steps(folder) == ["8"]
