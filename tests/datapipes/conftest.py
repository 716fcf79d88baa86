"""Small inputs for the data pipelines: a tokenizer, sources of JSON lines, and what they hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datapipes.registry import Files, Source
from datapipes.tokenizer import LoadedTokenizer
from tests.datapipes.helpers import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[..., Source]:
    """Writes texts to JSON lines files, round robin, and gives the source that reads them."""

    def make(texts: list[str], files: int = 1, tasks: int = 1, name: str = "letters", **options: object) -> Source:
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        for number in range(files):
            rows = [{"id": str(row), "text": text} for row, text in enumerate(texts) if row % files == number]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{number:03d}.jsonl").write_text(lines, encoding="utf-8")
        return Source(
            name=name,
            category="web",
            licence="CC0-1.0",
            reader=Files(kind="files", path=str(folder), format="jsonl"),
            tasks=tasks,
            **options,
        )

    return make
