"""From a source's raw form to datatrove documents. Unlike datatrove's own readers, these never skip what they cannot
read: a broken line or an absent column stops the task with the name of the file."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from datapipes.chat import render
from datapipes.clean import Clean
from datapipes.errors import SourceError
from datapipes.inputs import Input, InputFile, content_of, find_input, local_file, reason_of
from datapipes.math_problems import math_document
from datapipes.registry import CORPUS_FOLDER, Corpus, FactsGenerator, Files, Hub, MathGenerator, Source
from foundation.facts import facts_document
from foundation.limits import TooLargeError, bounded_lines, max_item_bytes, too_large


class RowReader(PipelineStep):
    """Rows of JSON lines or parquet files; the documents of rank r are those of files r, r + world_size, ...

    What the local files among them held goes to `contents`, if given: see `read_contents`.
    """

    type = "📖 - READER"
    name = "Rows"
    more_columns: tuple[str, ...] = ()  # that `_document` looks at, where a file has them

    def __init__(self, source_name: str, rows: Files | Hub, found: Input, contents: Path | None = None) -> None:
        super().__init__()
        self.source_name = source_name
        self.rows = rows
        self.files = found.files
        self.folder = get_datafolder(found.folder)
        self.contents = contents

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        seen: dict[str, str] = {}
        for file in self.files[rank::world_size]:
            path = file.name
            rows = self._parquet_rows(path) if self.rows.format == "parquet" else self._json_rows(path)
            for number, row in enumerate(rows):
                document = self._document(row, path, number)
                self.update_doc_stats(document)
                yield document
            if self.contents is not None and file.content is None:
                seen[path] = self._content_read(file)
        if seen and self.contents is not None:
            self.contents.mkdir(parents=True, exist_ok=True)
            (self.contents / f"{rank:05d}.json").write_text(json.dumps(seen), encoding="utf-8")

    def _content_read(self, file: InputFile) -> str:
        """Of a local file that was read just now, so that it is still in memory.

        Only size and time of modification are compared: inodes can differ between machines that share a disk.
        """
        path = self._full_path(file.name)
        content, now = content_of(path), local_file(path, file.name)
        assert file.stamp is not None and now.stamp is not None
        if (now.size, now.stamp[1]) != (file.size, file.stamp[1]):
            raise SourceError(
                f"{path} of source {self.source_name} was changed while it was prepared. Run the same command again; "
                f"leave the files alone until it has ended."
            )
        return content

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
            raise SourceError(
                f"Row {number} of {self._full_path(path)}, column {self.rows.chat_column!r}: {error}. Correct the "
                f"file, or chat_column of {self.source_name} in the table of sources."
            ) from None

    def _blob(self, row: dict[str, Any]) -> str:
        assert self.rows.blob_url is not None
        url = self.rows.blob_url.format(row[self.rows.text_columns[0]])
        options = {"anon": True} if url.startswith("s3://") else {}
        try:
            with fsspec.open(url, "rb", compression="gzip", **options) as file:
                content = file.read(max_item_bytes() + 1)
                if len(content) > max_item_bytes():
                    raise SourceError(f"Source {self.source_name}: {too_large(url)}")
                return content.decode(row.get("src_encoding") or "utf-8", errors="replace")
        except (OSError, LookupError) as error:
            raise SourceError(f"{url} of source {self.source_name} cannot be read: {error}. Try again later.") from None

    def _json_rows(self, path: str) -> Iterator[dict[str, Any]]:
        number = 0
        try:
            with self.folder.open(path, "rb", compression="infer") as file:
                for number, line in enumerate(bounded_lines(file), start=1):
                    row = orjson.loads(line)
                    if not isinstance(row, dict):
                        raise SourceError(f"Line {number} of {self._full_path(path)} is no JSON object.")
                    yield row
        except SourceError:
            raise
        except TooLargeError as error:
            raise SourceError(f"{self._full_path(path)}: {error}") from None
        except orjson.JSONDecodeError as error:
            raise SourceError(f"Line {number} of {self._full_path(path)} is not JSON: {error}.") from None
        except Exception as error:  # every storage and compression has errors of its own
            raise SourceError(
                f"{self._full_path(path)} cannot be read after line {number}: {reason_of(error)}"
            ) from error

    def _parquet_rows(self, path: str) -> Iterator[dict[str, Any]]:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        wanted = {*self.rows.content_columns, self.rows.id_column, "src_encoding", *self.more_columns}
        try:
            with self.folder.open(path, "rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
                names = parquet.schema_arrow.names
                self._check_columns(names, path)
                for batch in parquet.iter_batches(batch_size=1000, columns=[name for name in names if name in wanted]):
                    yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise SourceError(f"{self._full_path(path)} is not a readable parquet file: {error}.") from None
        except SourceError:
            raise
        except Exception as error:  # every storage has errors of its own
            raise SourceError(f"{self._full_path(path)} cannot be read: {reason_of(error)}") from error

    def _check_columns(self, present: Collection[str], path: str) -> None:
        for column in self.rows.content_columns:
            if column not in present:
                raise SourceError(
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


def read_contents(folder: Path) -> dict[str, str]:
    """Name and content of every local file that readers have noted in `folder`."""
    found: dict[str, str] = {}
    for path in folder.glob("*.json"):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def reader_of(source: Source, found: Input, contents: Path | None = None) -> PipelineStep:
    """The first step of the source's pipeline; `contents` as in `RowReader`."""
    if isinstance(source.reader, Generator):
        return GeneratorReader(source.reader)
    rows = source.reader
    if isinstance(rows, Corpus):
        rows = Files(kind="files", path=str(CORPUS_FOLDER), format="jsonl")
    assert isinstance(rows, Files | Hub)
    return RowReader(source.name, rows, found, contents)


def texts_of(source: Source) -> Iterator[str]:
    """The source's cleaned texts, read in this process (to train a tokenizer)."""
    for document in Clean(source.min_characters).run(reader_of(source, find_input(source)).run()):
        yield document.text
