"""Token shards on disk: the manifest of a source's folder, and the verifier that stands before it.

A folder holds, per file, `X.ds` (little-endian tokens, no header) and `X.ds.index` (uint64, the exclusive end of each
document in tokens of that file), and `manifest.json`. Document boundaries come from the index alone.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datapipes.errors import SourceError
from foundation.json_text import loads
from foundation.paths import plain_name

FORMAT = "token-shards/1"
CHUNK_TOKENS = 1 << 24


@dataclass(frozen=True)
class ShardFile:
    """One `.ds` file; sums are hexadecimal SHA-256."""

    name: str
    documents: int
    tokens: int
    sha256: str
    index_sha256: str

    def __post_init__(self) -> None:
        plain_name(self.name)


@dataclass(frozen=True)
class Manifest:
    """What lies in a source's folder. `documents` and `tokens` are totals; tokens include every document's EOS."""

    source: str
    revision: str
    pipeline_sha256: str
    tokenizer_sha256: str  # of the file's bytes
    vocab_size: int
    token_bytes: int
    eos_token_id: int
    documents: int
    tokens: int
    files: list[ShardFile]
    tokenizer_content_sha256: str | None = None  # however the file is laid out; None: of an earlier release
    format: str = field(default=FORMAT)

    def write(self, folder: Path) -> None:
        partial = folder / "manifest.json.partial"
        partial.write_text(json.dumps({"format": self.format, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / "manifest.json")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None if it has none.

    Raises:
        SourceError: if it is not of this format.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**{**content, "files": [ShardFile(**entry) for entry in content["files"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"{path} is not a {FORMAT} manifest ({error}). Prepare it anew: --rebuild {folder.name}."
        ) from None
    if manifest.format != FORMAT:
        raise SourceError(
            f"{path} has format {manifest.format!r}, not {FORMAT!r}. Prepare it anew: --rebuild {folder.name}."
        )
    return manifest


def token_bytes_for(vocab_size: int) -> int:
    """Width of a token on disk: 2 bytes up to 65,536 entries, else 4."""
    return 2 if vocab_size <= 1 << 16 else 4


def verify_shard(
    path: Path, vocab_size: int, token_bytes: int, eos_token_id: int, special_ids: Collection[int]
) -> ShardFile:
    """Read a shard and its index completely and check that they are whole.

    Checked: the index is there, rises strictly and ends at the file's size; every token lies in the vocabulary; every
    document ends with EOS; no special token occurs anywhere else (raw text cannot have produced one).

    Raises:
        SourceError: naming the file, the position and what is wrong. The caller adds what to do.
    """

    def wrong(finding: str) -> SourceError:
        return SourceError(f"{path}: {finding}.")

    index_path = path.with_name(path.name + ".index")
    if not path.is_file() or not index_path.is_file():
        raise wrong(f"{'the index' if path.is_file() else 'the shard'} is missing")
    size_bytes, index_bytes = path.stat().st_size, index_path.read_bytes()
    if size_bytes % token_bytes or len(index_bytes) % 8:
        raise wrong(f"{size_bytes} bytes are no whole number of tokens, or {len(index_bytes)} none of index entries")
    ends = np.frombuffer(index_bytes, dtype="<u8")
    tokens = size_bytes // token_bytes
    if not len(ends) or ends[0] == 0 or (ends[1:] <= ends[:-1]).any():
        raise wrong("the index does not rise strictly from the first document's end")
    if int(ends[-1]) != tokens:
        raise wrong(f"the index ends at token {ends[-1]}, the file at token {tokens}")

    dtype = np.dtype(f"<u{token_bytes}")
    special = np.array(sorted({*special_ids, eos_token_id}), dtype=dtype)
    digest, specials_seen, start = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_TOKENS * token_bytes):
            digest.update(data)
            chunk = np.frombuffer(data, dtype=dtype)
            if chunk.max() >= vocab_size:
                position = start + int(chunk.argmax())
                raise wrong(f"token {chunk.max()} at position {position} is outside the vocabulary of {vocab_size}")
            first, last = np.searchsorted(ends, np.array([start + 1, start + len(chunk) + 1], dtype=np.uint64))
            at_end = chunk[ends[first:last] - np.uint64(start + 1)]
            if (at_end != eos_token_id).any():
                document = first + int((at_end != eos_token_id).argmax())
                raise wrong(f"document {document} does not end with the EOS token {eos_token_id}")
            specials_seen += int(np.isin(chunk, special).sum())
            start += len(chunk)
    if specials_seen != len(ends):
        raise wrong(f"{specials_seen - len(ends)} special tokens lie inside documents")
    return ShardFile(path.name, len(ends), tokens, digest.hexdigest(), hashlib.sha256(index_bytes).hexdigest())


def verify_folder(folder: Path, manifest: Manifest, special_ids: Collection[int]) -> None:
    """Check every file of a prepared source against its manifest.

    Raises:
        SourceError: naming the first file that is not what the manifest says.
    """
    for entry in manifest.files:
        found = verify_shard(
            folder / entry.name, manifest.vocab_size, manifest.token_bytes, manifest.eos_token_id, special_ids
        )
        if found != entry:
            raise SourceError(
                f"{folder / entry.name} is not the file that manifest.json describes: {found} instead of {entry}."
            )
    totals = sum(entry.documents for entry in manifest.files), sum(entry.tokens for entry in manifest.files)
    if totals != (manifest.documents, manifest.tokens):
        raise SourceError(f"{folder}/manifest.json: its totals are not the sums over its files. Prepare it again.")
