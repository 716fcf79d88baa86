"""A source's `manifest.json`, and whether the files on disk are what it says.

Everything that can be known without reading all tokens is checked before the first step: sizes, ends of the indices,
the tokenizer. The checksums are for data preparation and audits, which read the files anyway.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from foundation.paths import plain_name
from foundation.recipe import Recipe
from foundation.shards.errors import ShardError
from foundation.shards.remote import RemoteFolder, is_remote
from foundation.tokenizer_json import content_sha256

MANIFEST_NAME = "manifest.json"
INDEX_ENTRY_BYTES = 8
_PREPARE = "run `smollm3 data RECIPE`"


def _rebuild(source: str) -> str:
    return f"run `smollm3 data RECIPE --rebuild {source}`"


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ShardFile(_Record):
    """One `*.ds` file of little-endian token ids; `<name>.index` holds each document's exclusive end in tokens."""

    name: Annotated[str, Field(pattern=r"\.ds$"), AfterValidator(plain_name)]
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    sha256: Sha256
    index_sha256: Sha256


class Manifest(_Record):
    """What data preparation wrote for one source; every document ends with `eos_token_id`, which counts as a token."""

    format: Literal["token-shards/1"]
    source: str
    revision: str
    pipeline_sha256: Sha256
    tokenizer_sha256: Sha256
    tokenizer_content_sha256: Sha256 | None = None  # however the file is laid out; None: of an earlier release
    vocab_size: int = Field(ge=1)
    token_bytes: Literal[2, 4]
    eos_token_id: int = Field(ge=0)
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    files: list[ShardFile] = Field(min_length=1)


@dataclass(frozen=True)
class Source:
    """A prepared source: its folder and its manifest, found to agree."""

    folder: Path
    manifest: Manifest
    remote: RemoteFolder | None = None
    """Where its files come from; `folder` is then a part of the local cache that holds the manifest."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the token files' content in their order; the data order depends on nothing else on disk."""
        content = "\n".join(f"{file.sha256} {file.index_sha256}" for file in self.manifest.files)
        return hashlib.sha256(content.encode()).hexdigest()


def open_sources(recipe: Recipe, names: Iterable[str]) -> list[Source]:
    """Read and check the named sources of the recipe's data folder.

    Raises:
        ShardError: listing every problem of every source.
    """
    problems: list[str] = []
    sources: list[Source] = []
    for name in names:
        try:
            if is_remote(recipe.data.path):
                source = read_remote_source(f"{recipe.data.path.rstrip('/')}/{name}")
            else:
                source = read_source(Path(recipe.data.path) / name)
        except ShardError as error:
            problems += error.problems
            continue
        sources.append(source)
        problems += _check_against_recipe(source, recipe)
    if problems := [*problems, *_check_tokenizers(sources, recipe)]:
        raise ShardError(problems)
    return sources


def read_source(folder: Path) -> Source:
    """Read a source's manifest and compare it with the files in its folder.

    Raises:
        ShardError: listing every problem of this source.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        if folder.is_dir() and any(folder.glob("*.ds")):
            raise ShardError([f"{path}: The folder holds shards but no manifest; {_rebuild(folder.name)}."])
        raise ShardError([f"{path}: There is no manifest, so the source was not prepared to the end; {_PREPARE}."])
    manifest = _parse(path)
    if problems := [*_check_files(folder, manifest)]:
        raise ShardError(problems)
    return Source(folder, manifest)


def read_remote_source(url: str) -> Source:
    """As `read_source`, for a folder in object storage; of the files only the sizes are compared before the first use.

    Raises:
        ShardError: listing every problem of this source.
    """
    remote = RemoteFolder(url)
    sizes = remote.sizes()
    if MANIFEST_NAME not in sizes:
        fix = f"{_PREPARE} with a local data.path and upload the source's folder, its manifest last"
        raise ShardError([f"{url}/{MANIFEST_NAME}: There is no manifest; {fix}."])
    manifest = _parse(remote.fetch_manifest(MANIFEST_NAME))
    expected = {file.name: file.tokens * manifest.token_bytes for file in manifest.files}
    expected |= {f"{file.name}.index": file.documents * INDEX_ENTRY_BYTES for file in manifest.files}
    problems = [
        f"{url}/{name}: It has {sizes.get(name, 'no')} bytes, but the manifest promises {size}. Upload it again."
        for name, size in expected.items()
        if sizes.get(name) != size
    ]
    if problems:
        raise ShardError(problems)
    return Source(remote.local, manifest, remote)


def _parse(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:3])
        raise ShardError(
            [f"{path}: This is not a valid manifest ({wrong}). To replace it, {_rebuild(path.parent.name)}."]
        ) from None
    if problems := [*_check_manifest(path, manifest)]:
        raise ShardError(problems)
    return manifest


def _check_manifest(path: Path, manifest: Manifest) -> Iterator[str]:
    redo = f"To replace it, {_rebuild(path.parent.name)}."
    if manifest.source != path.parent.name:
        yield f"{path}: It belongs to source {manifest.source!r}, not to {path.parent.name!r}; rename the folder back."
    for field in ("documents", "tokens"):
        total = sum(getattr(file, field) for file in manifest.files)
        if total != getattr(manifest, field):
            yield f"{path}: It states {getattr(manifest, field)} {field}, but its files hold {total}. {redo}"
    if len({file.name for file in manifest.files}) != len(manifest.files):
        yield f"{path}: It lists a file twice. {redo}"
    if manifest.vocab_size > 2 ** (8 * manifest.token_bytes):
        yield f"{path}: A vocabulary of {manifest.vocab_size} does not fit into {manifest.token_bytes} bytes. {redo}"
    if manifest.eos_token_id >= manifest.vocab_size:
        yield f"{path}: The EOS id {manifest.eos_token_id} lies outside the vocabulary {manifest.vocab_size}. {redo}"


def _check_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {file.name for file in manifest.files}
    for stray in sorted({path.name for path in folder.glob("*.ds")} - listed):
        yield (
            f"{folder / stray}: The manifest does not list this file; an interrupted preparation may have left it. "
            f"Delete it, or {_rebuild(folder.name)}."
        )
    for file in manifest.files:
        try:
            yield from _check_file(folder, file, manifest)
        except OSError as error:
            path = error.filename or folder / file.name
            yield f"{path}: {error.strerror}. Restore the file, or {_rebuild(folder.name)}."


def _check_file(folder: Path, file: ShardFile, manifest: Manifest) -> Iterator[str]:
    """Size and last entry of both files, which no truncated, mixed-up or re-encoded file gets right."""
    redo = f"Restore the file, or {_rebuild(folder.name)}."
    path = f"{folder}/{file.name}"  # text, since a run has thousands of files and Path objects are slow
    index_path = f"{path}.index"
    size, token = _size_and_last_entry(path, manifest.token_bytes)
    index_size, end = _size_and_last_entry(index_path, INDEX_ENTRY_BYTES)
    sizes_agree = True
    for checked, actual, expected in (
        (path, size, file.tokens * manifest.token_bytes),
        (index_path, index_size, file.documents * INDEX_ENTRY_BYTES),
    ):
        if actual != expected:
            sizes_agree = False
            what = "truncated" if actual < expected else "of another preparation or token width"
            yield f"{checked}: It has {actual} bytes, but the manifest promises {expected}: it is {what}. {redo}"
    if sizes_agree and end != file.tokens:
        yield (
            f"{index_path}: The last document ends at token {end}, but {file.name} holds {file.tokens} tokens. {redo}"
        )
    if sizes_agree and token != manifest.eos_token_id:
        yield (
            f"{path}: The last document ends with token {token} instead of the EOS id {manifest.eos_token_id}: the "
            f"file is corrupt or of another tokenizer. {redo}"
        )


def _size_and_last_entry(path: str, entry_bytes: int) -> tuple[int, int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return size, int.from_bytes(os.pread(descriptor, entry_bytes, max(size - entry_bytes, 0)), "little")
    finally:
        os.close(descriptor)


def _check_against_recipe(source: Source, recipe: Recipe) -> Iterator[str]:
    path, manifest, model = source.folder / MANIFEST_NAME, source.manifest, recipe.architecture
    if manifest.vocab_size > model.vocab_size:
        yield (
            f"{path}: The tokens are from a vocabulary of {manifest.vocab_size}, larger than "
            f"model.model_config.vocab_size {model.vocab_size}. Correct the recipe, or {_PREPARE} with its tokenizer."
        )
    if manifest.eos_token_id != model.eos_token_id:
        yield (
            f"{path}: Documents end with token {manifest.eos_token_id}, but model.model_config.eos_token_id is "
            f"{model.eos_token_id}. Correct the recipe, or {_PREPARE} with its tokenizer."
        )
    longest = max(file.tokens for file in manifest.files)
    is_trained_on = any(manifest.source in stage.mixture for stage in recipe.data_stages)
    needed = recipe.chunk_tokens if is_trained_on else recipe.tokens.sequence_length
    if longest <= needed:
        what, key = ("one window", "tokens.sequence_length")
        if needed > recipe.tokens.sequence_length:
            what, key = ("one chunk of data.chunk_tokens", "data.chunk_tokens")
        yield (
            f"{path}: No file holds the {needed + 1} tokens of {what} and its last label; the longest has {longest}. "
            f"Prepare more text for this source, remove it, or lower {key}."
        )


def _check_tokenizers(sources: Sequence[Source], recipe: Recipe) -> Iterator[str]:
    """All sources must come from the recipe's tokenizer where that is a local folder, else from one and the same."""
    if not sources:
        return
    tokenizer = Path(recipe.tokenizer.tokenizer_name_or_path) / "tokenizer.json"
    first = sources[0].manifest
    expected, content, origin = (
        first.tokenizer_sha256,
        first.tokenizer_content_sha256,
        sources[0].folder / MANIFEST_NAME,
    )
    if tokenizer.is_file():
        data, origin = tokenizer.read_bytes(), tokenizer
        expected, content = hashlib.sha256(data).hexdigest(), None
        if any(source.manifest.tokenizer_sha256 != expected for source in sources):
            content = _content_sha256(data)  # only now: it takes a second for a vocabulary of 128,000
    elif tokenizer.parent.is_dir():
        yield f"{tokenizer}: There is no such file. Restore the tokenizer, or {_PREPARE}."
        return
    for source in sources:
        manifest = source.manifest
        if (manifest.token_bytes, manifest.vocab_size) != (first.token_bytes, first.vocab_size):
            yield (
                f"{source.folder / MANIFEST_NAME}: {manifest.token_bytes} bytes per token and a vocabulary of "
                f"{manifest.vocab_size} here, {first.token_bytes} and {first.vocab_size} in "
                f"{sources[0].folder / MANIFEST_NAME}. For the wrong one of the two, {_rebuild('SOURCE')}."
            )
        is_same_content = content is not None and manifest.tokenizer_content_sha256 == content
        if manifest.tokenizer_sha256 != expected and not is_same_content:
            yield (
                f"{source.folder / MANIFEST_NAME}: The tokens were made by tokenizer "
                f"{manifest.tokenizer_sha256[:12]}, not by {expected[:12]} of {origin}. Give "
                f"tokenizer.tokenizer_name_or_path the tokenizer that the data has, or {_rebuild(manifest.source)}."
            )


def _content_sha256(tokenizer_json: bytes) -> str | None:
    try:
        return content_sha256(tokenizer_json)
    except ValueError:  # not JSON, so no tokenizer at all
        return None
