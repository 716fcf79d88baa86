"""Where a run's numbers go: metrics.jsonl, the console and wandb. Only the first rank writes."""

import json
import logging
import os
import socket
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from nanotron_ext.errors import UserError
from nanotron_ext.recipe import Recipe

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
_SMOOTHED_STEPS = 20

logger = logging.getLogger("nanotron_ext.train")


class TrackingError(UserError):
    """wandb was asked for and cannot be used."""


class StepLog:
    """One JSON object per step, in full precision, in order and without repeats after a resume."""

    def __init__(self, path: Path, last_step_kept: int) -> None:
        """Continue the file, dropping what lies behind the checkpoint that the run continues from."""
        kept = [row for row in _read_rows(path) if row["step"] <= last_step_kept]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`, oldest first."""
    return _read_rows(run_folder / METRICS_FILE)


def read_samples(run_folder: Path) -> dict[int, list[tuple[str, int]]]:
    """Source and window number of each sample of each step, in the order of the global batch; see `log_samples`."""
    return {
        row["step"]: [(source, window) for source, window in row["samples"]]
        for row in _read_rows(run_folder / SAMPLES_FILE)
    }


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a StepLog, oldest first; a last line that was cut by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Console:
    """A line every few steps: where the run is, how it does, when it ends."""

    def __init__(self, recipe: Recipe) -> None:
        self._last_step = recipe.last_step
        self._interval = recipe.logging.iteration_step_info_interval
        self._seconds: deque[float] = deque(maxlen=_SMOOTHED_STEPS)

    def show(self, row: dict[str, Any], seconds: float) -> None:
        step = row["step"]
        # The first step of a process pays for warm-up and would spoil the estimate.
        self._seconds.append(seconds)
        if step % self._interval and step != self._last_step:
            return
        eta = (self._last_step - step) * sum(self._seconds) / len(self._seconds)
        logger.info(
            f"step {step}/{self._last_step} | loss {row['loss']:.4f} | lr {row['lr']:.3g} | "
            f"grad norm {row['grad_norm']:.3f} | {row['tokens_per_second']:,.0f} tokens/s | mfu {row['mfu']:.1%} | "
            f"data {row['data_wait_seconds'] * 1e3:.1f} ms | eta {_duration(eta)}"
        )
        for source, bits in row.get("validation_bits_per_byte", {}).items():
            logger.info(f"  held-out {source}: {bits:.4f} bits per byte")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


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
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    logged_in = _wandb_logged_in(server)
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


def _wandb_logged_in(server: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(server).hostname or ""
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
