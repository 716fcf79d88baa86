"""Checkpoints that load into any layout.

A checkpoint folder `<run>/checkpoints/<step>/` holds, per rank that owns a shard of the optimizer, one safetensors
file for each kind of state (the recipe's `Optimizer.state_kinds`: float32 masters, AdamW's two moments) and, written
last, `checkpoint.json`. A tensor in a file is a flat part of a local parameter; its metadata says which global
parameter, which local range, and which block of the whole tensor the local one is. Any rank of any other layout reads
whole tensors and cuts its own part. The model's own weights are the masters rounded to its dtype, so they are not
stored twice.

Files are written to `<step>.tmp/`, which is renamed when every rank has finished: a folder without a complete
`checkpoint.json` is not a checkpoint. Files and folders are flushed in this order, so it also holds after a power cut.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from foundation.errors import UserError
from foundation.files import flush, flush_file, write_atomically
from foundation.json_text import loads
from foundation.paths import UnsafeNameError, plain_name
from foundation.progress import unwatched
from foundation.recipe.schema import Optimizer

MANIFEST = "checkpoint.json"
RECIPE_FILE = "recipe.yaml"  # the resolved recipe, in the run folder
FORMAT = "smollm3-checkpoint/1"
BLOCK_BYTES = 1 << 24
FLUSH_BYTES = 1 << 28  # between two signs of life of a disk, however much lies in the page cache

Advance = Callable[[int], None]  # told of every so many bytes that are done


class CheckpointError(UserError):
    """A checkpoint that is absent, incomplete or does not fit."""


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / str(step)


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [path for path in (run_folder / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted((path for path in folders if (path / MANIFEST).is_file()), key=lambda path: int(path.name))


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: a checkpoint folder itself, or the newest one of a run folder.

    Raises:
        CheckpointError: when there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(
            f"There is no complete checkpoint in {path}. Expected {path}/checkpoints/<step>/{MANIFEST}; "
            f"run the stage before this one, or correct checkpoints.resume_checkpoint_path."
        )
    return found[-1]


@dataclass(frozen=True)
class StoredPart:
    """Where one part of a global tensor lies in a checkpoint."""

    file: str  # <kind>-pp<stage>-tp<rank>-dp<replica>.safetensors
    shape: tuple[int, ...]  # of the whole tensor
    local_shape: tuple[int, ...]
    start: int  # first element of the flattened local tensor
    pieces: tuple[tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]], ...]  # (local, whole) bounds

    @property
    def owner(self) -> str:
        """The replicas that hold parts of the same local tensor: the file's name without its dp rank."""
        return self.file.rsplit("-dp", 1)[0]


def save_shard(
    folder: Path, kind: str, rank_name: str, parts: Iterator[tuple[Any, int, torch.Tensor]], advance: Advance
) -> dict[str, Any]:
    """Write one rank's parts of one kind of state, as `Optimizer.state` yields them; returns `save_tensors`'s."""
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for slot, start, tensor in parts:
        entry = slot.entry
        tensors[entry.name] = tensor.detach().cpu()
        metadata[entry.name] = json.dumps(
            {
                "shape": entry.shape,
                "local_shape": tuple(entry.parameter.shape),
                "start": start,
                "pieces": [(piece.local, piece.whole) for piece in entry.pieces],
            }
        )
    return save_tensors(folder / f"{kind}-{rank_name}.safetensors", tensors, metadata, advance)


def save_whole(folder: Path, kind: str, rank_name: str, name: str, tensor: torch.Tensor) -> dict[str, Any]:
    """Write one whole float32 tensor as a shard of its own (for imports); returns `save_tensors`'s."""
    bounds = [(0, size) for size in tensor.shape]
    placement = {"shape": tuple(tensor.shape), "local_shape": tuple(tensor.shape), "start": 0}
    metadata = {name: json.dumps({**placement, "pieces": [(bounds, bounds)]})}
    return save_tensors(folder / f"{kind}-{rank_name}.safetensors", {name: tensor.flatten()}, metadata)


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
    digest, size, flushed = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for block in _blocks(len(text).to_bytes(8, "little") + text, tensors):
            file.write(block)
            digest.update(block)
            size += len(block)
            advance(0)
            if size - flushed >= FLUSH_BYTES:
                flush_file(file)
                advance(size - flushed)
                flushed = size
        flush_file(file)
    advance(size - flushed)
    return {path.name: {"bytes": size, "sha256": digest.hexdigest()}}


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
    write_atomically(temporary / MANIFEST, json.dumps({"format": FORMAT, **content, "files": files}, indent=1))
    advance(0)
    delete_checkpoint(final)  # a damaged one, that the run went behind
    temporary.replace(final)
    advance(0)
    flush(final.parent)
    advance(0)
    write_atomically(final.parent.parent / "latest", final.name)
    advance(0)


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, if it is there; a crash in the middle leaves nothing that looks like one."""
    if folder.exists():
        doomed = folder.with_suffix(".deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
        shutil.rmtree(doomed)


def parse_manifest(text: str | bytes, origin: str) -> dict[str, Any]:
    """The content of a checkpoint.json, whoever wrote it; messages call it `origin`.

    Raises:
        CheckpointError: if it is none of this release, or calls a file anything but a name in its own folder.
    """
    try:
        manifest: dict[str, Any] = loads(text)
        found = manifest.get("format")
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


def sha256_of_file(path: Path, advance: Advance = unwatched) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


class CheckpointReader:
    """Whole tensors out of a checkpoint, one at a time, whatever layout wrote it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = self._read_manifest()
        self._parts: dict[tuple[str, str], list[StoredPart]] = defaultdict(list)
        for name, description in self.manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != description["bytes"]:
                raise CheckpointError(f"{path} is missing or was cut short; use another checkpoint of this run.")
            self._index(name)

    @property
    def step(self) -> int:
        step: int = self.manifest["step"]
        return step

    @property
    def digest(self) -> str:
        """SHA-256 of what the manifest says of the state and how it came about, whatever machine wrote it."""
        named = ("step", "recipe_hash", "model_config", "data", "skipped_samples", "files")
        content = {key: self.manifest.get(key) for key in named}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def names(self) -> list[str]:
        """Global parameter names, in the order of the model."""
        return sorted({name for _, name in self._parts}, key=_natural)

    def read(self, kind: str, name: str, expected_shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The whole float32 tensor `name` of one kind of state.

        Raises:
            CheckpointError: if the checkpoint does not hold all of it, or holds it in another shape.
        """
        parts = self._parts.get((kind, name))
        if not parts:
            raise CheckpointError(
                f"{self.folder} holds no {kind} for parameter {name!r}; it is of another model or optimizer."
            )
        if expected_shape is not None and parts[0].shape != expected_shape:
            raise CheckpointError(
                f"{self.folder} holds {name!r} with shape {list(parts[0].shape)}, the recipe's model has "
                f"{list(expected_shape)}. Correct model.model_config, or use a checkpoint of this model."
            )
        whole = torch.empty(parts[0].shape, dtype=torch.float32)
        filled = 0
        for local, pieces in self._local_tensors(kind, name, parts):
            for local_bounds, whole_bounds in pieces:
                block = local[tuple(slice(*bounds) for bounds in local_bounds)]
                whole[tuple(slice(*bounds) for bounds in whole_bounds)] = block
                filled += block.numel()
        if filled != whole.numel():
            raise CheckpointError(
                f"{self.folder} holds {filled} of the {whole.numel()} elements of {kind} {name!r}; a file is missing."
            )
        return whole

    def damaged_files(self, part: int = 0, parts: int = 1, advance: Advance = unwatched) -> list[str]:
        """Files of the `part`-th of `parts` shares that do not match their checksums, as sentences."""
        share = sorted(self.manifest["files"])[part::parts]
        return [
            f"{self.folder / name} does not match its checksum"
            for name in share
            if sha256_of_file(self.folder / name, advance) != self.manifest["files"][name]["sha256"]
        ]

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

    def _local_tensors(self, kind: str, name: str, parts: list[StoredPart]) -> Iterator[tuple[torch.Tensor, Any]]:
        """Local tensors put together from their flat ranges; of copies on several ranks only one."""
        # Copies lie at other places of their ranks' flat buffers and are cut elsewhere: their parts must not mix.
        copies: dict[Any, dict[str, list[StoredPart]]] = defaultdict(lambda: defaultdict(list))
        for part in parts:
            copies[part.pieces][part.owner].append(part)
        for pieces, by_owner in copies.items():
            of_one_owner = sorted(next(iter(by_owner.values())), key=lambda part: part.start)
            flat = []
            for part in of_one_owner:
                with safe_open(self.folder / part.file, framework="pt") as file:
                    flat.append(file.get_tensor(name))
            shape = of_one_owner[0].local_shape
            joined = torch.cat(flat)
            if joined.numel() != math.prod(shape):
                raise CheckpointError(f"{self.folder} holds only a part of {kind} {name!r}; a file is missing.")
            yield joined.view(shape), pieces

    def _index(self, file_name: str) -> None:
        kind = file_name.split("-", 1)[0]
        try:
            with safe_open(self.folder / file_name, framework="pt") as file:
                metadata = file.metadata() or {}
            for name, text in metadata.items():
                stored = loads(text)
                pieces = tuple(
                    tuple(tuple(tuple(bounds) for bounds in side) for side in piece) for piece in stored["pieces"]
                )
                shape, local_shape = tuple(stored["shape"]), tuple(stored["local_shape"])
                self._parts[kind, name].append(StoredPart(file_name, shape, local_shape, stored["start"], pieces))  # type: ignore[arg-type]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.folder / file_name} is no file of a checkpoint ({error}); use another checkpoint of this run."
            ) from None

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return parse_manifest(content, str(path))


def _natural(name: str) -> list[tuple[int, str | int]]:
    """Sort key that puts decoder.2 before decoder.10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
