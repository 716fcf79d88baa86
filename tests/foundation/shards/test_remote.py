"""Data in object storage (fsspec's memory and file storages stand for it) against the same data on local disk."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from foundation.recipe import Recipe
from foundation.shards.errors import ShardError
from foundation.shards.manifest import read_remote_source
from nanotron_ext.data.loader import MixtureLoader
from tests.nanotron_ext.data.prepared_data import make_recipe, random_documents, write_source

TOKENS_PER_SHARD = 2000  # 2 bytes each
MIXTURE = [(1, {"a": 0.7, "b": 0.3})]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(8)
    for name in ("a", "b"):
        write_source(tmp_path / "data", name, [random_documents(rng, TOKENS_PER_SHARD) for _ in range(3)])
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKEN_CACHE_GB", "0.001")
    return tmp_path / "cache"


def recipe_at(url: str | Path) -> Recipe:
    return make_recipe(Path("unused"), MIXTURE, train_steps=40, micro_batch_size=4, more=[f"data.path={url}"])


def batches(recipe: Recipe) -> list[list[Any]]:
    loader = MixtureLoader(recipe, 0, 1)
    return [
        [batch.input_ids.tolist(), batch.label_ids.tolist(), batch.label_mask.tolist(), batch.lengths]
        for step in range(1, 41)
        for batch in loader.batch(step).micro_batches
    ]


def cached_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.ds*"))


def refusal(recipe: Recipe) -> str:
    with pytest.raises(ShardError) as error:
        batches(recipe)
    return str(error.value)


def limit(monkeypatch: pytest.MonkeyPatch, limit_bytes: float) -> None:
    monkeypatch.setenv("TOKEN_CACHE_GB", repr(limit_bytes / 1e9))


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_batches_are_those_of_local_data(data: Path, cache: Path, storage: str) -> None:
    url = f"file://{data}"
    if storage == "memory":
        url = "memory://bucket/data"
        fsspec.filesystem("memory").put(f"{data}/", "/bucket/data/", recursive=True)
    assert batches(recipe_at(url)) == batches(recipe_at(data))
    assert len(list(cache.rglob("*.ds"))) == 6
    assert not list(cache.rglob("*.partial"))


def test_the_cache_stays_below_its_limit_and_keeps_what_was_used_last(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {path.name: path.stat().st_size + Path(f"{path}.index").stat().st_size for path in data.rglob("a/*.ds")}
    limit(monkeypatch, sum(sizes.values()) - 1)  # any two shards fit, three do not
    source = read_remote_source(f"file://{data}/a")
    assert source.remote is not None
    files = {file.name: (file.name, file.sha256, file.index_sha256) for file in source.manifest.files}
    for name, kept in (("000", "000"), ("001", "000 001"), ("000", "000 001"), ("002", "000 002"), ("001", "001 002")):
        content = source.remote.open(*files[f"{name}.ds"], Path.read_bytes)
        assert content == (data / f"a/{name}.ds").read_bytes()
        assert {path.name[-6:-3] for path in cache.rglob("*.ds")} == set(kept.split())
        assert {path.name[-12:-9] for path in cache.rglob("*.ds.index")} == set(kept.split())
        assert cached_bytes(cache) < sum(sizes.values())


def test_a_cache_of_one_shard_gives_the_same_batches(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(path.stat().st_size + Path(f"{path}.index").stat().st_size for path in data.rglob("*.ds"))
    limit(monkeypatch, largest)
    assert batches(recipe_at(f"file://{data}")) == batches(recipe_at(data))
    assert cached_bytes(cache) <= largest
    limit(monkeypatch, largest - 1)
    assert "Raise TOKEN_CACHE_GB" in refusal(recipe_at(f"file://{data}"))


def test_a_second_start_downloads_nothing_but_manifests(data: Path, cache: Path) -> None:
    first = batches(recipe_at(f"file://{data}"))
    before = {path: path.stat().st_ino for path in cache.rglob("*.ds*")}
    assert batches(recipe_at(f"file://{data}")) == first
    assert {path: path.stat().st_ino for path in cache.rglob("*.ds*")} == before


def test_another_preparation_is_not_mixed_up_with_the_cached_one(data: Path, cache: Path, tmp_path: Path) -> None:
    batches(recipe_at(f"file://{data}"))
    rng = np.random.default_rng(9)
    data.rename(tmp_path / "old")
    for name in ("a", "b"):
        write_source(data, name, [random_documents(rng, TOKENS_PER_SHARD) for _ in range(3)])
    assert batches(recipe_at(f"file://{data}")) == batches(recipe_at(data))


def test_what_an_interrupted_download_left_is_removed(data: Path, cache: Path) -> None:
    rest = cache / f"file{data}" / "a"
    rest.mkdir(parents=True)
    (rest / "0123-000.ds.partial").write_bytes(b"half")
    (rest / "4567-000.ds.index").write_bytes(b"orphaned")
    assert batches(recipe_at(f"file://{data}")) == batches(recipe_at(data))
    assert not list(cache.rglob("*.partial")) and len(list(cache.rglob("*.index"))) == 6


def test_processes_share_a_cache_that_is_too_small_for_them(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 3 * TOKENS_PER_SHARD * 2)
    expected = batches(recipe_at(data))
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.map(batches, [recipe_at(f"file://{data}")] * 2) == [expected, expected]
    assert cached_bytes(cache) <= 3 * TOKENS_PER_SHARD * 2


def test_unusable_remote_data_is_named(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{data}"
    shard = data / "b/001.ds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2] + b"\x07\x00")
    assert f"{url}/b/001.ds: Its SHA-256 is " in refusal(recipe_at(url))
    shard.write_bytes(content[:-2])
    assert f"{url}/b/001.ds: It has 3998 bytes, but the manifest promises 4000" in refusal(recipe_at(url))
    shard.unlink()
    assert f"{url}/b/001.ds: It has no bytes" in refusal(recipe_at(url))
    (data / "a/manifest.json").unlink()
    message = refusal(recipe_at(url))
    assert f"{url}/a/manifest.json: There is no manifest" in message and "upload" in message
    assert "nosuchstore://bucket/data/a: ValueError: Protocol not known" in refusal(
        recipe_at("nosuchstore://bucket/data")
    )
    monkeypatch.setenv("TOKEN_CACHE_GB", "plenty")
    assert "TOKEN_CACHE_GB: 'plenty' is no size" in refusal(recipe_at(url))


def test_a_manifest_that_lies_is_refused(data: Path, cache: Path) -> None:
    path = data / "a/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": 17}))
    assert "states 17 tokens, but its files hold 6000" in refusal(recipe_at(f"file://{data}"))
