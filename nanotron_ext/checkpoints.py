"""Look after the checkpoints of a run: `python -m nanotron_ext.checkpoints list|verify|prune|upload RUN_FOLDER`.

upload   copy to object storage (the run's checkpoints.remote_path) what is not there yet
list     every checkpoint: step, size, layout that wrote it, when, whether it is in use
verify   read everything: sizes, checksums, and that every parameter is whole; exit code 1 if anything is damaged
prune    delete all but the last --keep-last and every --keep-every-steps-th; never one that is being read
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from foundation.errors import UserError
from foundation.recipe import load_recipe
from nanotron_ext.checkpoint import (
    RECIPE_FILE,
    CheckpointError,
    CheckpointReader,
    checkpoint_folder,
    list_checkpoints,
    resolve_checkpoint,
)
from nanotron_ext.retention import in_use, is_in_use, prune_checkpoints, superfluous
from nanotron_ext.storage import UPLOADED, RemoteCheckpoints, StorageError, not_uploaded, upload_patiently


def describe(folder: Path) -> str:
    """One line; sizes are checked, contents are not."""
    try:
        reader = CheckpointReader(folder)
    except CheckpointError as error:
        return f"{folder.name:>9}  damaged: {error}"
    files = reader.manifest["files"].values()
    layout = reader.manifest.get("recipe", {}).get("parallelism", {})
    written_by = " x ".join(f"{name} {layout[name]}" for name in ("dp", "pp", "tp")) if layout else "imported"
    when = datetime.fromtimestamp((folder / "checkpoint.json").stat().st_mtime).isoformat(" ", "minutes")
    size = sum(file["bytes"] for file in files) / 1e9
    marks = ("  uploaded" if (folder / UPLOADED).is_file() else "") + ("  in use" if is_in_use(folder) else "")
    return f"{folder.name:>9}  {size:9.3f} GB  {len(files):4} files  {written_by:20}  {when}{marks}"


def problems_of(folder: Path) -> list[str]:
    """Everything that is wrong with a checkpoint, found by reading all of it."""
    try:
        with in_use(folder):
            reader = CheckpointReader(folder)
            return reader.damaged_files() or reader.incomplete_parameters()
    except CheckpointError as error:
        return [str(error)]


def list_command(run_folder: Path) -> int:
    resolve_checkpoint(run_folder)  # says so if there is none
    print("     step       size        files  written by            when")
    for folder in list_checkpoints(run_folder):
        print(describe(folder))
    for leftover in sorted((run_folder / "checkpoints").glob("*.*")):
        print(f"{leftover.name:>9}  not a checkpoint: a save or a deletion that is under way or was interrupted")
    return 0


def verify_command(run_folder: Path, step: int | None) -> int:
    folders = list_checkpoints(run_folder) if step is None else [checkpoint_folder(run_folder, step)]
    if not folders:
        resolve_checkpoint(run_folder)
    damaged = 0
    for folder in folders:
        problems = problems_of(folder)
        damaged += bool(problems)
        print(f"{folder}: " + ("; ".join(problems) if problems else "whole"))
    return 1 if damaged else 0


def prune_command(run_folder: Path, keep_last: int, keep_every_steps: int | None, dry_run: bool) -> int:
    resolve_checkpoint(run_folder)
    wanted = superfluous(run_folder, keep_last, keep_every_steps)
    gone = wanted if dry_run else prune_checkpoints(run_folder, keep_last, keep_every_steps)
    for folder in wanted:
        print(f"{folder}: " + ("kept, in use" if folder not in gone else "would be deleted" if dry_run else "deleted"))
    print(f"{len(list_checkpoints(run_folder)) - (len(gone) if dry_run else 0)} checkpoints stay.")
    return 0


def upload_command(run_folder: Path) -> int:
    resolve_checkpoint(run_folder)
    recipe = load_recipe(run_folder / RECIPE_FILE)
    if recipe.checkpoints.remote_path is None:
        raise StorageError(f"{run_folder / RECIPE_FILE} has no checkpoints.remote_path to upload to.")
    remote = RemoteCheckpoints(recipe)
    for folder in not_uploaded(run_folder):
        upload_patiently(remote, folder)
        print(f"{folder}: uploaded to {remote.url}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nanotron_ext.checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "verify", "prune", "upload"):
        command = commands.add_parser(name)
        command.add_argument("run_folder", type=Path, help="for example runs/tiny/stage1")
        if name == "verify":
            command.add_argument("--step", type=int, help="only this one")
        if name == "prune":
            command.add_argument("--keep-last", type=_positive, required=True, help="how many of the newest stay")
            command.add_argument("--keep-every-steps", type=_positive, help="those of every n-th step stay for ever")
            command.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    arguments = parser.parse_args()
    try:
        if arguments.command == "list":
            return list_command(arguments.run_folder)
        if arguments.command == "upload":
            return upload_command(arguments.run_folder)
        if arguments.command == "verify":
            return verify_command(arguments.run_folder, arguments.step)
        return prune_command(arguments.run_folder, arguments.keep_last, arguments.keep_every_steps, arguments.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a count of 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
