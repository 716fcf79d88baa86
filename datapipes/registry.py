"""What each source of a recipe is: where its text comes from, under which licence, and how it is prepared.

The tables are the YAML files of `sources/`; this module gives them types and rejects what does not fit.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datapipes.errors import SourceError
from foundation.yaml_text import YamlTextError, load

SOURCES_FOLDER = Path(__file__).parent / "sources"
CORPUS_FOLDER = Path(__file__).parent / "corpus"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Corpus(_Entry):
    """A file of the corpus that ships with this repository."""

    kind: Literal["corpus"]
    file: str = Field(description="Name under datapipes/corpus: one JSON object with id and text per line, xz.")


class MathGenerator(_Entry):
    """Our own worked mathematics (datapipes/math_problems.py)."""

    kind: Literal["math"]
    split: Literal["train", "heldout"]
    documents: int = Field(gt=0)


class FactsGenerator(_Entry):
    """Our own records with facts to retrieve (foundation/facts.py)."""

    kind: Literal["facts"]
    split: Literal["train", "heldout"]
    documents: int = Field(gt=0)
    min_sentences: int = Field(ge=0, description="Sentences of filling in the shortest record; one has about 8 tokens.")
    max_sentences: int = Field(ge=0)


class _Rows(_Entry):
    """Rows of JSON lines (plain, gzip, zstd, xz) or parquet files."""

    format: Literal["jsonl", "parquet"] = "parquet"
    files: list[str] = Field(["**/*"], min_length=1, description="Glob patterns below the folder or dataset.")
    text_columns: list[str] = Field(["text"], min_length=1, description="Joined by a blank line.")
    chat_column: str | None = Field(
        None, description="Messages with role and content, rendered as ChatML; takes the place of text_columns."
    )
    id_column: str = "id"
    blob_url: str | None = Field(
        None,
        description="For datasets of identifiers: where the text lies, gzip-compressed, with the first text column in "
        "{}. Encoding: the column src_encoding, or UTF-8.",
    )

    @property
    def content_columns(self) -> list[str]:
        return [self.chat_column] if self.chat_column else self.text_columns


class Files(_Rows):
    """Rows in a folder, local or on any storage that fsspec supports."""

    kind: Literal["files"]
    path: str = Field(description="Folder or fsspec URL such as s3://bucket/folder.")


class Hub(_Rows):
    """Rows of a dataset on the Hugging Face hub, or of its copy below `--raw`."""

    kind: Literal["hub"]
    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field("main", description="Branch, tag or commit; the manifest names the commit.")
    gated: bool = Field(False, description="Its terms must be accepted on the hub first.")


class Unreleased(_Entry):
    """Named in a published mixture, but never published."""

    kind: Literal["unreleased"]
    note: str


Reader = Annotated[Corpus | MathGenerator | FactsGenerator | Files | Hub | Unreleased, Field(discriminator="kind")]


class Source(_Entry):
    """One named source of a mixture."""

    name: str
    category: Literal["web", "web-multilingual", "code", "math", "reasoning"]
    licence: str
    reader: Reader
    published_as: list[str] = Field([], description="Other names that published mixtures have for it.")
    substitute: str | None = Field(None, description="Public source to use when this one cannot be had.")
    min_characters: int = Field(1, ge=1, description="Shorter documents are dropped.")
    min_tokens: int | None = Field(
        None, ge=1, description="Documents of fewer tokens, their end token included, are dropped: for long contexts."
    )
    max_tokens: int | None = Field(None, ge=1, description="Documents of more tokens are dropped.")
    deduplicate: Literal["exact", "minhash"] | None = Field(
        None, description="Keep one of equal documents, or of near-duplicates (which includes equal ones)."
    )
    decontaminate: bool = Field(False, description="Drop documents that contain a passage of an evaluation set.")
    tasks: int = Field(1, ge=1, description="Parallel tasks, and files of shards; part of the pipeline's identity.")

    @property
    def is_chat(self) -> bool:
        return isinstance(self.reader, _Rows) and self.reader.chat_column is not None


def load_registry(folder: Path = SOURCES_FOLDER) -> dict[str, Source]:
    """All sources of a folder's tables, by name.

    Raises:
        SourceError: for a table that cannot be used, naming the file, the source and the key.
    """
    registry: dict[str, Source] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            table = load(path.read_text(encoding="utf-8"))
        except (YamlTextError, UnicodeDecodeError) as error:
            raise SourceError(f"The table of sources {path} is not valid YAML: {error}") from None
        if not isinstance(table, dict):
            raise SourceError(f"The table of sources {path} must map source names to their entries.")
        for name, entry in table.items():
            if name in registry:
                raise SourceError(f"Source {name!r} in {path} is already in another table. Rename one of the two.")
            registry[name] = _parse(name, entry, path)
    return registry


def _parse(name: str, entry: Any, path: Path) -> Source:
    try:
        return Source.model_validate({"name": name, **entry})
    except (ValidationError, TypeError) as error:
        raise SourceError(f"Source {name!r} in {path} is not valid: {error}") from None


@cache
def _registry() -> dict[str, Source]:
    return load_registry()


def find_source(name: str) -> Source:
    """The source of that name.

    Raises:
        SourceError: if there is none, with the nearest name that exists.
    """
    registry = _registry()
    if name not in registry:
        renamed = next((source.name for source in registry.values() if name in source.published_as), None)
        if renamed is not None:
            raise SourceError(f"The source published as {name!r} is called {renamed!r} here. Use that name everywhere.")
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise SourceError(f"There is no source {name!r}.{hint} The tables in {SOURCES_FOLDER} name all; add it there.")
    return registry[name]
