"""Object storage for real: sources and shards in an S3 service on this machine (`make test-storage` installs it)."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from datapipes.errors import SourceError
from datapipes.pipeline import SourceBuild
from datapipes.registry import Files, Source
from datapipes.state import state_of
from datapipes.tokenizer import LoadedTokenizer
from foundation.recipe import Recipe
from foundation.shards.errors import ShardError
from nanotron_ext.data.loader import MixtureLoader
from tests.datapipes.helpers import is_done, random_text, shard_bytes
from tests.nanotron_ext.data.prepared_data import make_recipe, random_documents, write_source

moto_server = pytest.importorskip("moto.server", reason="moto is not installed; `make test-storage` runs these tests")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket `bucket`, which AWS's own variables lead to."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("TOKEN_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("s3").clear_instance_cache()
    storage = fsspec.filesystem("s3")
    storage.mkdir("bucket")
    yield storage
    storage.rm("bucket", recursive=True)


def source_at(path: str, format: str) -> Source:
    reader = Files(kind="files", path=path, format=format, files=["part/*"])
    return Source(name="letters", category="web", licence="MIT", reader=reader, tasks=2, deduplicate="exact")


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_sources_in_s3_give_the_shards_of_local_ones(
    bucket: Any, tokenizer: LoadedTokenizer, tmp_path: Path, format: str
) -> None:
    generator = random.Random(0)
    for number in range(3):
        rows = [{"id": f"{number}-{row}", "text": random_text(generator, 30)} for row in range(50)]
        path = tmp_path / f"raw/part/{number}.{'parquet' if format == 'parquet' else 'jsonl.gz'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    bucket.put(f"{tmp_path}/raw/", "bucket/raw/", recursive=True)
    made = {}
    for name, raw, kind in (("local", f"{tmp_path}/raw", "sha256"), ("s3", "s3://bucket/raw", "etag")):
        SourceBuild(source_at(raw, format), tokenizer, tmp_path / name).build(workers=2)
        made[name] = shard_bytes(tmp_path / name / "letters")
        manifest = json.loads(made[name].pop("manifest.json"))
        assert manifest["documents"] == 150
        record = json.loads(made[name].pop("prepared_from.json"))
        assert {file["content"].partition(":")[0] for file in record["input"]["files"]} == {kind}
    assert made["local"] == made["s3"] and len(made["s3"]) == 4


def test_files_in_s3_count_by_their_contents(bucket: Any, tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    """Put there again they are the same, though their times are not; other contents of equal size are not."""
    rows = [json.dumps({"id": str(number), "text": "a letter about stone"}) + "\n" for number in range(20)]
    raw = tmp_path / "0.jsonl"
    source, data = source_at("s3://bucket/raw", "jsonl"), tmp_path / "data"

    def put(word: str) -> SourceBuild:
        raw.write_text("".join(rows).replace("stone", word))
        bucket.put(str(raw), "bucket/raw/part/0.jsonl")
        return SourceBuild(source, tokenizer, data)

    put("stone").build(workers=1)
    assert is_done(put("stone"))
    state = state_of(put("brick"), print)
    assert state.kind == "stale" and state.reasons[0].startswith("files: part/0.jsonl: other content")


def test_a_bucket_that_is_not_there_is_named(bucket: Any, tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"letters .*s3://nobucket/raw"):
        SourceBuild(source_at("s3://nobucket/raw", "jsonl"), tokenizer, tmp_path)


def batches(recipe: Recipe) -> list[list[Any]]:
    loader = MixtureLoader(recipe, 0, 1)
    return [
        [micro_batch.samples.tolist(), micro_batch.untrained.tolist(), micro_batch.lengths]
        for step in range(1, 41)
        for micro_batch in loader.batch(step).micro_batches
    ]


def recipe_at(url: str) -> Recipe:
    mixture = [(1, {"a": 0.7, "b": 0.3})]
    return make_recipe(Path("unused"), mixture, train_steps=40, micro_batch_size=4, more=[f"data.path={url}"])


def test_shards_in_s3_give_the_batches_of_local_ones(bucket: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    for name in ("a", "b"):
        write_source(tmp_path / "data", name, [random_documents(rng, 2000) for _ in range(3)])
    bucket.put(f"{tmp_path}/data/", "bucket/data/", recursive=True)
    expected = batches(recipe_at(str(tmp_path / "data")))
    assert batches(recipe_at("s3://bucket/data")) == expected
    cached = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.ds")}
    assert len(cached) == 6
    bucket.rm("bucket/data/a/000.ds")
    with pytest.raises(ShardError, match=r"s3://bucket/data/a/000\.ds: It has no bytes"):
        batches(recipe_at("s3://bucket/data"))
    bucket.put(f"{tmp_path}/data/a/000.ds", "bucket/data/a/000.ds")
    assert batches(recipe_at("s3://bucket/data")) == expected
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.ds")} == cached  # nothing came twice


def test_a_storage_that_does_not_answer_is_named(
    bucket: Any, tokenizer: LoadedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(SourceError, match=r"letters .*s3://bucket/elsewhere.* credentials"):
        SourceBuild(source_at("s3://bucket/elsewhere", "jsonl"), tokenizer, tmp_path)
    with pytest.raises(ShardError, match=r"s3://bucket/data/a: .*Check the address, the credentials"):
        batches(recipe_at("s3://bucket/data"))
