import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from datapipes.prepare import sole_preparation
from smollm3.command_line import main
from tests.datapipes.helpers import shard_bytes

SMALL = [  # two sources and a tokenizer that trains in a second
    "data_stages=[{name: only, start_training_step: 1, mixture: {tiny-math: 0.5, tiny-web-deu-heldout: 0.5}}]",
    "data.validation=[tiny-math-heldout]",
    "tokenizer.train={vocab_size: 1000, sources: [tiny-math-heldout, tiny-web-deu-heldout]}",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`smollm3 data recipes/tiny/pretrain.yaml ...` in this process, which has everything imported."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> Result:
        return Result(
            main(["data", "recipes/tiny/pretrain.yaml", "--run", str(tmp_path / "run"), *arguments]),
            *capsys.readouterr(),
        )

    return run


def test_from_nothing_then_nothing_to_do_then_a_change(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "run/data"
    first = command(*SMALL)
    assert first.code == 0, first.err
    assert first.out.count("built") == 3
    sources = ["tiny-math", "tiny-web-deu-heldout", "tiny-math-heldout"]
    made = {name: shard_bytes(data / name) for name in sources}
    assert all("manifest.json" in files for files in made.values())

    start = time.monotonic()
    second = command(*SMALL, "--verify")
    assert second.code == 0, second.err
    assert second.out.count("unchanged") == 3
    assert time.monotonic() - start < 10
    assert {name: shard_bytes(data / name) for name in sources} == made

    (shard,) = (data / "tiny-math").glob("*.ds")
    shard.unlink()
    assert command(*SMALL).code == 2
    third = command(*SMALL, "--rebuild", "tiny-math")
    assert (third.out.count("built"), third.out.count("unchanged")) == (1, 2)
    assert {name: shard_bytes(data / name) for name in sources} == made

    other_tokenizer = command(*SMALL[:2], SMALL[2].replace("1000", "999"))
    assert other_tokenizer.code == 2
    assert "was trained on other texts or settings" in other_tokenizer.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["data.validation=[tiny-mth]"], "Did you mean 'tiny-math'"),
        (["tokens.train_step=3"], "train_steps"),
        (["tokenizer.train=null"], "holds no tokenizer.json"),
        (["tokenizer.train={vocab_size: 1000, sources: [tiny-wb-en]}"], "Did you mean 'tiny-web-en'"),
        (["data.path=s3://bucket/data"], "data is prepared on a local or shared disk"),
        (["recipes/smollm3-3b/pretrain.yaml", "--profile", "tiny"], "The recipes differ in tokenizer or data.path"),
        (["--benchmarks", "nowhere"], "no evaluation set"),
    ],
)
def test_bad_input_is_one_screen_without_traceback_and_writes_nothing(
    command: Command, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert re.match(r"(profile .*\n)?error: ", result.err) and complaint in result.err
    assert len(result.err.splitlines()) < 25
    assert not (tmp_path / "run").exists()


def test_a_second_preparation_of_the_same_folder_is_refused(command: Command, tmp_path: Path) -> None:
    with sole_preparation(tmp_path / "run/data"):
        result = command(*SMALL)
    assert result.code == 2
    assert f"is preparing {tmp_path}/run/data already. Wait for its end" in result.err
    assert not (tmp_path / "run/tokenizer").exists()
    with sole_preparation(tmp_path / "run/data"):  # the lock went with its holder
        pass
