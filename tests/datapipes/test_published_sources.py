"""Every source of the published mixtures, on a small copy with the columns that its dataset has."""

import csv
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from datapipes.decontaminate import BenchmarkIndex, build_index
from datapipes.errors import SourceError
from datapipes.pipeline import SourceBuild
from datapipes.registry import Hub, Source, Unreleased, find_source, load_registry
from datapipes.tokenizer import LoadedTokenizer
from tests.datapipes import hub_server
from tests.datapipes.helpers import read_documents

PUBLISHED = {name: source for name, source in load_registry().items() if isinstance(source.reader, Hub | Unreleased)}
WEB = {"id": "<urn:uuid:1>", "url": "https://example.org", "language_score": 0.9, "token_count": 5}
SOLVED = {"expected_answer": "4", "problem_source": "aops", "generation_model": "m"}
STACK = {
    "repo_name": "a/b",
    "path": "/x.c",
    "src_encoding": "ISO-8859-1",
    "length_bytes": 9,
    "detected_licenses": ["MIT"],
}
OTHER_COLUMNS: dict[str, dict[str, Any]] = {
    "HuggingFaceFW/fineweb-edu": {**WEB, "dump": "CC-MAIN-2024-10", "score": 3.1, "int_score": 3},
    "HuggingFaceFW/fineweb-2": {**WEB, "minhash_cluster_size": 3, "language_script": "Thai"},
    "epfml/FineWeb2-HQ": {**WEB, "quality_score": 0.3, "embeddings": [[0.1, 0.2]]},
    "mlfoundations/dclm-baseline-1.0": {
        "url": "https://example.org",
        "metadata": {"WARC-Type": "response"},
        "warcinfo": "x",
    },
    "allenai/dolmino-mix-1124": {"id": "7", "added": "2024", "metadata": {"length": 3}, "source": "s", "version": "v0"},
    "wikimedia/wikipedia": {"id": "12", "url": "https://example.org", "title": "Stone"},
    "HuggingFaceTB/smollm-corpus": {"prompt": "Write", "audience": "students", "format": "wikihow", "token_length": 9},
    "HuggingFaceTB/finemath": {"url": "https://example.org", "fetch_time": 1, "int_score": 4, "metadata": "{}"},
    "LLM360/MegaMath": {"url": "https://example.org", "lang": "en", "math_score": 0.9},
    "HuggingFaceTB/stack-edu": {**STACK, "language": "C", "score": 3.4, "int_score": 3},
    "bigcode/the-stack-v2-dedup": {**STACK, "directory_id": "d", "gha_language": None, "is_vendor": False},
    "bigcode/starcoder2data-extras": {"repo_name": "a/b", "issue_id": "3"},
    "nvidia/OpenMathInstruct-2": SOLVED,
    "nvidia/OpenMathReasoning": {**SOLVED, "inference_mode": "cot", "pass_rate_72b_tir": "0.5"},
    "nvidia/OpenCodeReasoning": {"id": "i", "solution": "print()", "difficulty": "EASY", "license": "mit"},
    "HuggingFaceTB/smoltalk2": {"chat_template_kwargs": {"enable_thinking": True}, "source": "OpenThoughts3"},
    "facebook/natural_reasoning": {"responses": [{"response_model": "m", "response": "r"}]},
}


def hub(source: Source) -> Hub:
    assert isinstance(source.reader, Hub)
    return source.reader


def write_copy(reader: Hub, raw: Path) -> list[str]:
    """Two rows in one file per pattern; gives the texts that must come out."""
    texts = []
    for number, pattern in enumerate(reader.files):
        path = raw / reader.dataset / pattern.replace("**", "part").replace(".json*", ".json.gz").replace("*", "0")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in range(2):
            values: dict[str, Any] = {name: f"{name} {number} {row}" for name in reader.text_columns}
            if reader.blob_url:
                values["blob_id"] = f"blob{row}"
                (raw / "blobs").mkdir(exist_ok=True)
                (raw / f"blobs/blob{row}").write_bytes(gzip.compress(f"/* café {row} */".encode("latin-1")))
                texts.append(f"/* café {row} */")
            elif reader.chat_column:
                values = {reader.chat_column: [{"role": "user", "content": f"Why {row}?"}]}
                texts.append(f"<|im_start|>user\nWhy {row}?<|im_end|>\n")
            else:
                texts.append("\n\n".join(values.values()))
            rows.append({**OTHER_COLUMNS[reader.dataset], **values})
        if reader.format == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(compressed(data, path.suffix))
    return texts


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        return bytes(zstandard.compress(data))
    return gzip.compress(data) if suffix == ".gz" else data


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkIndex:
    folder = tmp_path_factory.mktemp("sets")
    (folder / "quiz.jsonl").write_text(json.dumps({"q": " ".join(f"w{n}" for n in range(20))}), encoding="utf-8")
    return build_index(folder)


@pytest.mark.parametrize("name", [name for name, source in PUBLISHED.items() if isinstance(source.reader, Hub)])
def test_a_copy_of_the_dataset_becomes_shards(
    name: str, tokenizer: LoadedTokenizer, benchmarks: BenchmarkIndex, tmp_path: Path
) -> None:
    reader = hub(PUBLISHED[name])
    if reader.blob_url:
        reader = reader.model_copy(update={"blob_url": f"file://{tmp_path}/raw/blobs/{{}}"})
    any_length = {"min_tokens": None, "max_tokens": None}
    source = PUBLISHED[name].model_copy(update={"reader": reader, "tasks": 1, **any_length})
    texts = write_copy(reader, tmp_path / "raw")
    build = SourceBuild(source, tokenizer, tmp_path / "data", tmp_path / "raw", benchmarks)
    build.build(workers=1)
    documents, decode = read_documents(tmp_path / "data" / name), tokenizer.tokenizer.decode
    assert sorted(decode(document[:-1], skip_special_tokens=False) for document in documents) == sorted(texts)


@pytest.mark.parametrize("name", [name for name, source in PUBLISHED.items() if isinstance(source.reader, Unreleased)])
def test_what_was_never_published_names_a_substitute(name: str, tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    substitute = PUBLISHED[name].substitute
    assert substitute is not None
    assert isinstance(PUBLISHED[substitute].reader, Hub)
    with pytest.raises(SourceError, match=f"cannot be had: .* use the source {substitute} in its place"):
        SourceBuild(PUBLISHED[name], tokenizer, tmp_path)


def test_gated_sources_name_a_substitute_where_there_is_one() -> None:
    """Only HTML has none: the open selection of code does not include it."""
    gated = [source for source in PUBLISHED.values() if isinstance(source.reader, Hub) and source.reader.gated]
    assert gated
    for source in gated:
        if "HTML" not in source.name:
            assert source.substitute is not None
            assert not hub(PUBLISHED[source.substitute]).gated


def test_without_network_and_copy_the_error_says_what_to_do(
    tokenizer: LoadedTokenizer, benchmarks: BenchmarkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"cannot be reached for HuggingFaceFW/fineweb-edu .* give --raw RAW"):
        SourceBuild(PUBLISHED["fineweb-edu"], tokenizer, tmp_path, benchmarks=benchmarks)


def test_a_hub_source_is_pinned_to_the_commit_that_its_branch_means(
    tokenizer: LoadedTokenizer, benchmarks: BenchmarkIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server.serving(monkeypatch) as served:
        served.commit("HuggingFaceFW/fineweb-edu", {"data/CC-MAIN-2024-10/000.parquet": b"old"})
        commit = served.commit("HuggingFaceFW/fineweb-edu", {"data/CC-MAIN-2024-10/000.parquet": b"new rows"})
        build = SourceBuild(PUBLISHED["fineweb-edu"], tokenizer, tmp_path, benchmarks=benchmarks)
    assert build.input.revision == commit
    assert build.input.folder == f"hf://datasets/HuggingFaceFW/fineweb-edu@{commit}"
    (file,) = build.input.files
    assert (file.name, file.size) == ("data/CC-MAIN-2024-10/000.parquet", len(b"new rows"))
    assert file.content == "sha256:" + hashlib.sha256(b"new rows").hexdigest()


def test_every_name_of_the_published_mixtures_is_a_source() -> None:
    with Path("recipes/smollm3-3b/published_mixtures.csv").open(encoding="utf-8") as file:
        names = {row["source"] for row in csv.DictReader(file)}
    known = {name for source in PUBLISHED.values() for name in (source.name, *source.published_as)}
    assert len(names) == 115 and names <= known
    with pytest.raises(SourceError, match="published as 'finemath' is called 'finemath-3plus' here"):
        find_source("finemath")
