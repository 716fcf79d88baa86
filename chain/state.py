"""What the chain remembers in `<run>/chain.json`: per step the key it was made with, its state and its seconds."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from chain.steps import ChainError, Step
from nanotron_ext.recipe.loading import read_tree

CHAIN_FILE = "chain.json"
State = Literal["running", "failed", "stopped", "done"]


class StepRecord(BaseModel):
    """One step's last execution."""

    model_config = ConfigDict(extra="forbid")

    key: str
    state: State
    seconds: float  # over all attempts with this key
    started: str  # ISO 8601
    finished: str | None = None


class ChainState(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal["chain/1"] = "chain/1"
    steps: dict[str, StepRecord] = {}


def read_state(run: Path) -> ChainState:
    """The run folder's chain.json, or an empty state.

    Raises:
        ChainError: when the file is not one of this version.
    """
    file = run / CHAIN_FILE
    if not file.is_file():
        return ChainState()
    try:
        return ChainState.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ChainError(
            f"{file} is not a state of this version ({error.errors()[0]['msg']}). Remove it: steps whose results are "
            f"there are then found to be done by their own commands."
        ) from None


def write_state(run: Path, state: ChainState) -> None:
    """Atomically."""
    run.mkdir(parents=True, exist_ok=True)
    partial = run / (CHAIN_FILE + ".partial")
    partial.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(run / CHAIN_FILE)


def step_keys(steps: Sequence[Step], root: Path = Path()) -> dict[str, str]:
    """SHA-256 per step over its commands, resolved recipes, code, and the keys of the steps it needs.

    `steps` is the whole chain in order; `root` is the repository's.

    Raises:
        UserError: when a recipe cannot be read.
    """
    keys: dict[str, str] = {}
    digests: dict[str, str] = {}
    for step in steps:
        for path in step.code:
            if path not in digests:
                digests[path] = code_digest(root / path)
        content = {
            "commands": step.commands,
            "recipes": [read_tree(root / recipe) for recipe in step.recipes],
            "code": [digests[path] for path in step.code],
            "needs": {need: keys[need] for need in step.needs},
        }
        text = json.dumps(content, sort_keys=True, default=str)
        keys[step.name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def code_digest(path: Path) -> str:
    """SHA-256 over the names and contents of a file, or of all files below a folder that are not caches."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(path.parent)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def is_done(step: Step, keys: Mapping[str, str], state: ChainState) -> bool:
    """Made with the same key, and its outputs are still there."""
    record = state.steps.get(step.name)
    return (
        record is not None
        and record.state == "done"
        and record.key == keys[step.name]
        and all(output.exists() for output in step.outputs)
    )


def set_aside(step: Step, run: Path) -> Path | None:
    """Move what an older recipe or older code has left to `<run>/replaced/<time>/`; returns that folder."""
    existing = [output for output in step.outputs if output.exists()]
    if not existing:
        return None
    folder = run / "replaced" / time.strftime("%Y%m%d-%H%M%S")
    for output in existing:
        target = folder / output.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(output, target)
    return folder
