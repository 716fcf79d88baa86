import itertools
import random
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from datapipes.errors import SourceError
from datapipes.pipeline import SourceBuild
from datapipes.registry import Source
from datapipes.tokenizer import LoadedTokenizer
from tests.datapipes.helpers import read_documents, shard_bytes

MakeSource = Callable[..., Source]
VOCABULARY = [f"{first}{second}" for first in ("ba", "ke", "mi", "lo", "su", "ra", "ti") for second in "abcdefghijklm"]


def documents(count: int, generator: random.Random) -> list[list[str]]:
    return [generator.choices(VOCABULARY, k=generator.randint(40, 120)) for _ in range(count)]


def run(source: Source, tokenizer: LoadedTokenizer, data: Path, workers: int = 1) -> tuple[SourceBuild, list[str]]:
    build = SourceBuild(source, tokenizer, data)
    build.build(workers)
    kept = [tokenizer.tokenizer.decode(document[:-1]) for document in read_documents(data / source.name)]
    return build, kept


@pytest.mark.parametrize("tasks", [1, 3])
def test_one_of_equal_documents_is_kept(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path, tasks: int
) -> None:
    generator = random.Random(0)
    originals = [" ".join(words) for words in documents(80, generator)]
    copies = [generator.choice(originals) for _ in range(60)]
    mixed = generator.sample([*originals, *copies], 140)
    build, kept = run(make_source(mixed, files=5, tasks=tasks, deduplicate="exact"), tokenizer, tmp_path / "data")
    assert sorted(kept) == sorted(originals)
    assert build.summary(rebuilt=True).dropped == {"duplicate": 60}
    assert not (tmp_path / "data/letters/dedup").exists()


def test_near_duplicates_precision_and_recall(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    """Copies with a changed word are near-duplicates; documents that differ in their numbers only are not copies."""
    generator = random.Random(1)
    originals = documents(120, generator)
    copies = []
    for words in generator.sample(originals, 50):
        copy = list(words)
        copy[generator.randrange(len(copy))] = "changed"
        copies.append(copy)
    numbered = [" ".join(f"item {a} plus {b} gives {a + b}," for b in range(a, a + 12)) for a in range(0, 600, 20)]
    texts = [" ".join(words) for words in [*originals, *copies]] + numbered
    source = make_source(generator.sample(texts, len(texts)), files=3, tasks=2, deduplicate="minhash")
    build, kept = run(source, tokenizer, tmp_path / "data")
    dropped = set(texts) - set(kept)
    pairs = {" ".join(copy) for copy in copies} | {" ".join(words) for words in originals}
    rightly = sum(text in pairs for text in dropped)
    recall, precision = rightly / len(copies), rightly / max(len(dropped), 1)
    print(f"MinHash: recall {recall:.3f}, precision {precision:.3f}")
    assert recall > 0.9
    assert precision == 1.0
    assert set(numbered) <= set(kept)
    assert build.summary(rebuilt=True).dropped == {"near-duplicate": len(dropped)}


def test_workers_change_no_byte(make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    generator = random.Random(2)
    texts = [" ".join(words) for words in documents(30, generator)]
    source = make_source(texts + texts[:10], files=4, tasks=4, deduplicate="minhash")
    run(source, tokenizer, tmp_path / "one", workers=1)
    run(source, tokenizer, tmp_path / "two", workers=2)
    assert shard_bytes(tmp_path / "one/letters") == shard_bytes(tmp_path / "two/letters")


def test_an_interrupted_build_goes_on_after_the_finished_stages(
    make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(words) for words in documents(40, random.Random(3))]
    source = make_source(texts + texts[:7], files=4, tasks=4, deduplicate="exact")
    run(source, tokenizer, tmp_path / "whole")
    countdown = itertools.count()

    def fail_in_the_last_stage(self: SourceBuild, *_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("datapipes.pipeline.ShardWriter.run", fail_in_the_last_stage)
        run(source, tokenizer, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr("datapipes.dedup.ExactDedupSignature.get_hashes", lambda *_: next(countdown))
        run(source, tokenizer, tmp_path / "broken")
    assert next(countdown) == 0  # no signature was computed twice
    assert shard_bytes(tmp_path / "whole/letters") == shard_bytes(tmp_path / "broken/letters")


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_input_that_changes_between_the_stages_is_noticed(
    storage: str, make_source: MakeSource, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    """Of a local file by its size, of any other storage's by the number of documents."""
    texts = [" ".join(words) for words in documents(20, random.Random(4))]
    source = make_source(texts, deduplicate="exact")
    path = f"{source.reader.path}/000.jsonl"
    if storage == "memory":
        fsspec.filesystem("memory").put_file(path, f"memory://{path}")
        path = f"memory://{path}"
        source = source.model_copy(
            update={"reader": source.reader.model_copy(update={"path": path.rpartition("/")[0]})}
        )
    build = SourceBuild(source, tokenizer, tmp_path / "data")
    stages = build.stages()

    def stages_with_a_growing_file() -> object:
        yield from stages[:-1]
        with fsspec.open(path, "a") as file:
            file.write('{"id": "late", "text": "a late letter"}\n')
        yield stages[-1]

    build.stages = stages_with_a_growing_file
    by_count = "read 20 documents to find duplicates and then 21"
    with pytest.raises(SourceError, match=by_count if storage == "memory" else "was changed while it was prepared"):
        build.build(workers=1)
