"""Checkpoints on disks of single machines: each holds what its own ranks wrote, and before a run goes on they share it.

With `checkpoints_path_is_shared_file_system: false` the first rank of every machine keeps its own run folder. All of
them commit a checkpoint together, with the same manifest of all files. A checkpoint can be continued if every file is
on some machine; the others get what they lack over the process group. That holds for the run's own checkpoints, and for
those of a run that it continues or takes its weights from.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from foundation.files import write_atomically
from foundation.paths import inside
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import MANIFEST, CheckpointError, list_checkpoints, parse_manifest

CHUNK_BYTES = 1 << 26
COMPLETED_AT_MOST = 2  # the newest, and one to fall back on when it is damaged

logger = logging.getLogger("nanotron_ext.train")


def keeps_files(recipe: Recipe) -> bool:
    """Whether this rank makes, commits and prunes checkpoint folders."""
    shared = recipe.checkpoints.checkpoints_path_is_shared_file_system
    return torch.distributed.get_rank() == 0 if shared else os.environ["LOCAL_RANK"] == "0"


def complete_checkpoints(recipe: Recipe, device: torch.device) -> list[Path]:
    """Bring all files of the newest checkpoints to every machine; returns their folders. To be called on all ranks.

    Raises:
        CheckpointError: on all ranks, if a machine's checkpoint.json lists anything but files of its own folder.
    """
    section = recipe.checkpoints
    for source in (recipe.run_folder, section.resume_checkpoint_path, section.load_weights_path):
        if source is not None:
            folder = Path(source)
            is_there, names = _complete_newest(folder, keeps_files(recipe), device)
            if is_there:
                return [folder / name for name in names]
    return []


def _complete_newest(source: Path, keeps: bool, device: torch.device) -> tuple[bool, list[str]]:
    """Whether any machine has a checkpoint in `source`, a run folder or itself one; those that all have by now."""
    names = {name for of_rank in _gathered(_listed(source) if keeps else []) for name in of_rank}
    is_there, completed = False, []
    for name in sorted(names, key=lambda name: int(Path(name).name or 0), reverse=True):
        everywhere = _gathered((keeps, _inventory(source / name) if keeps else None))
        keepers = {rank: inventory for rank, (keeps_files, inventory) in enumerate(everywhere) if keeps_files}
        texts = [inventory["manifest"] for inventory in keepers.values() if inventory is not None]
        if not texts:
            continue
        is_there = True
        described = parse_manifest(texts[-1], f"{MANIFEST} of {source / name}")["files"]
        holders = {
            file: [rank for rank, inventory in keepers.items() if inventory is not None and file in inventory["files"]]
            for file in described
        }
        if all(holders.values()):
            sizes = {file: description["bytes"] for file, description in described.items()}
            _complete(source / name, texts[-1], sizes, holders, list(keepers), device)
            completed.append(name)
        if len(completed) == COMPLETED_AT_MOST:
            break
    return is_there, completed


def _listed(source: Path) -> list[str]:
    """The checkpoints of this machine by their paths in `source`."""
    folders = [source] if (source / MANIFEST).is_file() else list_checkpoints(source)
    return [str(folder.relative_to(source)) for folder in folders]


def _inventory(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's manifest's text, and which of its files are here in full; None if it is not here."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
        described = parse_manifest(text, str(folder / MANIFEST))["files"]
    except FileNotFoundError:
        return None
    except CheckpointError as error:  # on this machine alone: the others, who wait for its list, must not hang
        logger.warning(f"Leaving out checkpoint {folder}: {error}")
        return None
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    files = [name for name, description in described.items() if sizes.get(name) == description["bytes"]]
    return {"manifest": text, "files": files}


def _gathered(mine: Any) -> list[Any]:
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, mine)
    return everywhere


def _complete(
    final: Path,
    manifest: str,
    sizes: dict[str, int],
    holders: dict[str, list[int]],
    keepers: list[int],
    device: torch.device,
) -> None:
    rank = torch.distributed.get_rank()
    folder = final if (final / MANIFEST).is_file() else final.with_name(f"{final.name}.joining")
    for name, having in holders.items():
        if len(having) == len(keepers):
            continue
        lacks = rank in keepers and rank not in having
        if lacks:
            folder.mkdir(parents=True, exist_ok=True)
        _send_file(inside(folder, name), sizes[name], having[0], lacks, device)
    if rank in keepers and folder != final:
        write_atomically(folder / MANIFEST, manifest)
        folder.replace(final)
    torch.distributed.barrier()


def _send_file(path: Path, size: int, owner: int, receives: bool, device: torch.device) -> None:
    """From the owner to all ranks, of which some write it."""
    owns = torch.distributed.get_rank() == owner
    partial = path.with_name(f"{path.name}.partial")
    with (path if owns else partial if receives else Path(os.devnull)).open("rb" if owns else "wb") as file:
        for start in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - start)
            data = bytearray(file.read(length) if owns else length)
            chunk = torch.frombuffer(data, dtype=torch.uint8).to(device)
            torch.distributed.broadcast(chunk, src=owner)
            if receives:
                file.write(chunk.cpu().numpy().tobytes())
    if receives:
        partial.replace(path)
