"""`smollm3 data` when something changed: nothing finished is replaced unasked, and nothing is lost."""

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datatrove.data import Document

from datapipes import registry
from datapipes.clean import Clean
from datapipes.pipeline import SourceBuild
from datapipes.registry import Source
from datapipes.state import ALL
from datapipes.tokenizer import load_tokenizer
from foundation.recipe import Recipe, load_recipe
from tests.datapipes import hub_server
from tests.datapipes.helpers import make_tokenizer, read_documents, shard_bytes
from tests.datapipes.test_prepare import Command, command  # noqa: F401 (a fixture)

TEXTS = [f"letter {number} about water and stone" for number in range(60)]
DATASET = "someone/finemath"
HUB_ENTRY = {
    "category": "math",
    "licence": "MIT",
    "reader": {"kind": "hub", "dataset": DATASET, "files": ["train/*.parquet"]},
    "decontaminate": True,
    "tasks": 2,
}
ARGUMENTS = [
    "data.validation=[]",
    "tokens.val_check_interval=null",
    "tokenizer.train={vocab_size: 1000, sources: [tiny-math-heldout, tiny-web-deu-heldout]}",
    "--workers=1",
]


def mixture(*names: str) -> str:
    shares = {name: 1 / len(names) for name in names}
    return f"data_stages=[{{name: only, start_training_step: 1, normalize: true, mixture: {json.dumps(shares)}}}]"


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file with its inode and time of modification; the lock apart, which every preparation takes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def register(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> None:
    known = {**registry.load_registry(), **{source.name: source for source in sources}}
    monkeypatch.setattr("datapipes.registry._registry", lambda: known)


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, compression="none", use_dictionary=False)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.Hub]:
    """A hub with one dataset, which the source `math` reads; evaluation sets in tmp_path/sets."""
    (tmp_path / "sets").mkdir()
    add_evaluation_set(tmp_path, "quiz")
    register(monkeypatch, Source.model_validate({"name": "math", **HUB_ENTRY}))
    with hub_server.serving(monkeypatch) as served:
        served.commit(DATASET, files_of(TEXTS))
        yield served


def files_of(texts: list[str], readme: bytes = b"# Mathematics\n") -> dict[str, bytes]:
    halves = {f"train/{number}.parquet": parquet(texts[number::2]) for number in range(2)}
    return {**halves, "README.md": readme, "other/unused.parquet": b"not read by the source"}


def add_evaluation_set(tmp_path: Path, name: str) -> None:
    row = {"q": " ".join(f"{name}{number}" for number in range(20))}
    (tmp_path / "sets" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")


@pytest.fixture
def prepare_math(command: Command, tmp_path: Path) -> Command:  # noqa: F811
    return lambda *more: command(mixture("math"), *ARGUMENTS, "--benchmarks", str(tmp_path / "sets"), *more)


def test_a_hub_dataset_whose_readme_was_edited_is_done(
    hub: hub_server.Hub, prepare_math: Command, tmp_path: Path
) -> None:
    assert prepare_math().code == 0
    before = snapshot(tmp_path / "run" / "data" / "math")
    hub.commit(DATASET, files_of(TEXTS, readme=b"# Mathematics, with a link\n"))
    hub.requests.clear()
    result = prepare_math()
    assert (result.code, result.out.count("unchanged")) == (0, 1), result.err
    after = snapshot(tmp_path / "run" / "data" / "math")
    record = next(name for name in after if name.endswith("prepared_from.json"))  # it notes the commit
    assert {name: file for name, file in before.items() if name != record} == {
        name: file for name, file in after.items() if name != record
    }
    assert not [path for path in hub.requests if "/resolve/" in path]  # nothing was downloaded


def test_a_hub_dataset_with_other_files_is_refused_and_rebuilt_on_request(
    hub: hub_server.Hub, prepare_math: Command, tmp_path: Path
) -> None:
    assert prepare_math().code == 0
    data, then = tmp_path / "run" / "data", hub_server.commit_id(files_of(TEXTS))
    before = snapshot(tmp_path / "run")
    texts = [text.replace("water", "metal") for text in TEXTS]
    now = hub.commit(DATASET, files_of(texts))
    assert [len(content) for content in files_of(texts).values()] == [len(c) for c in files_of(TEXTS).values()]
    result = prepare_math()
    assert result.code == 2
    assert "1 of 1 sources are prepared or begun, but not from what the recipes now ask for" in result.err
    assert "  math: files: train/0.parquet: other content" in result.err
    assert f"revision: {then[:19]} -> {now[:19]}" in result.err
    assert "add --rebuild all, or by name: --rebuild math." in result.err
    assert "Traceback" not in result.err and snapshot(tmp_path / "run") == before

    rebuilt = prepare_math("--rebuild", "math")
    assert (rebuilt.code, rebuilt.out.count("built")) == (0, 1), rebuilt.err
    assert json.loads((data / "math" / "manifest.json").read_text())["revision"] == now
    assert [path.name for path in data.iterdir() if path.name not in (".lock", ".partial")] == ["math"]
    assert len(read_documents(data / "math")) == len(TEXTS)
    again = prepare_math("--rebuild", "math")
    assert again.code == 0 and "math is what the recipes ask for: not rebuilt." in again.out


def test_an_evaluation_set_more_is_refused(hub: hub_server.Hub, prepare_math: Command, tmp_path: Path) -> None:
    assert prepare_math().code == 0
    before = snapshot(tmp_path / "run")
    add_evaluation_set(tmp_path, "exam")
    result = prepare_math()
    assert result.code == 2 and "  math: benchmarks.exam: none -> " in result.err
    assert snapshot(tmp_path / "run") == before
    assert prepare_math("--rebuild", ALL).code == 0 and prepare_math().code == 0


def test_a_line_end_in_the_tokenizer_is_no_change(hub: hub_server.Hub, prepare_math: Command, tmp_path: Path) -> None:
    assert prepare_math().code == 0
    before = snapshot(tmp_path / "run" / "data")
    with (tmp_path / "run" / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write("\n")
    result = prepare_math()
    assert (result.code, result.out.count("unchanged")) == (0, 1), result.err
    assert snapshot(tmp_path / "run" / "data") == before


@pytest.mark.parametrize("way", ["offline mode", "no answer", "gone from the hub"])
def test_prepared_sources_need_no_hub(
    way: str, hub: hub_server.Hub, prepare_math: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare_math().code == 0
    before = snapshot(tmp_path / "run")
    if way == "offline mode":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif way == "no answer":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.datasets.clear()
    hub_server.HfFileSystem.clear_instance_cache()
    result = prepare_math()
    assert result.code == 0 and result.err == ""
    (line,) = [line for line in result.out.splitlines() if "The hub" in line]
    assert line.startswith("1 of 1 sources are prepared and taken as they are") and f"{DATASET} of source math" in line
    assert snapshot(tmp_path / "run") == before
    next((tmp_path / "run" / "data" / "math").glob("*.ds")).unlink()  # damaged: nothing to make it anew from
    unable = prepare_math("--rebuild", "math")
    assert unable.code == 2 and len(unable.err.splitlines()) == 1 and "The hub" in unable.err
    shutil.rmtree(tmp_path / "run" / "data" / "math")
    missing = prepare_math()
    assert missing.code == 2 and len(missing.err.splitlines()) == 1 and "The hub" in missing.err


def test_a_copy_below_raw_counts_by_its_contents(hub: hub_server.Hub, prepare_math: Command, tmp_path: Path) -> None:
    """Large files by SHA-256, which the hub's listing tells, and small ones by git's id."""
    assert prepare_math().code == 0
    copy = tmp_path / "raw" / DATASET
    for name, content in files_of(TEXTS).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    hub.datasets.clear()
    result = prepare_math("--raw", str(tmp_path / "raw"))
    assert result.code == 0 and "reading 2 files" in result.out, result.err
    assert "reading" not in prepare_math("--raw", str(tmp_path / "raw")).out
    (copy / "train/1.parquet").write_bytes(
        files_of([text.replace("stone", "brick") for text in TEXTS])["train/1.parquet"]
    )
    refused = prepare_math("--raw", str(tmp_path / "raw"))
    assert refused.code == 2 and "  math: files: train/1.parquet: other content" in refused.err


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_source: Callable[..., Source]) -> list[Source]:
    """Two registered sources of local files, `one` and `two`."""
    sources = [make_source(TEXTS, files=4, tasks=4, name=name) for name in ("one", "two")]
    register(monkeypatch, *sources)
    return sources


@pytest.fixture
def prepare_letters(command: Command, letters: list[Source]) -> Command:  # noqa: F811
    return lambda *more: command(mixture("one", "two"), *ARGUMENTS, *more)


def raw_file(source: Source) -> Path:
    assert source.reader.kind == "files"
    return Path(source.reader.path, "002.jsonl")


def edit(source: Source) -> None:
    path = raw_file(source)
    path.write_text(path.read_text().replace("water", "metal"))


def test_all_that_changed_is_named_and_only_what_is_named_is_replaced(
    letters: list[Source], prepare_letters: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare_letters().code == 0
    data = tmp_path / "run" / "data"
    edit(letters[0])
    register(monkeypatch, letters[0], letters[1].model_copy(update={"min_characters": 5}))
    before = snapshot(tmp_path / "run")
    refused = prepare_letters()
    assert refused.code == 2 and snapshot(tmp_path / "run") == before
    assert "2 of 2 sources" in refused.err
    assert "  one: files: 002.jsonl: other content" in refused.err
    assert "  two: min_characters: default -> 5" in refused.err
    assert "--rebuild one --rebuild two." in refused.err

    half = prepare_letters("--rebuild", "one")  # two is not named
    assert half.code == 2 and "1 of 2 sources" in half.err and snapshot(tmp_path / "run") == before
    misspelt = prepare_letters("--rebuild", "onn")
    assert misspelt.code == 2 and "Did you mean 'one'?" in misspelt.err and snapshot(tmp_path / "run") == before

    dry = prepare_letters("--dry-run")
    assert dry.code == 0 and snapshot(tmp_path / "run") == before
    assert dry.out.splitlines()[-2].startswith("one: stale, files: 002.jsonl: other content")
    assert dry.out.splitlines()[-1] == "two: stale, min_characters: default -> 5"

    register(monkeypatch, *letters)
    rebuilt = prepare_letters("--rebuild", "one")
    assert (rebuilt.code, rebuilt.out.count("built"), rebuilt.out.count("unchanged")) == (0, 1, 1)
    kept = {name: file for name, file in before.items() if name.startswith(f"{data}/two/")}
    assert kept and {name: file for name, file in snapshot(tmp_path / "run").items() if name in kept} == kept
    decode = load_tokenizer(recipe_of(tmp_path)).tokenizer.decode
    assert any("metal" in decode(document[:-1]) for document in read_documents(data / "one"))


def recipe_of(tmp_path: Path) -> Recipe:
    return load_recipe("recipes/tiny/pretrain.yaml", [mixture("one", "two"), *ARGUMENTS[:3]])


def test_damage_is_not_repaired_unasked(letters: list[Source], prepare_letters: Command, tmp_path: Path) -> None:
    """A lost shard, and a flipped bit, which only reading finds: the other shards may be days of work."""
    assert prepare_letters().code == 0
    shards = sorted((tmp_path / "run" / "data" / "one").glob("*.ds"))
    whole = {path.name: path.read_bytes() for path in shards}
    shards[0].unlink()
    refused = prepare_letters()
    assert refused.code == 2 and f"{shards[0]}: No such file" in refused.err and shards[1].exists()
    assert prepare_letters("--rebuild", "one").code == 0
    assert {path.name: path.read_bytes() for path in shards} == whole

    content = bytearray(whole[shards[2].name])
    content[0] ^= 1
    shards[2].write_bytes(content)
    assert prepare_letters().code == 0  # as fast as sizes and ends can be compared
    found = prepare_letters("--verify")
    assert found.code == 2 and "is not the file that manifest.json describes" in found.err
    assert shards[2].read_bytes() == content
    assert prepare_letters("--verify", "--rebuild", "one").code == 0
    assert {path.name: path.read_bytes() for path in shards} == whole


def test_a_folder_that_is_none_of_ours_is_left_alone(
    letters: list[Source], prepare_letters: Command, tmp_path: Path
) -> None:
    mine = tmp_path / "run" / "data" / "one" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    refused = prepare_letters()
    assert refused.code == 2 and "There is no manifest" in refused.err and mine.read_text() == "years of work"


def test_a_folder_that_appears_meanwhile_is_left_alone(
    letters: list[Source], prepare_letters: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "run" / "data" / "one" / "copied.ds"

    def filter_and_copy(self: Clean, doc: Document, original: Callable[..., bool] = Clean.filter) -> bool:
        if doc.text.startswith("letter"):  # not of the tokenizer's texts
            mine.parent.mkdir(exist_ok=True)
            mine.write_text("from another cluster")
        return original(self, doc)

    with monkeypatch.context() as patch:
        patch.setattr(Clean, "filter", filter_and_copy)
        result = prepare_letters()
    assert result.code == 2 and "appeared while one was prepared" in result.err
    assert mine.read_text() == "from another cluster"
    shutil.rmtree(mine.parent)
    assert prepare_letters().code == 0


def test_finished_tasks_of_an_unfinished_build_are_dropped_on_request_only(
    letters: list[Source], prepare_letters: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter(range(1000))

    def failing_filter(self: Clean, doc: Document, original: Callable[..., bool] = Clean.filter) -> bool:
        if doc.text.startswith("letter") and next(seen) == 40:
            raise KeyboardInterrupt
        return original(self, doc)

    with monkeypatch.context() as patch:
        patch.setattr(Clean, "filter", failing_filter)
        assert prepare_letters().code == 130
    edit(letters[0])
    dry = prepare_letters("--dry-run")
    begun = "2 finished tasks of an unfinished build, made from something else"
    assert dry.code == 0 and dry.out.splitlines()[0].startswith(f"one: stale, {begun}")
    before = snapshot(tmp_path / "run")
    result = prepare_letters()
    assert result.code == 2 and f"one: {begun}" in result.err and "--rebuild one" in result.err
    assert snapshot(tmp_path / "run") == before
    result = prepare_letters("--rebuild", "one")
    assert result.code == 0 and f"one: done again are {begun}" in result.out


REBUILD = """
import pickle, sys
from datapipes.pipeline import SourceBuild
from tests.datapipes.helpers import make_tokenizer

source, tokenizer_folder, data = pickle.loads(bytes.fromhex(sys.argv[1]))
SourceBuild(source, make_tokenizer(tokenizer_folder), data).build(2)
"""


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_killed_rebuild_leaves_the_old_shards(
    share: float, make_source: Callable[..., Source], tmp_path: Path
) -> None:
    """Killed with its workers after some of its bytes; the command again ends as a build from nothing does."""
    texts = [f"letter {number} about water, stone and a bridge" for number in range(4000)]
    source, tokenizer = make_source(texts, files=4, tasks=4), make_tokenizer(tmp_path / "tokenizer")
    SourceBuild(source, tokenizer, tmp_path / "data").build(workers=1)
    old = snapshot(tmp_path / "data" / "letters")
    edit(source)
    SourceBuild(source, tokenizer, tmp_path / "fresh").build(workers=1)
    expected = shard_bytes(tmp_path / "fresh" / "letters")

    arguments = pickle.dumps((source, tmp_path / "tokenizer", tmp_path / "data")).hex()
    environment = {**os.environ, "PYTHONPATH": "."}
    process = subprocess.Popen([sys.executable, "-c", REBUILD, arguments], env=environment, start_new_session=True)
    size = sum(len(content) for name, content in expected.items() if name.endswith(".ds"))
    while written(tmp_path / "data" / ".partial") <= share * size:
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert snapshot(tmp_path / "data" / "letters") == old

    SourceBuild(source, tokenizer, tmp_path / "data").build(workers=1)
    assert shard_bytes(tmp_path / "data" / "letters") == expected
    assert [path.name for path in (tmp_path / "data").iterdir()] in (["letters", ".partial"], [".partial", "letters"])


def written(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.ds"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # a task has just put its shuffled file in its place
            continue
    return total
