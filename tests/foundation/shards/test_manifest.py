"""Unusable data is refused before the first step, with the file and the fix in the message."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundation.shards.errors import ShardError
from foundation.shards.manifest import read_source
from nanotron_ext.data.loader import MixtureLoader
from tests.nanotron_ext.data.prepared_data import make_recipe, random_documents, write_source


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(6)
    for name in ("a", "b"):
        write_source(tmp_path, name, [random_documents(rng, 100), random_documents(rng, 50)])
    return tmp_path


def refusal(data: Path, *more: str) -> str:
    with pytest.raises(ShardError) as error:
        MixtureLoader(make_recipe(data, [(1, {"a": 0.5, "b": 0.5})], more=more), 0, 1)
    return str(error.value)


def edit(path: Path, **changes: Any) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | changes))


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda source: (source / name).write_bytes((source / name).read_bytes()[:size])


def change(**changes: Any) -> Callable[[Path], None]:
    return lambda source: edit(source / "manifest.json", **changes)


def overwrite_end(name: str, entry: np.generic) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        content = (source / name).read_bytes()
        (source / name).write_bytes(content[: -entry.nbytes] + entry.tobytes())

    return damage


def list_twice(source: Path) -> None:
    first = json.loads((source / "manifest.json").read_text())["files"][0]
    edit(source / "manifest.json", files=[first, first], documents=2 * first["documents"], tokens=200)


PREPARE = "run `smollm3 data RECIPE`"
REBUILD = "run `smollm3 data RECIPE --rebuild b`"
DAMAGES: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "missing folder": (shutil.rmtree, "b/manifest.json", "There is no manifest", PREPARE),
    "unfinished": (lambda s: (s / "manifest.json").unlink(), "b/manifest.json", "shards but no manifest", REBUILD),
    "not JSON": (cut("manifest.json", 30), "b/manifest.json", "not a valid manifest", REBUILD),
    "unknown format": (change(format="token-shards/9"), "b/manifest.json", "format: Input should be", REBUILD),
    "tokens as text": (change(tokens="150"), "b/manifest.json", "tokens: Input should be a valid integer", REBUILD),
    "wrong total": (change(tokens=151), "b/manifest.json", "states 151 tokens, but its files hold 150", REBUILD),
    "file twice": (list_twice, "b/manifest.json", "lists a file twice", REBUILD),
    "copied folder": (change(source="c"), "b/manifest.json", "belongs to source 'c', not to 'b'", "rename"),
    "vocabulary too wide": (change(vocab_size=70_000), "b/manifest.json", "does not fit into 2 bytes", REBUILD),
    "EOS outside": (change(eos_token_id=5000), "b/manifest.json", "EOS id 5000 lies outside", REBUILD),
    "truncated shard": (cut("001.ds", 60), "b/001.ds", "60 bytes, but the manifest promises 100", REBUILD),
    "truncated index": (cut("000.ds.index", 8), "b/000.ds.index", "it is truncated", REBUILD),
    "missing shard": (lambda s: (s / "000.ds").unlink(), "b/000.ds", "No such file", REBUILD),
    "missing index": (lambda s: (s / "001.ds.index").unlink(), "b/001.ds.index", "No such file", REBUILD),
    "stray shard": (lambda s: (s / "9.ds").touch(), "b/9.ds", "The manifest does not list this file", "Delete it"),
    "other width": (change(token_bytes=4), "b/000.ds", "but the manifest promises 400", REBUILD),
    "lying index": (overwrite_end("000.ds.index", np.uint64(99)), "b/000.ds.index", "ends at token 99", REBUILD),
    "no EOS": (overwrite_end("001.ds", np.uint16(7)), "b/001.ds", "ends with token 7 instead of the EOS id 1", REBUILD),
    "other tokenizer": (change(tokenizer_sha256="f" * 64), "b/manifest.json", "by tokenizer ffffffffffff", REBUILD),
    "other vocabulary": (change(vocab_size=4000), "b/manifest.json", "a vocabulary of 4000 here", "--rebuild SOURCE"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_named_with_file_and_fix(data: Path, case: str) -> None:
    damage, file, what, fix = DAMAGES[case]
    damage(data / "b")
    line, *others = refusal(data).splitlines()[1:]
    assert line.startswith(f"  {data / file}: ")
    assert all(other.startswith(f"  {data / 'b'}") for other in others)
    assert what in line
    assert fix in line


def test_undamaged_data_is_accepted(data: Path) -> None:
    MixtureLoader(make_recipe(data, [(1, {"a": 0.5, "b": 0.5})]), 0, 1)
    assert read_source(data / "a").manifest.tokens == 150


def test_all_sources_are_reported_at_once(data: Path) -> None:
    (data / "a" / "000.ds").unlink()
    (data / "b" / "manifest.json").unlink()
    message = refusal(data, "data.validation=[held-out]")
    assert message.startswith("The training data cannot be used: 3 problems")
    for file in ("a/000.ds", "b/manifest.json", "held-out/manifest.json"):
        assert str(data / file) in message


def test_many_problems_stay_on_one_screen(data: Path) -> None:
    for number in range(40):
        (data / "a" / f"stray{number}.ds").touch()
    message = refusal(data)
    assert len(message.splitlines()) == 17
    assert message.endswith("... and 25 more")


@pytest.mark.parametrize(("length", "accepted"), [(99, True), (100, False)])
def test_source_shorter_than_a_window_and_its_label(data: Path, length: int, accepted: bool) -> None:
    if accepted:
        MixtureLoader(make_recipe(data, [(1, {"a": 0.5, "b": 0.5})], sequence_length=length), 0, 1)
    else:
        message = refusal(data, f"tokens.sequence_length={length}")
        assert "No file holds the 101 tokens of one window and its last label; the longest has 100." in message


def test_recipe_of_another_tokenizer(data: Path) -> None:
    message = refusal(data, "model.model_config.vocab_size=2048", "model.model_config.eos_token_id=2")
    assert "larger than model.model_config.vocab_size 2048" in message
    assert "but model.model_config.eos_token_id is 2" in message


def test_local_tokenizer_must_be_the_one_of_the_data(data: Path) -> None:
    folder = data / "tokenizer"
    folder.mkdir()
    recipe = [f"tokenizer.tokenizer_name_or_path={folder}"]
    assert f"{folder / 'tokenizer.json'}: There is no such file" in refusal(data, *recipe)
    (folder / "tokenizer.json").write_text("{}")
    assert re.search(r"not by \w{12} of .*tokenizer\.json", refusal(data, *recipe))
    for name in ("a", "b"):
        edit(data / name / "manifest.json", tokenizer_sha256=hashlib.sha256(b"{}").hexdigest())
    MixtureLoader(make_recipe(data, [(1, {"a": 0.5, "b": 0.5})], more=recipe), 0, 1)
