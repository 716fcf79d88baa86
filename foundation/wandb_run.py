"""Runs in wandb: whether to use it, decided before anything is written, and without prompts or hangs."""

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from foundation.errors import UserError
from foundation.recipe import Recipe


class TrackingError(UserError):
    """wandb was asked for and cannot be used."""


class Wandb:
    """wandb without prompts and without hangs; `log` is a no-op when the recipe disables it."""

    def __init__(self, recipe: Recipe, mode: str, last_step_kept: int) -> None:
        self._run: Any = None
        if mode == "disabled":
            return
        import wandb

        recipe.run_folder.joinpath("wandb").mkdir(exist_ok=True)
        self._run = wandb.init(
            project=recipe.general.project,
            name=recipe.general.run,
            group=recipe.general.run,  # with the runs of other attempts, and of its checkpoints' evaluations
            id=f"{recipe.general.run}-{recipe.hash()[:12]}-{last_step_kept}",
            dir=str(recipe.run_folder),
            config=recipe.to_dict(),
            mode="online" if mode == "online" else "offline",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )

    def log(self, row: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def wandb_mode(recipe: Recipe) -> str:
    """`online`, `offline` or `disabled`, decided before anything is written.

    `auto` is online for a user who is logged in and whose server answers, else offline.

    Raises:
        TrackingError: `wandb.mode: online` without a login or a server that answers.
    """
    mode = os.environ.get("WANDB_MODE") or recipe.wandb.mode
    if mode not in ("auto", "online"):
        return mode
    server, logged_in = wandb_server(), wandb_logged_in()
    reachable = logged_in and _answers(server)
    if mode == "auto":
        return "online" if reachable else "offline"
    if not reachable:
        problem = f"{server} does not answer" if logged_in else "nobody is logged in (run `wandb login`)"
        raise TrackingError(
            f"wandb.mode is online, but {problem}. Set wandb.mode=offline and upload later with `wandb sync`, or "
            f"wandb.mode=auto to let the run decide."
        )
    return "online"


def wandb_server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def wandb_logged_in() -> bool:
    """Whether there is a key for the server; it is not tried."""
    if os.environ.get("WANDB_API_KEY"):
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
