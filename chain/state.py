"""What the chain remembers in `<run>/chain.json`: per step the key it was made with, its state and its seconds."""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from chain.steps import ChainError, Step
from foundation.code import Code
from foundation.files import write_atomically
from foundation.fingerprint import Fingerprint, fingerprint, versions
from foundation.recipe.loading import read_tree

CHAIN_FILE = "chain.json"
State = Literal["running", "failed", "stopped", "done"]


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
    write_atomically(run / CHAIN_FILE, state.model_dump_json(indent=1) + "\n")


def step_keys(steps: Sequence[Step], run: Path, code: Code | None = None) -> dict[str, Fingerprint]:
    """What every step's results depend on: its commands, its resolved recipes, its code, installed packages, and all of
    that of the steps that it needs.

    `steps` is the whole chain in order. How the folders are written changes nothing: recipes/tiny, ./recipes/tiny and
    /home/me/recipes/tiny have the same keys, and so has the run folder `run`, wherever it lies.

    Raises:
        UserError: when a recipe cannot be read.
    """
    code, keys = code or Code(), dict[str, Fingerprint]()
    for step in steps:
        keys[step.name] = fingerprint(
            {
                "command": _named(step.plan.commands, {step.plan.recipe.parent: "recipes", run: "run"}),
                "recipe": [
                    _named([read_tree(recipe) for recipe in step.plan.recipes], {run: "run"}),
                    step.plan.settings,
                ],
                "code": code.digest(*step.plan.job.code, *step.plan.code, without=step.plan.code_left_out),
                "versions": versions(step.plan.job.versions),
                "an earlier stage": {need: keys[need].total for need in step.needs},
            }
        )
    return keys


def _named(value: Any, folders: Mapping[Path, str]) -> Any:
    """The value with names in place of the `folders` in which paths of it begin."""
    if isinstance(value, str):
        for folder, name in folders.items():
            if value == str(folder) or value.startswith(f"{folder}/"):
                return name + value.removeprefix(str(folder))
        return value
    if isinstance(value, dict):
        return {key: _named(inner, folders) for key, inner in value.items()}
    return [_named(inner, folders) for inner in value] if isinstance(value, list | tuple) else value


def is_done(step: Step, keys: Mapping[str, Fingerprint], state: ChainState) -> bool:
    """Made with the same key, and its results are still there."""
    return not reason_to_run(step, keys, state)


def reason_to_run(step: Step, keys: Mapping[str, Fingerprint], state: ChainState) -> str:
    """Why the step has to run, in words; empty when it is done."""
    record, key = state.steps.get(step.name), keys[step.name]
    if record is None:
        return "has not run yet"
    if record.key != key.total:
        if not record.parts:
            return "was made by an older version of the chain"
        return f"changed: {key.changes_since(record.parts)}"
    if record.state != "done":
        return {"failed": "failed last time", "stopped": "was stopped"}.get(record.state, "was cut off")
    missing = step.plan.missing_products
    return f"{missing[0]} is gone" if missing else ""


def set_aside(step: Step, run: Path) -> Path | None:
    """Move what an older recipe or older code has left to `<run>/replaced/<time>/`; returns that folder.

    Raises:
        ChainError: before anything is moved, when something of it lies outside of the run folder.
    """
    existing = [output for output in step.plan.outputs if output.exists()]
    if not existing:
        return None
    within = {output: Path(os.path.relpath(output, run)) for output in existing}
    if outside := [output for output, place in within.items() if place.parts[:1] == ("..",)]:
        raise ChainError(
            f"{step.name} has to run anew, and {outside[0]} is in its way: it lies outside of {run}, where the chain "
            f"moves nothing. Move it away, or have the recipe name another folder."
        )
    folder = run / "replaced" / time.strftime("%Y%m%d-%H%M%S")
    for output, place in within.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(output, target)
    return folder
