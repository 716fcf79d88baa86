"""What is prepared against what is asked for now: what means the same is done, and no change is missed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from datapipes.decontaminate import build_index
from datapipes.pipeline import SourceBuild
from datapipes.record import hash_before_records
from datapipes.registry import Source, find_source
from datapipes.state import State, state_of
from datapipes.tokenizer import EOS, LoadedTokenizer
from foundation.shards.errors import ShardError
from nanotron_ext.data.loader import MixtureLoader
from tests.datapipes import hub_server
from tests.datapipes.helpers import make_tokenizer, shard_bytes
from tests.nanotron_ext.data.prepared_data import make_recipe

MakeSource = Callable[..., Source]
TEXTS = [f"letter {number} about water and stone" for number in range(40)]


def build(source: Source, tokenizer: LoadedTokenizer, data: Path, **options: object) -> None:
    SourceBuild(source, tokenizer, data, **options).build(workers=1)  # type: ignore[arg-type]


def look(
    source: Source, tokenizer: LoadedTokenizer, data: Path, said: list[str] | None = None, **options: object
) -> State:
    lines = said if said is not None else []
    return state_of(SourceBuild(source, tokenizer, data, **options), lines.append)  # type: ignore[arg-type]


def reload(tokenizer: LoadedTokenizer, content: bytes) -> LoadedTokenizer:
    """The tokenizer whose file has these bytes now, as a recipe loads it."""
    tokenizer.file.write_bytes(content)
    loaded = Tokenizer.from_str(content.decode())
    return LoadedTokenizer(tokenizer.file, hashlib.sha256(content).hexdigest(), loaded, EOS, 1)


def train(data: Path, tokenizer: LoadedTokenizer) -> None:
    more = [f"tokenizer.tokenizer_name_or_path={tokenizer.file.parent}"]
    MixtureLoader(make_recipe(data, [(1, {"letters": 1.0})], more=more), 0, 1)


LAYOUTS: dict[str, Callable[[bytes], bytes]] = {
    "line end": lambda content: content + b"\n",
    "one line": lambda content: json.dumps(json.loads(content)).encode(),
    "wide": lambda content: json.dumps(json.loads(content), indent=7, ensure_ascii=False).encode(),
    "sorted keys": lambda content: json.dumps(json.loads(content), sort_keys=True).encode(),
    "Windows": lambda content: content.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tokenizer_laid_out_otherwise_is_the_same(layout: str, make_source: MakeSource, tmp_path: Path) -> None:
    tokenizer, source, data = make_tokenizer(tmp_path / "tokenizer"), make_source(TEXTS), tmp_path / "data"
    build(source, tokenizer, data)
    original = tokenizer.file.read_bytes()
    assert LAYOUTS[layout](original) != original
    same = reload(tokenizer, LAYOUTS[layout](original))
    assert look(source, same, data).kind == "done"
    train(data, same)

    content = json.loads(original)
    content["model"]["merges"].pop()
    other = reload(tokenizer, LAYOUTS[layout](json.dumps(content).encode()))
    state = look(source, other, data)
    assert state.kind == "stale"
    assert state.reasons == (f"tokenizer: {same.content_sha256[:12]} -> {other.content_sha256[:12]}",)
    with pytest.raises(ShardError, match="The tokens were made by tokenizer"):
        train(data, other)


def test_what_changes_in_the_entry_is_named(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    source, data = make_source(TEXTS, files=2, min_characters=2), tmp_path / "data"
    build(source, tokenizer, data)

    def reasons(reader: dict[str, object] | None = None, **entry: object) -> tuple[str, ...]:
        other = source.reader.model_copy(update=reader or {})
        return look(source.model_copy(update={"reader": other, **entry}), tokenizer, data).reasons

    assert reasons(licence="MIT", category="code", substitute="other", published_as=["x"]) == ()
    assert reasons({"id_column": "url", "files": ["*.jsonl"], "path": f"{source.reader.path}/."}) == ()
    assert reasons(min_characters=5) == ("min_characters: 2 -> 5",)
    assert reasons(min_characters=1, tasks=2) == ("min_characters: 2 -> default", "tasks: default -> 2")
    assert reasons({"text_columns": ["id", "text"]}) == ("reader.text_columns: default -> ['id', 'text']",)
    assert reasons({"files": ["000.jsonl"]})[0] == "files: 001.jsonl: gone"


def edit_in_place(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"water", b"metal", 1))
    assert path.stat().st_size == len(content)


def edit_and_turn_back_the_clock(path: Path) -> None:
    before = path.stat()
    edit_in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another_in_its_place(path: Path) -> None:
    before, other = path.stat(), path.with_suffix(".other")
    shutil.copy2(path, other)
    edit_and_turn_back_the_clock(other)
    other.replace(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino != before.st_ino


RAW_CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (edit_in_place, "files: 001.jsonl: other content, {size:,} bytes as before"),
    "edited, old time": (edit_and_turn_back_the_clock, "files: 001.jsonl: other content"),
    "replaced, old time": (put_another_in_its_place, "files: 001.jsonl: other content"),
    "longer": (lambda path: path.open("ab").write(b"\n"), "files: 001.jsonl: {size:,} -> {longer:,} bytes"),
    "gone": (Path.unlink, "files: 001.jsonl: gone"),
    "renamed": (lambda path: path.rename(path.with_name("9.jsonl")), "files: 001.jsonl: gone; 9.jsonl: new"),
    "one more": (lambda path: shutil.copy(path, path.with_name("2.jsonl")), "files: 2.jsonl: new"),
}  # fmt: skip


@pytest.mark.parametrize("change", RAW_CHANGES)
def test_a_changed_raw_file_is_noticed(
    change: str, make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    source, data = make_source(TEXTS, files=2), tmp_path / "data"
    build(source, tokenizer, data)
    path = Path(source.reader.path, "001.jsonl")
    size = path.stat().st_size
    make, reason = RAW_CHANGES[change]
    make(path)
    state = look(source, tokenizer, data)
    assert state.kind == "stale"
    assert state.reasons[0].startswith(reason.format(size=size, longer=size + 1))


def test_the_same_contents_are_the_same_wherever_they_lie(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    """Touched, copied, linked from a backup: read once to see, and then known again."""
    source, data = make_source(TEXTS, files=2), tmp_path / "data"
    build(source, tokenizer, data)
    raw = Path(source.reader.path)
    for path in raw.iterdir():
        path.touch()
    elsewhere = shutil.copytree(raw, tmp_path / "elsewhere")
    moved = source.model_copy(update={"reader": source.reader.model_copy(update={"path": str(elsewhere)})})
    for now, times in ((source, "touched"), (moved, "copied")):
        said: list[str] = []
        state = look(now, tokenizer, data, said)
        assert state.kind == "done", (times, state.reasons)
        assert len(said) == 1 and "reading 2 files (0.0 GB) whose times changed" in said[0]
        assert state.record is not None
        state.record.write(data / "letters")
        again = look(now, tokenizer, data, said)
        assert (again.kind, again.record, len(said)) == ("done", None, 1)


def test_raw_files_that_are_gone_altogether_leave_what_is_prepared(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    source, data = make_source(TEXTS), tmp_path / "data"
    build(source, tokenizer, data)
    shutil.rmtree(source.reader.path)
    now = SourceBuild(source, tokenizer, data)
    assert now.unreachable and "finds no file" in str(now.unreachable) and state_of(now, print).kind == "done"
    stricter = source.model_copy(update={"min_characters": 9})
    assert look(stricter, tokenizer, data).reasons == ("min_characters: default -> 9",)


def benchmark(folder: Path, name: str, *items: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"q": item}) + "\n" for item in items))


def test_evaluation_sets_count_by_their_passages(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    source, data, sets = make_source(TEXTS, decontaminate=True), tmp_path / "data", tmp_path / "sets"
    item, other = (" ".join(f"{letter}{number}" for number in range(20)) for letter in "vw")
    benchmark(sets, "quiz", item)
    build(source, tokenizer, data, benchmarks=build_index(sets))

    def reasons() -> tuple[str, ...]:
        return look(source, tokenizer, data, benchmarks=build_index(sets)).reasons

    assert reasons() == ()
    benchmark(sets, "short", "nothing that long documents could share")
    benchmark(sets, "twice", item)
    assert reasons() == ()  # these drop no other documents
    (sets / "quiz.jsonl").unlink()
    assert reasons() == ()
    benchmark(sets, "more", other)
    (found,) = [reason for reason in reasons() if "more" in reason]
    assert found.startswith("benchmarks.more: none -> ")
    plain = source.model_copy(update={"decontaminate": False})
    assert look(plain, tokenizer, data).reasons[0] == "decontaminate: True -> default"


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard gone": (lambda folder: next(folder.glob("*.ds")).unlink(), "No such file"),
    "shard cut": (lambda folder: os.truncate(next(folder.glob("*.ds")), 10), "10 bytes, but the manifest promises"),
    "index cut": (lambda folder: os.truncate(next(folder.glob("*.index")), 8), "8 bytes, but the manifest promises"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "shards but no manifest"),
    "no JSON": (lambda folder: os.truncate(folder / "manifest.json", 30), "not a valid manifest"),
    "someone's files": (lambda folder: [path.unlink() for path in folder.glob("*.*")], "There is no manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_stale_and_not_missing(
    damage: str, make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    source, data = make_source(TEXTS), tmp_path / "data"
    assert look(source, tokenizer, data).kind == "missing"
    (data / "letters").mkdir(parents=True)
    assert look(source, tokenizer, data).kind == "missing"  # an empty folder holds nothing to lose
    build(source, tokenizer, data)
    assert look(source, tokenizer, data).kind == "done"
    make, reason = DAMAGES[damage]
    make(data / "letters")
    state = look(source, tokenizer, data)
    assert state.kind == "stale" and reason in state.reasons[0]


def without_record(folder: Path, pipeline_sha256: str) -> None:
    """As the release before records left it."""
    (folder / "prepared_from.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["tokenizer_content_sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"pipeline_sha256": pipeline_sha256}))


# Of tiny-math-heldout with `make_tokenizer`'s tokenizer, as that release wrote them: plain, and decontaminated.
OLD_HASHES = {
    False: "bf56572fac347698b5a3eafb1d108b993dc7cc58be9591c8add6fd4bd67b19fc",
    True: "390748b904479492dcafe647b4f47347c13f6b949e1865be168bb1d48d0f9768",
}


@pytest.mark.parametrize("decontaminate", [False, True])
def test_what_an_earlier_release_prepared_is_known_by_its_hash(
    decontaminate: bool, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    source = find_source("tiny-math-heldout").model_copy(update={"decontaminate": decontaminate})
    benchmark(tmp_path / "sets", "quiz", " ".join(f"w{number}" for number in range(20)))
    data, options = tmp_path / "data", {"benchmarks": build_index(tmp_path / "sets")}
    build(source, tokenizer, data, **options)
    folder = data / source.name
    made = shard_bytes(folder)
    without_record(folder, OLD_HASHES[decontaminate])
    state = look(source, tokenizer, data, **options)
    assert state.kind == "done" and state.record is not None
    assert state.record.model_dump_json(indent=1).encode() + b"\n" == made["prepared_from.json"]
    other = look(source.model_copy(update={"min_characters": 5}), tokenizer, data, **options)
    assert other.kind == "stale" and "earlier release" in other.reasons[0]


@pytest.mark.parametrize("content", [b"old", b"new"])
def test_what_an_earlier_release_took_from_the_hub_is_compared_with_its_commit(
    content: bytes, tokenizer: LoadedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest names the commit: what the hub lists there tells whether the files are the same now."""
    reader = {"kind": "hub", "dataset": "someone/letters", "format": "jsonl", "files": ["train/*"]}
    entry = {"name": "letters", "category": "web", "licence": "MIT", "reader": reader}
    source, data = Source.model_validate(entry), tmp_path / "data"
    rows = {word: json.dumps({"text": f"a letter of {word.decode()} times"}).encode() for word in (b"old", b"new")}
    with hub_server.serving(monkeypatch) as hub:
        commit = hub.commit("someone/letters", {"train/0.jsonl": rows[b"old"], "README.md": b"one"})
        build(source, tokenizer, data)
        without_record(data / "letters", hash_before_records(source, tokenizer, None, commit))
        hub.commit("someone/letters", {"train/0.jsonl": rows[content], "README.md": b"two"})
        state = look(source, tokenizer, data)
        assert state.kind == ("done" if content == b"old" else "stale")
        assert content == b"old" or state.reasons[0].startswith("files: train/0.jsonl: other content")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert look(source, tokenizer, data).kind == "done"  # as far as can be told
