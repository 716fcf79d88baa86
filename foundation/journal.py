"""A run's journal: metrics.jsonl and samples.jsonl, one JSON object per line. Only the first rank writes."""

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


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
