"""What the chain remembers in `<run>/chain.json`: per step the key it was made with, its state and its seconds."""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from chain.steps import ChainError, Step
from foundation.code import Code
from foundation.recipe.loading import read_tree

CHAIN_FILE = "chain.json"
State = Literal["running", "failed", "stopped", "done"]


@dataclass(frozen=True)
class StepKey:
    """What a step's results depend on, as SHA-256 by kind, so that a difference can be named."""

    parts: Mapping[str, str]

    @cached_property
    def total(self) -> str:
        return _sha256(dict(self.parts))


class StepRecord(BaseModel):
    """One step's last execution."""

    model_config = ConfigDict(extra="forbid")

    key: str
    parts: dict[str, str] = {}  # of the key
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


def step_keys(steps: Sequence[Step], root: Path = Path()) -> dict[str, StepKey]:
    """The key of every step: its commands with the lines of the Makefile behind them, its resolved recipes, its code,
    and the keys of the steps that it needs.

    `steps` is the whole chain in order; `root` is the repository's.

    Raises:
        UserError: when a recipe cannot be read.
    """
    makefile, code = (root / "Makefile").read_text(encoding="utf-8"), Code(root)
    keys: dict[str, StepKey] = {}
    for step in steps:
        parts = {
            "command": [[command, target_lines(makefile, command[0])] for command in step.commands],
            "recipe": [*(read_tree(root / recipe) for recipe in step.recipes), step.settings],
            "code": [code.digest(path) for path in step.code],
            "an earlier stage": {need: keys[need].total for need in step.needs},
        }
        keys[step.name] = StepKey({kind: _sha256(content) for kind, content in parts.items()})
    return keys


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def target_lines(makefile: str, target: str) -> str:
    """What a target of a Makefile does, without its help text."""
    rule = re.search(rf"^{re.escape(target)}:(?P<first>[^#\n]*).*(?P<others>(?:\n\t.*)*)", makefile, re.MULTILINE)
    return f"{rule['first']}{rule['others']}" if rule else ""


def is_done(step: Step, keys: Mapping[str, StepKey], state: ChainState) -> bool:
    """Made with the same key, and its results are still there."""
    return not reason_to_run(step, keys, state)


def reason_to_run(step: Step, keys: Mapping[str, StepKey], state: ChainState) -> str:
    """Why the step has to run, in words; empty when it is done."""
    record, key = state.steps.get(step.name), keys[step.name]
    if record is None:
        return "has not run yet"
    if record.key != key.total:
        if not record.parts:
            return "was made by an older version of the chain"
        changed = [kind for kind, digest in key.parts.items() if record.parts.get(kind) != digest]
        return f"changed: {', '.join(changed)}"
    if record.state != "done":
        return {"failed": "failed last time", "stopped": "was stopped"}.get(record.state, "was cut off")
    missing = [path for path in (*step.outputs, *step.kept) if not path.exists()]
    return f"{missing[0]} is gone" if missing else ""


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
