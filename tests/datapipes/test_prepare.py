import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.datapipes.helpers import shard_bytes

SMALL = [  # two sources and a tokenizer that trains in a second
    "data_stages=[{name: only, start_training_step: 1, mixture: {tiny-math: 0.5, tiny-web-deu-heldout: 0.5}}]",
    "data.validation=[tiny-math-heldout]",
    "tokenizer.train={vocab_size: 1000, sources: [tiny-math-heldout, tiny-web-deu-heldout]}",
]


def prepare(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datapipes.prepare", "recipes/tiny/pretrain.yaml", *arguments],
        env={**os.environ, "RUN": str(run), "PYTHONPATH": ".", "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )


def test_from_nothing_then_nothing_to_do_then_a_change(tmp_path: Path) -> None:
    first = prepare(tmp_path, *SMALL)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("built") == 3
    sources = ["tiny-math", "tiny-web-deu-heldout", "tiny-math-heldout"]
    made = {name: shard_bytes(tmp_path / "data" / name) for name in sources}
    assert all("manifest.json" in files for files in made.values())

    start = time.monotonic()
    second = prepare(tmp_path, *SMALL, "--verify")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("unchanged") == 3
    assert time.monotonic() - start < 10
    assert {name: shard_bytes(tmp_path / "data" / name) for name in sources} == made

    (shard,) = (tmp_path / "data/tiny-math").glob("*.ds")
    shard.unlink()
    third = prepare(tmp_path, *SMALL)
    assert (third.stdout.count("built"), third.stdout.count("unchanged")) == (1, 2)
    assert {name: shard_bytes(tmp_path / "data" / name) for name in sources} == made

    other_tokenizer = prepare(tmp_path, *SMALL[:2], SMALL[2].replace("1000", "999"))
    assert other_tokenizer.returncode == 1
    assert "was trained on other texts or settings" in other_tokenizer.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["data.validation=[tiny-mth]"], "Did you mean 'tiny-math'"),
        (["tokens.train_step=3"], "train_steps"),
        (["tokenizer.train=null"], "holds no tokenizer.json"),
        (["tokenizer.train={vocab_size: 1000, sources: [tiny-wb-en]}"], "Did you mean 'tiny-web-en'"),
    ],
)
def test_bad_input_is_one_screen_without_traceback_and_writes_nothing(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    result = prepare(tmp_path / "run", *arguments)
    assert result.returncode == 1
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) < 25
    assert not (tmp_path / "run").exists()


def test_help() -> None:
    command = [sys.executable, "-m", "datapipes.prepare", "--help"]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}, capture_output=True)
    assert result.returncode == 0
