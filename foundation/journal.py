"""A run's journals: metrics.jsonl and samples.jsonl, one JSON object per line, in the order of their "step".

The first rank alone writes, and only at the end. A stage of the 3B run has 3.45 million rows (a gigabyte), so whoever
needs one row, or the last few, reads those: they are found from the file's end, or by bisection over its bytes. What is
no whole row at the end (a line that a kill or a full disk cut anywhere, zeros that a power cut left) is nobody's row,
and the next start of the run cuts it off.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import UserError
from foundation.files import flush, flush_file

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TIMINGS_FILE = "timings.jsonl"  # of starts and saves; see nanotron_ext/train/timings.py
_BLOCK_BYTES = 65536

Row = dict[str, Any]


class JournalError(UserError):
    """A journal with a damaged line among whole ones."""


class StepLog:
    """One JSON object per step, in full precision, in order and without repeats after a resume."""

    def __init__(self, path: Path, last_step_kept: int) -> None:
        """Continue the file, cutting off what lies behind the checkpoint that the run continues from.

        The file's modification time is that of the last row, or of this start: slurm/attempts.py tells by it whether
        training has begun.
        """
        is_new = not path.exists()
        path.touch()
        with path.open("rb") as file:
            end = _end_of_rows(file, last_step_kept)
        os.truncate(path, end)
        self._file = path.open("ab")
        if is_new:
            flush(path.parent)

    def write(self, row: Row) -> None:
        """Append a row; a reader sees it when this returns."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Have the disk hold all rows, so that a checkpoint never outlives the rows in front of it."""
        flush_file(self._file)

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> Iterator[Row]:
    """All rows, oldest first, one at a time; none if there is no file.

    Raises:
        JournalError: at a damaged line that whole rows follow.
    """
    if not path.is_file():
        return
    damaged = 0  # number of the first such line
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = _row_of(line)
            if row is None:
                damaged = damaged or number
            elif damaged:
                raise JournalError(f"Line {damaged} of {path} is no JSON object with a step. Remove that line.")
            else:
                yield row


def rows_from_end(path: Path, up_to_step: int | None = None) -> Iterator[Row]:
    """Rows, newest first, beginning with the last of at most `up_to_step`; reads no more than is asked for."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if up_to_step is None else _end_of_rows(file, up_to_step)
        for _, row in _backwards(file, end):
            yield row


def last_rows(path: Path, count: int) -> list[Row]:
    """The last `count` rows, or all if there are fewer, oldest first."""
    return list(itertools.islice(rows_from_end(path), count))[::-1]


def last_row(path: Path, up_to_step: int | None = None) -> Row | None:
    """The newest row, or the newest of at most `up_to_step`; None if there is none."""
    return next(rows_from_end(path, up_to_step), None)


def read_metrics(run_folder: Path) -> list[Row]:
    """All rows of `metrics.jsonl`, oldest first."""
    return list(read_rows(run_folder / METRICS_FILE))


def tokens_per_step(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Tokens that a step trained on at each of some rows that follow each other.

    "tokens" counts on from the run's first step, and the batch may have changed on the way. Without a row before, the
    first one's are taken from the next.
    """
    if len(rows) < 2:
        return [row["tokens"] / row["step"] for row in rows]
    steps = [(now["tokens"] - last["tokens"]) / (now["step"] - last["step"]) for last, now in itertools.pairwise(rows)]
    return [rows[0]["tokens"] if rows[0]["step"] == 1 else steps[0], *steps]


def read_samples(run_folder: Path) -> dict[int, list[tuple[str, int]]]:
    """Source and window number of each sample of each step, in the order of the global batch; see `log_samples`."""
    return {
        row["step"]: [(source, window) for source, window in row["samples"]]
        for row in read_rows(run_folder / SAMPLES_FILE)
    }


def _row_of(line: bytes) -> Row | None:
    """The row that a line holds; None if the line is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:  # no JSON, or no text
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _end_of_rows(file: BinaryIO, last_step: int) -> int:
    """The byte behind the last whole row of at most `last_step`.

    Bisection over bytes: the row that ends in `low` is of at most `last_step`, those that begin in `high` or behind it
    are not.
    """
    low, size = 0, file.seek(0, os.SEEK_END)
    high = next((stop for stop, _ in _backwards(file, size)), 0)
    while low < high:
        middle = (low + high) // 2
        found = _first_row(file, middle, high)
        if found is not None and found[1]["step"] <= last_step:
            low = found[0]
        else:
            high = middle
    return low


def _first_row(file: BinaryIO, start: int, stop: int) -> tuple[int, Row] | None:
    """(byte behind the row, row) for the first row that begins in [start, stop)."""
    file.seek(max(0, start - 1))
    if start:
        file.readline()  # the line that `start` lies in, or only the end of the one before
    while (begin := file.tell()) < stop:
        line = file.readline()
        if (row := _row_of(line)) is not None:
            return begin + len(line), row
        if not line:  # the file was cut meanwhile
            break
    return None


def _backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, Row]]:
    """(byte behind the row, row) for the rows before byte `end`, last first; damaged lines are left out."""
    for stop, line in _lines_backwards(file, end):
        if (row := _row_of(line + b"\n")) is not None:
            yield stop, row


def _lines_backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """(byte behind its line feed, line without it) for the whole lines before byte `end`, last first."""
    start, stop = end, end + 1  # as if a line feed followed what stands behind the last one
    begun: list[bytes] = []  # the rest of the line that byte `start` lies in, its blocks last first
    while start:
        size = min(_BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        first, *others = file.read(size).split(b"\n")
        if others:
            others[-1] += b"".join(reversed(begun))
            begun = []
        begun.append(first)
        for line in reversed(others):
            if stop <= end:
                yield stop, line
            stop -= len(line) + 1
    if 0 < stop <= end:
        yield stop, b"".join(reversed(begun))
