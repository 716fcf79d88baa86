"""Checkpoints that load into any layout.

A checkpoint folder `<run>/checkpoints/<step>/` holds, per rank that writes a share of the optimizer's state, one
safetensors file for each kind of it (the recipe's `Optimizer.state_kinds`: float32 masters, AdamW's two moments) and,
written last, `checkpoint.json`. A tensor in a file is a flat part of a local parameter; its metadata says which global
parameter, which local range, and which block of the whole tensor the local one is. The index in checkpoint.json says so
of all files (placement.py), so that a rank of any other layout opens the files of which it holds a part, and reads that
part alone; it has a checksum of itself. Checkpoints of releases up to 0.2.0 have no index: there every header is read.
The model's own weights are the masters rounded to its dtype, so they are not stored twice.

Files are written to `<step>.tmp/`, which is renamed when every rank has finished: a folder without a complete
`checkpoint.json` is not a checkpoint. Files and folders are flushed in this order, so it also holds after a power cut.
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from foundation.errors import UserError
from foundation.files import flush, flush_file, write_atomically
from foundation.json_text import loads
from foundation.paths import UnsafeNameError, plain_name
from foundation.progress import unwatched
from foundation.recipe.schema import Optimizer
from nanotron_ext.placement import Index, Placement, index_of_headers, overlaps, owner_of, shard_index
from nanotron_ext.reading import (
    BLOCK_BYTES,
    Advance,
    CutShortError,
    FileReads,
    Hasher,
    read_header,
    reads_by_file,
)

MANIFEST = "checkpoint.json"
RECIPE_FILE = "recipe.yaml"  # the resolved recipe, in the run folder
LATEST_FILE = "latest"  # step of the checkpoint written last, there too
FORMAT = "smollm3-checkpoint/1"
FLUSH_BYTES = 1 << 28  # between two signs of life of a disk, however much lies in the page cache


class CheckpointError(UserError):
    """A checkpoint that is absent, incomplete or does not fit."""


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / str(step)


def newest_first(run_folder: Path) -> Iterator[Path]:
    """Complete checkpoints of a run; of the folder's entries, only those asked for are looked into."""
    folders = [path for path in (run_folder / "checkpoints").glob("*") if path.name.isdigit()]
    newest_first = sorted(folders, key=lambda path: int(path.name), reverse=True)
    return (path for path in newest_first if (path / MANIFEST).is_file())


def step_written_last(run_folder: Path) -> int | None:
    """The step of the checkpoint that was written last; None if nothing says so."""
    file = run_folder / LATEST_FILE
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return list(newest_first(run_folder))[::-1]


def resolve_checkpoint(path: Path, key: str = "the path") -> Path:
    """The checkpoint that `path` means: a checkpoint folder itself, or the newest one of a run folder.

    `key` is that of the recipe which gives the path.

    Raises:
        CheckpointError: when there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = next(newest_first(path), None)
    if found is None:
        raise CheckpointError(
            f"There is no complete checkpoint in {path}: no {path}/checkpoints/<step>/{MANIFEST}. Train that run "
            f"first, or correct {key}."
        )
    return found


Part = tuple[str, Placement, int, torch.Tensor]  # name, place of the local tensor, first element in it, flat elements


def save_shard(
    folder: Path, kind: str, shard: str, parts: Iterable[Part], advance: Advance = unwatched
) -> dict[str, Any]:
    """Write one rank's parts of one kind of state; returns `save_tensors`'s."""
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for name, placement, start, tensor in parts:
        tensors[name] = tensor
        metadata[name] = json.dumps({**placement.to_json(), "start": start})
    return save_tensors(folder / f"{kind}-{shard}.safetensors", tensors, metadata, advance)


def index_of(shard: str, parts: Iterable[Part]) -> dict[str, Any]:
    """What the index says of a rank's files; `merged` makes one of all ranks'.

    Where a local tensor lies in the whole one is said once, by the rank that holds its beginning.
    """
    listed = list(parts)
    placements = {name: placement.to_json() for name, placement, start, _ in listed if start == 0}
    entry = shard_index((name, start, tensor.numel()) for name, _, start, tensor in listed)
    return {"placements": {owner_of(shard): placements}, "shards": {shard: entry}}


def merged(indices: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One index of those of several ranks."""
    whole: dict[str, Any] = {"placements": {}, "shards": {}}
    for index in indices:
        whole["shards"] |= index["shards"]
        for owner, placements in index["placements"].items():
            whole["placements"].setdefault(owner, {}).update(placements)
    return whole


def save_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], advance: Advance = unwatched
) -> dict[str, Any]:
    """Write float32 tensors as a safetensors file; returns {file name: what the manifest says of it}.

    In one pass, block by block, hashed and flushed on the way: the format's own library writes a file in one call and
    leaves it to the page cache, and then neither that call nor the flush shows whether a slow disk is at work or hangs.

    The format: bytes of the header as 8 bytes, little endian; the header as JSON, filled up to a multiple of 8; the
    tensors without gaps. Source: github.com/huggingface/safetensors, README.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, (name, tensor.dtype)
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    hasher, size, flushed = Hasher(), 0, 0
    with path.open("wb") as file:
        for block in _blocks(len(text).to_bytes(8, "little") + text, tensors):
            hasher.update(block)
            file.write(block)
            size += len(block)
            advance(0)
            if size - flushed >= FLUSH_BYTES:
                flush_file(file)
                advance(size - flushed)
                flushed = size
        flush_file(file)
    advance(size - flushed)
    return {path.name: {"bytes": size, "sha256": hasher.hexdigest()}}


def _blocks(header: bytes, tensors: dict[str, torch.Tensor]) -> Iterator[Any]:
    yield header
    for tensor in tensors.values():
        content = tensor.contiguous().flatten().view(torch.uint8).numpy()
        for start in range(0, len(content), BLOCK_BYTES):
            yield content[start : start + BLOCK_BYTES]


def finish_checkpoint(
    temporary: Path, final: Path, content: dict[str, Any], files: dict[str, Any], advance: Advance = unwatched
) -> None:
    """Called when all ranks have written: manifest, rename, `latest`. `files` is `save_tensors`'s of all ranks."""
    write_atomically(temporary / MANIFEST, _sealed({"format": FORMAT, **content, "files": files}))
    advance(0)
    delete_checkpoint(final)  # a damaged one, that the run went behind
    temporary.replace(final)
    advance(0)
    flush(final.parent)
    advance(0)
    write_atomically(final.parent.parent / LATEST_FILE, final.name)
    advance(0)


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, if it is there; a crash in the middle leaves nothing that looks like one."""
    if folder.exists():
        doomed = folder.with_suffix(".deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
        shutil.rmtree(doomed)


def _sealed(manifest: dict[str, Any]) -> str:
    """As JSON with a checksum of itself: a digit of the index, the step or the data that changed is still JSON."""
    return json.dumps({**manifest, "sha256": _sha256(manifest)})


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def parse_manifest(text: str | bytes, origin: str) -> dict[str, Any]:
    """The content of a checkpoint.json, whoever wrote it; messages call it `origin`.

    Raises:
        CheckpointError: if it is none of this release, does not match its own checksum (releases up to 0.2.0 wrote
            none), or calls a file anything but a name in its own folder.
    """
    try:
        manifest: dict[str, Any] = loads(text)
        found = manifest.get("format")
        if manifest.pop("sha256", None) not in (None, _sha256(manifest)):
            raise ValueError("it does not match its own checksum")
        files = manifest["files"] if found == FORMAT else {}
        if found == FORMAT and not isinstance(manifest["step"], int):
            raise TypeError("its step is no number")
        for name, description in files.items():
            plain_name(name)
            if not isinstance(description["bytes"], int) or not isinstance(description["sha256"], str):
                raise TypeError(f"{name} has no size and checksum")
    except UnsafeNameError as error:
        raise CheckpointError(f"{origin}: {error} Nothing was read or written there; do not use it.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{origin} cannot be read: {type(error).__name__}: {error}") from None
    if found != FORMAT:
        raise CheckpointError(f"{origin} has format {found!r}; this release reads {FORMAT!r}.")
    return manifest


def versions() -> dict[str, str]:
    """Of what may change results: Python and the packages that compute."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "nanotron", "numpy")}
    return {"python": platform.python_version(), **packages}


class CheckpointReader:
    """What a checkpoint holds, and which bytes of its files hold it, whatever layout wrote it."""

    def __init__(self, folder: Path, compares_sizes: bool = True) -> None:
        """Opens the manifest alone. `compares_sizes`: raise CheckpointError when a file is missing or was cut short."""
        self.folder = folder
        self.manifest = self._read_manifest()
        for name, description in self.manifest["files"].items() if compares_sizes else ():
            if not _has_size(folder / name, description["bytes"]):
                raise CheckpointError(
                    f"{folder / name} is missing or was cut short; use another checkpoint of this run."
                )

    @property
    def step(self) -> int:
        step: int = self.manifest["step"]
        return step

    @property
    def files(self) -> list[str]:
        return sorted(self.manifest["files"])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the manifest says of the state and how it came about, whatever machine wrote it."""
        named = ("step", "recipe_hash", "model_config", "data", "data_start", "skipped_samples", "files", "index")
        content = {key: self.manifest[key] for key in named if key in self.manifest}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def names(self) -> list[str]:
        """Global parameter names, in the order of the model."""
        return sorted(self._index.parts, key=_natural)

    def find(
        self, kind: str, name: str, wanted: Placement, start: int, target: torch.Tensor, near: str,
        reads: dict[str, FileReads],
    ) -> None:  # fmt: skip
        """Add to `reads`, by file, what fills `target` with elements of a flattened local tensor, from `start` on.

        `wanted` is that tensor's place, `target` flat and float32. Of copies, that of owner `near` is taken.

        Raises:
            CheckpointError: if the checkpoint does not hold all of it, or holds it in another shape.
        """
        elements = target.numel()
        parts = list(self._index.one_copy(name, near)) if name in self._index.parts else []
        parts = [part for part in parts if self._file(kind, part.shard) in self.manifest["files"]]
        if not parts:
            raise CheckpointError(
                f"{self.folder} holds no {kind} for parameter {name!r}; it is of another model or optimizer."
            )
        if parts[0].placement.shape != wanted.shape:
            raise CheckpointError(
                f"{self.folder} holds {name!r} with shape {list(parts[0].placement.shape)}, the recipe's model has "
                f"{list(wanted.shape)}. Correct model.model_config, or use a checkpoint of this model."
            )
        found = 0
        for part in parts:
            runs = overlaps(wanted, start, elements, part)
            if len(runs):
                runs[:, 0] += part.offset
                reads[self._file(kind, part.shard)].add(target, runs)
                found += int(runs[:, 2].sum())
        if found != elements:
            raise CheckpointError(
                f"{self.folder} holds {found} of {elements} elements of {kind} {name!r}; a file is missing."
            )

    def elements(self, file: str) -> int:
        """How many a file holds."""
        return self._index.elements[_shard(file)]

    def fill(self, file: str, reads: FileReads, compares: bool, advance: Advance = unwatched) -> str | None:
        """Read what `find` has found of one file; what is wrong with it, as a sentence.

        `compares`: read the rest of it too, and compare all with its checksum.
        """
        path, described = self.folder / file, self.manifest["files"][file]
        hasher = Hasher() if compares else None
        try:
            reads.read(path, self._data_start(file) if reads.elements else 0, advance, hasher)
        except CutShortError:
            return f"{path} is missing or was cut short"
        if hasher is not None and hasher.hexdigest() != described["sha256"]:
            return f"{path} does not match its checksum"
        return None

    def read(self, kind: str, name: str, expected_shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The whole float32 tensor `name` of one kind of state.

        Raises:
            CheckpointError: if the checkpoint does not hold all of it, or holds it in another shape.
        """
        shape = expected_shape
        if shape is None and name in self._index.parts:
            shape = self._index.parts[name][0].placement.shape
        whole, reads = torch.empty(shape or (), dtype=torch.float32), reads_by_file()
        self.find(kind, name, Placement.whole(tuple(whole.shape)), 0, whole.flatten(), "", reads)
        for file, of_file in reads.items():
            if problem := self.fill(file, of_file, compares=False):
                raise CheckpointError(f"{problem}; use another checkpoint of this run.")
        return whole

    def damaged_files(self, kind: str = "") -> list[str]:
        """Files that do not match their checksums, as sentences: all, or those of one kind of state. Reads them."""
        names = (name for name in self.files if name.startswith(kind))
        problems = (self.fill(name, FileReads(), compares=True) for name in names)
        return [problem for problem in problems if problem]

    def incomplete_parameters(self) -> list[str]:
        """Parameters of which a part of the state is missing, as sentences. Reads everything."""
        problems = []
        for kind in self._state_kinds():
            for name in self.names():
                try:
                    self.read(kind, name)
                except CheckpointError as error:
                    problems.append(str(error))
        return problems

    def _state_kinds(self) -> tuple[str, ...]:
        if not self.manifest["recipe_hash"]:  # an import has no optimizer state
            return ("master",)
        try:
            return Optimizer.model_validate(self.manifest["recipe"]["optimizer"]).state_kinds
        except ValidationError:
            raise CheckpointError(
                f"{self.folder} was written by a release with another recipe schema. Verify it with that release."
            ) from None

    @staticmethod
    def _file(kind: str, shard: str) -> str:
        return f"{kind}-{shard}.safetensors"

    @cached_property
    def _index(self) -> Index:
        try:
            index = Index(self.manifest["index"] if "index" in self.manifest else index_of_headers(self._headers()))
            for name, described in self.manifest["files"].items():
                if described["bytes"] - 4 * index.elements[_shard(name)] <= 8:
                    raise ValueError(f"{name} is too small for its tensors")
            assert index.parts is not None  # parsed here, where its errors are caught
        except (LookupError, TypeError, ValueError, AttributeError, CutShortError) as error:
            raise CheckpointError(
                f"{self.folder}: where its tensors lie cannot be read: {type(error).__name__}: {error}"
            ) from None
        return index

    def _headers(self) -> dict[str, Any]:
        """Of every shard; its files have the same, whatever the kind."""
        of_kind = [name for name in self.files if name.startswith("master-")]
        return {_shard(name): read_header(self.folder / name) for name in of_kind}

    def _data_start(self, file: str) -> int:
        size: int = self.manifest["files"][file]["bytes"]
        return size - 4 * self.elements(file)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return parse_manifest(content, str(path))


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _shard(file: str) -> str:
    """`pp0-tp1-dp2` of `exp_avg-pp0-tp1-dp2.safetensors`."""
    return file.removesuffix(".safetensors").split("-", 1)[1]


def _natural(name: str) -> list[tuple[int, str | int]]:
    """Sort key that puts decoder.2 before decoder.10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
