"""What the checkpoints of a run are, and what is wrong with them."""

from datetime import datetime
from pathlib import Path

from nanotron_ext.checkpoint import CheckpointError, CheckpointReader
from nanotron_ext.retention import in_use, is_in_use
from nanotron_ext.storage import UPLOADED


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
