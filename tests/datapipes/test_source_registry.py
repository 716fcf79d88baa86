from pathlib import Path

import pytest

from datapipes.errors import SourceError
from datapipes.prepare import sources_of
from datapipes.registry import CORPUS_FOLDER, Corpus, find_source, load_registry
from foundation.recipe import load_recipe


@pytest.mark.parametrize("path", sorted(Path("recipes/tiny").glob("pretrain*.yaml")), ids=str)
def test_every_source_of_the_tiny_pretraining_recipes_is_registered(path: Path) -> None:
    for name in sources_of([load_recipe(path)]):
        assert find_source(name).name == name


def test_every_corpus_file_is_a_source_and_the_other_way_round() -> None:
    named = {source.reader.file for source in load_registry().values() if isinstance(source.reader, Corpus)}
    assert named == {path.name for path in CORPUS_FOLDER.glob("*.jsonl.xz")}


def test_a_misspelt_source_gets_the_nearest_name() -> None:
    with pytest.raises(SourceError, match="Did you mean 'tiny-web-en'"):
        find_source("tiny-web-eng")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{category: web, licence: x, reader: {kind: corpus, fil: a}}", "fil"),
        ("{category: webb, licence: x, reader: {kind: corpus, file: a}}", "category"),
        ("{category: web, licence: x, reader: {kind: tape, file: a}}", "tape"),
        ("{category: web, licence: x, tasks: 0, reader: {kind: corpus, file: a}}", "tasks"),
        ("{category: web, licence: x, tasks: '2', reader: {kind: corpus, file: a}}", "tasks"),
        ("[1, 2]", "'odd'"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: str, complaint: str) -> None:
    table = tmp_path / "more.yaml"
    table.write_text(f"odd: {entry}\n", encoding="utf-8")
    with pytest.raises(SourceError, match=complaint) as error:
        load_registry(tmp_path)
    assert "odd" in str(error.value)
    assert str(table) in str(error.value)
