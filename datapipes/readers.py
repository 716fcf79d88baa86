"""From a source's raw form to datatrove documents. Unlike datatrove's own readers, these never skip what they cannot
read: a broken line or an absent column stops the task with the name of the file."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from datapipes.chat import render
from datapipes.clean import Clean
from datapipes.errors import DataError
from datapipes.facts import VERSION as FACTS_VERSION
from datapipes.facts import facts_document
from datapipes.math_problems import VERSION as MATH_VERSION
from datapipes.math_problems import math_document
from datapipes.registry import (
    CORPUS_FOLDER,
    Corpus,
    FactsGenerator,
    Files,
    Hub,
    MathGenerator,
    Source,
    Unreleased,
)


@dataclass(frozen=True)
class Input:
    """A source's content at the time of preparation: which files, and what identifies them."""

    revision: str
    folder: str = ""
    files: tuple[str, ...] = ()  # relative to the folder


class RowReader(PipelineStep):
    """Rows of JSON lines or parquet files; the documents of rank r are those of files r, r + world_size, ..."""

    type = "📖 - READER"
    name = "Rows"

    def __init__(self, source_name: str, rows: Files | Hub, found: Input) -> None:
        super().__init__()
        self.source_name = source_name
        self.rows = rows
        self.files = found.files
        self.folder = get_datafolder(found.folder)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for path in self.files[rank::world_size]:
            rows = self._parquet_rows(path) if self.rows.format == "parquet" else self._json_rows(path)
            for number, row in enumerate(rows):
                document = self._document(row, path, number)
                self.update_doc_stats(document)
                yield document

    def _document(self, row: dict[str, Any], path: str, number: int) -> Document:
        self._check_columns(row, path)
        if self.rows.blob_url:
            text = self._blob(row)
        elif self.rows.chat_column:
            text = self._chat(row, path, number)
        else:
            text = "\n\n".join(str(row[column] or "") for column in self.rows.text_columns)
        return Document(text=text, id=str(row.get(self.rows.id_column, f"{path}/{number}")))

    def _chat(self, row: dict[str, Any], path: str, number: int) -> str:
        assert self.rows.chat_column is not None
        try:
            return render(row[self.rows.chat_column] or [])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Row {number} of {self._full_path(path)}, column {self.rows.chat_column!r}: {error}. Correct the "
                f"file, or chat_column of {self.source_name} in the table of sources."
            ) from None

    def _blob(self, row: dict[str, Any]) -> str:
        assert self.rows.blob_url is not None
        url = self.rows.blob_url.format(row[self.rows.text_columns[0]])
        options = {"anon": True} if url.startswith("s3://") else {}
        try:
            with fsspec.open(url, "rb", compression="gzip", **options) as file:
                return file.read().decode(row.get("src_encoding") or "utf-8", errors="replace")
        except (OSError, LookupError) as error:
            raise DataError(f"{url} of source {self.source_name} cannot be read: {error}. Try again later.") from None

    def _json_rows(self, path: str) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            with self.folder.open(path, "r", compression="infer", encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):  # noqa: B007 (the message needs it)
                    yield orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"Line {number} of {self._full_path(path)} is not JSON: {error}.") from None
        except Exception as error:  # every storage and compression has errors of its own
            raise DataError(f"{self._full_path(path)} cannot be read after line {number}: {_reason(error)}") from error

    def _parquet_rows(self, path: str) -> Iterator[dict[str, Any]]:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        wanted = {*self.rows.content_columns, self.rows.id_column, "src_encoding"}
        try:
            with self.folder.open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
                names = parquet.schema_arrow.names
                self._check_columns(names, path)
                for batch in parquet.iter_batches(batch_size=1000, columns=[name for name in names if name in wanted]):
                    yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise DataError(f"{self._full_path(path)} is not a readable parquet file: {error}.") from None
        except DataError:
            raise
        except Exception as error:  # every storage has errors of its own
            raise DataError(f"{self._full_path(path)} cannot be read: {_reason(error)}") from error

    def _check_columns(self, present: Collection[str], path: str) -> None:
        for column in self.rows.content_columns:
            if column not in present:
                raise DataError(
                    f"{self._full_path(path)} has no column {column!r}; it has {', '.join(present)}. "
                    f"Correct the columns of {self.source_name} in the table of sources."
                )

    def _full_path(self, path: str) -> str:
        return str(self.folder.resolve_paths(path))


Generator = MathGenerator | FactsGenerator


class GeneratorReader(PipelineStep):
    """Generated documents; rank r gets documents r, r + world_size, ..."""

    type = "📖 - READER"
    name = "Generator"

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for number in range(rank, self.generator.documents, world_size):
            document = self._document(number)
            self.update_doc_stats(document)
            yield document

    def _document(self, number: int) -> Document:
        generator = self.generator
        if isinstance(generator, MathGenerator):
            return math_document(generator.split, number)
        return facts_document(generator.split, number, (generator.min_sentences, generator.max_sentences))


def reader_of(source: Source, found: Input) -> PipelineStep:
    """The first step of the source's pipeline."""
    if isinstance(source.reader, Generator):
        return GeneratorReader(source.reader)
    rows = source.reader
    if isinstance(rows, Corpus):
        rows = Files(kind="files", path=str(CORPUS_FOLDER), format="jsonl")
    assert isinstance(rows, Files | Hub)
    return RowReader(source.name, rows, found)


def find_input(source: Source, raw_folder: Path | None = None) -> Input:
    """What the source consists of now. A hub dataset is read from `raw_folder/<owner>/<name>` if that exists.

    Raises:
        DataError: if it cannot be had, saying what to do.
    """
    reader = source.reader
    if isinstance(reader, MathGenerator):
        return Input(f"math-{MATH_VERSION}")
    if isinstance(reader, FactsGenerator):
        return Input(f"facts-{FACTS_VERSION}")
    if isinstance(reader, Unreleased):
        raise DataError(f"Source {source.name} cannot be had: {reader.note}{_instead(source)}")
    if isinstance(reader, Corpus):
        path = CORPUS_FOLDER / reader.file
        if not path.is_file():
            raise DataError(f"Source {source.name} reads {path}, which is missing. Restore it from the repository.")
        revision = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        return Input(revision, str(CORPUS_FOLDER), (reader.file,))
    if isinstance(reader, Files):
        return _listed(source, reader.path, reader.files)
    if raw_folder is not None and (raw_folder / reader.dataset).is_dir():
        return _listed(source, str(raw_folder / reader.dataset), reader.files)
    commit = _hub_commit(source, reader)
    found = _listed(source, f"hf://datasets/{reader.dataset}@{commit}", reader.files)
    return Input(commit, found.folder, found.files)


def _listed(source: Source, path: str, patterns: list[str]) -> Input:
    try:
        folder = get_datafolder(path)
        names = sorted({name for pattern in patterns for name in folder.list_files(glob_pattern=pattern)})
        sizes = [folder.info(name)["size"] for name in names]
    except Exception as error:  # every storage has errors of its own
        raise DataError(
            f"Source {source.name} cannot list {path}: {_reason(error)} Check the address and the credentials."
        ) from error
    if not names:
        raise DataError(f"Source {source.name} finds no file {' or '.join(patterns)} below {path}. Correct the entry.")
    digest = hashlib.sha256(repr(list(zip(names, sizes, strict=True))).encode()).hexdigest()
    return Input(f"files:{digest}", path, tuple(names))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}."


def _hub_commit(source: Source, reader: Hub) -> str:
    try:
        commit = HfApi().dataset_info(reader.dataset, revision=reader.revision).sha
    except (GatedRepoError, RepositoryNotFoundError):
        raise DataError(
            f"The hub refuses {reader.dataset} of source {source.name}: accept its terms on its page and log in with "
            f"`hf auth login`.{_instead(source)}"
        ) from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"The hub cannot be reached for {reader.dataset} of source {source.name} ({type(error).__name__}). Copy "
            f"the dataset to RAW/{reader.dataset} and give --raw RAW, or try again online.{_instead(source)}"
        ) from None
    assert commit is not None
    return commit


def _instead(source: Source) -> str:
    return f" Or use the source {source.substitute} in its place." if source.substitute else ""


def texts_of(source: Source) -> Iterator[str]:
    """The source's cleaned texts, read in this process (to train a tokenizer)."""
    for document in Clean(source.min_characters).run(reader_of(source, find_input(source)).run()):
        yield document.text
