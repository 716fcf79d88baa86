"""Runs in wandb: whether to use it, decided before anything is written, and without prompts or hangs.

What a user says in wandb's own variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR, ...) goes before what follows from the
recipe, for all trainings and evaluations alike, and is never changed.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from foundation.errors import UserError
from foundation.recipe.schema import General
from foundation.recipe.schema import Wandb as WandbSection

_ONLINE = ("online", "shared", "run")  # "run" and "dryrun" are old names, which wandb still takes
_OFFLINE = ("offline", "dryrun", "disabled")
_TRUE = ("1", "true", "yes", "on")


class TrackingError(UserError):
    """wandb was asked for and cannot be used."""


class Tracked(Protocol):
    """A recipe, of pretraining or of post-training."""

    @property
    def general(self) -> General: ...

    @property
    def wandb(self) -> WandbSection: ...

    @property
    def run_folder(self) -> Path: ...

    def to_dict(self) -> dict[str, Any]: ...

    def hash(self) -> str: ...


class Wandb:
    """wandb without prompts and without hangs; `log` is a no-op when `mode` is `disabled`."""

    def __init__(self, recipe: Tracked, mode: str, last_step_kept: int | None) -> None:
        """`mode` is `wandb_mode`'s.

        Every attempt of a training is a run of its own, in one group, by the step that it goes on from. None stands for
        the evaluations of its checkpoints, which are one run that grows.
        """
        self._run: Any = None
        if mode == "disabled":
            return
        import wandb

        folder = Path(_variable("WANDB_DIR") or recipe.run_folder)
        folder.joinpath("wandb").mkdir(parents=True, exist_ok=True)
        settings = {"silent": True, "console": "off", "init_timeout": 30}
        part = "-evaluation" if last_step_kept is None else ""
        run_id = f"{recipe.general.run}-{recipe.hash()[:12]}" + ("" if part else f"-{last_step_kept}")
        unset = {key: value for key, value in settings.items() if not _variable(f"WANDB_{key.upper()}")}
        arguments: dict[str, Any] = {
            "project": _variable("WANDB_PROJECT") or recipe.general.project,
            "name": (_variable("WANDB_NAME") or recipe.general.run) + part,
            "group": _variable("WANDB_RUN_GROUP") or recipe.general.run,
            "id": (_variable("WANDB_RUN_ID") or run_id) + part,
            "resume": _variable("WANDB_RESUME") or ("allow" if part else None),
            "dir": str(folder),
            "config": recipe.to_dict(),
            "mode": mode,
        }
        self._run = wandb.init(**arguments, settings=wandb.Settings(**unset))

    def log(self, row: Mapping[str, Any]) -> None:
        """`row` under its "step", which is never less than the one before: wandb drops those."""
        if self._run is not None:
            self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def wandb_mode(recipe: Tracked) -> str:
    """The `mode` of wandb.init, decided before anything is written. WANDB_MODE goes before `wandb.mode`.

    `auto` is online for a user who is logged in and whose server answers, else offline.

    Raises:
        TrackingError: online without a login or a server that answers, or a WANDB_MODE that wandb does not have.
    """
    if (_variable("WANDB_DISABLED") or "").lower() in _TRUE:  # transformers' variable
        return "disabled"
    chosen = _variable("WANDB_MODE")
    if chosen is not None and chosen not in (*_ONLINE, *_OFFLINE):
        raise TrackingError(
            f"WANDB_MODE is {chosen!r}, which wandb does not have. Set it to online, offline or disabled, or unset it "
            f"to let wandb.mode decide."
        )
    mode = chosen or recipe.wandb.mode
    if mode in _OFFLINE:
        return mode
    server, logged_in = wandb_server(), wandb_logged_in()
    reachable = logged_in and _answers(server)
    if mode == "auto":
        return "online" if reachable else "offline"
    if not reachable:
        problem = f"{server} does not answer" if logged_in else "nobody is logged in (run `wandb login`)"
        said = f"WANDB_MODE is {chosen}" if chosen else "wandb.mode is online"
        remedy = "WANDB_MODE=offline" if chosen else "wandb.mode=offline"
        otherwise = "unset WANDB_MODE" if chosen else "set wandb.mode=auto"
        raise TrackingError(
            f"{said}, but {problem}. Set {remedy} and upload later with `wandb sync`, or {otherwise} to let the run "
            f"decide."
        )
    return mode


def _variable(name: str) -> str | None:
    """What the user set; wandb takes an empty variable for none."""
    return os.environ.get(name) or None


def wandb_server() -> str:
    return _variable("WANDB_BASE_URL") or "https://api.wandb.ai"


def wandb_logged_in() -> bool:
    """Whether there is a key for the server; it is not tried."""
    if _variable("WANDB_API_KEY"):
        return True
    host = urlparse(wandb_server()).hostname or ""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and host in netrc.read_text(encoding="utf-8", errors="replace")


def _answers(server: str, timeout_seconds: float = 3.0) -> bool:
    address = urlparse(server)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False
