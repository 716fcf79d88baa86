"""What a prepared source was made from, beside its shards: `prepared_from.json`.

It holds everything that decides the shards' bytes, so that a later preparation can tell whether they are still what the
recipe asks for and, where not, name what differs.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from datapipes.decontaminate import BenchmarkIndex
from datapipes.errors import SourceError
from datapipes.inputs import Input
from datapipes.registry import Corpus, Files, Hub, Source
from datapipes.shards import read_manifest
from datapipes.tokenizer import LoadedTokenizer

RECORD_FILE = "prepared_from.json"
VERSION = 1  # raise it with every change, ours or datatrove's, that changes the shards
NOT_IN_SHARDS = {"category", "licence", "published_as", "substitute"}  # keys of a source that change no byte
# Keys of its reader that change none either: they say where files lie, which count by their contents.
PLACE = {"kind", "path", "dataset", "revision", "gated", "file", "files", "id_column"}


class Record(BaseModel):
    """What decides the shards of a source."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["prepared-from/1"] = "prepared-from/1"
    version: int
    settings: dict[str, Any]  # of its entry in the table of sources, without defaults
    tokenizer: str  # SHA-256 of its content
    eos_token_id: int
    passages: str | None  # SHA-256 of all passages that it was decontaminated against
    benchmarks: dict[str, str] | None  # of the passages of each evaluation set
    input: Input

    def sha256(self) -> str:
        """Of what decides the shards. A local file counts by its content or, where that is not known, its stamp."""
        identity = self.model_dump(mode="json", exclude={"format", "benchmarks", "input"})
        files = [(file.name, file.size, file.content or file.stamp) for file in self.input.files]
        identity["input"] = files or self.input.revision
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def differences(self, now: "Record") -> Iterator[str]:
        """As `key: old -> new`; inputs apart, which `datapipes.inputs.compare` compares."""
        yield from _differing({"version": self.version, **self.settings}, {"version": now.version, **now.settings})
        yield from _differing({"tokenizer": self.tokenizer[:12]}, {"tokenizer": now.tokenizer[:12]})
        yield from _differing({"eos_token_id": self.eos_token_id}, {"eos_token_id": now.eos_token_id})
        if self.passages != now.passages:
            yield from _differing(_short(self.benchmarks or {}), _short(now.benchmarks or {}), absent="none")

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{RECORD_FILE}.partial"
        partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / RECORD_FILE)


def _differing(then: Mapping[str, Any], now: Mapping[str, Any], absent: str = "default") -> Iterator[str]:
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            yield f"{key}: {then.get(key, absent)} -> {now.get(key, absent)}"


def _short(digests: Mapping[str, str]) -> dict[str, str]:
    return {f"benchmarks.{name}": digest[:12] for name, digest in digests.items()}


def record_of(source: Source, tokenizer: LoadedTokenizer, benchmarks: BenchmarkIndex | None, found: Input) -> Record:
    """What a preparation now would be made from."""
    passages = benchmarks if source.decontaminate else None
    return Record(
        version=VERSION,
        settings=_settings(source),
        tokenizer=tokenizer.content_sha256,
        eos_token_id=tokenizer.eos_token_id,
        passages=passages.sha256 if passages else None,
        benchmarks=dict(passages.parts) if passages else None,
        input=found,
    )


def _settings(source: Source) -> dict[str, Any]:
    settings = source.model_dump(mode="json", exclude=NOT_IN_SHARDS, exclude_defaults=True)
    reader = settings.pop("reader")
    if isinstance(source.reader, Corpus | Files | Hub):
        reader = {key: value for key, value in reader.items() if key not in PLACE}
    return {**settings, **{f"reader.{key}": value for key, value in reader.items()}}


def read_record(folder: Path) -> Record | None:
    """The folder's record; None if it has none that can be read."""
    try:
        return Record.model_validate_json((folder / RECORD_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def input_of(folder: Path) -> Input | None:
    """What the finished shards in `folder` were made from, as far as the folder tells; None without finished shards."""
    try:
        manifest = read_manifest(folder)
    except SourceError:
        return None
    if manifest is None:
        return None
    record = read_record(folder)
    return record.input if record else Input(revision=manifest.revision)


def hash_before_records(
    source: Source, tokenizer: LoadedTokenizer, benchmarks: BenchmarkIndex | None, revision: str
) -> str:
    """The manifest's `pipeline_sha256` as releases wrote it that left no record, to know their folders by."""
    passages = None
    if source.decontaminate and benchmarks is not None:
        content = benchmarks.hashes.tobytes() + benchmarks.owners.tobytes() + repr(benchmarks.names).encode()
        passages = hashlib.sha256(content).hexdigest()
    identity = {
        "version": VERSION,
        "source": source.model_dump(mode="json", exclude=NOT_IN_SHARDS),
        "revision": revision,
        "tokenizer_sha256": tokenizer.sha256,
        "eos_token_id": tokenizer.eos_token_id,
        "benchmarks": passages,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
