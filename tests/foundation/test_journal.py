"""Journals that are cut anywhere, resumed anywhere and read while they grow; how little of a long one is read."""

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.journal import JournalError, StepLog, last_row, last_rows, read_rows, rows_from_end

ROWS = [{"step": step, "loss": 10 / step, "note": "µ" * step} for step in range(1, 9)]


def lines_of(rows: list[dict[str, Any]]) -> list[bytes]:
    """Not escaped to ASCII, so that a line can be cut within a character."""
    return [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]


def resume(path: Path, step: int) -> None:
    log = StepLog(path, step)
    log.write({"step": step + 1})
    log.close()


TORN = {
    "nothing behind the last line": b"",
    "a line cut within a number": b'{"step": 9, "loss": 1.1',
    "a line cut within a character": '{"step": 9, "note": "µ'.encode()[:-1],
    "a line cut before its line feed": b'{"step": 9, "loss": 1.1}',
    "zeros of a power cut": bytes(5000),
    "zeros of a power cut, then a line": bytes(5000) + b'9, "loss": 1.1}\n',
    "lines of another kind": b"[9]\n9\n\n{}\n",
    "a long line": b'{"step": 9, "note": "' + b"x" * 300_000,
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN.keys())
@pytest.mark.parametrize("step", [0, 1, 5, 8])
def test_resume_behind_a_torn_end(tmp_path: Path, step: int, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(lines_of(ROWS)) + torn)
    assert list(read_rows(path)) == ROWS and last_rows(path, 3) == ROWS[-3:]
    resume(path, step)
    assert path.read_bytes() == b"".join(lines_of(ROWS[:step])) + json.dumps({"step": step + 1}).encode() + b"\n"


@pytest.mark.parametrize("content", [None, b"", b"{", lines_of(ROWS)[0][:-1], b"\n", bytes(9)])
def test_no_whole_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert list(read_rows(path)) == [] and last_row(path) is None and last_row(path, up_to_step=4) is None
    resume(path, 0)
    assert list(read_rows(path)) == [{"step": 1}]


def test_any_cut_of_any_file(tmp_path: Path) -> None:
    """Against a list in memory: rows shorter and longer than what is read at a time, some steps missing or twice."""
    path, rng = tmp_path / "samples.jsonl", random.Random(0)
    for _ in range(60):
        longest = rng.choice([1, 300, 200_000])
        steps = sorted(rng.choices(range(1, 40), k=rng.randrange(30)))
        rows = [{"step": step, "samples": "x" * rng.randrange(longest)} for step in steps]
        content = b"".join(lines_of(rows))
        content = content[: rng.randrange(len(content) + 1)] if rng.random() < 0.5 else content
        whole = rows[: content.count(b"\n")]
        path.write_bytes(content)
        step = rng.randrange(42)
        kept = [row for row in whole if row["step"] <= step]
        assert list(rows_from_end(path)) == whole[::-1]
        assert list(rows_from_end(path, up_to_step=step)) == kept[::-1]
        StepLog(path, step).close()
        assert list(read_rows(path)) == kept and path.read_bytes() == b"".join(lines_of(kept))


def test_damaged_line_in_the_middle_is_named_by_who_reads_all_and_stops_no_resume(tmp_path: Path) -> None:
    path, lines = tmp_path / "metrics.jsonl", lines_of(ROWS)
    lines[3] = bytes(len(lines[3]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"Line 4 of .*Remove that line"):
        list(read_rows(path))
    for step in (7, 4, 3):
        assert (last_row(path, up_to_step=step) or {})["step"] == min(step, 7) - (step == 4)
        StepLog(path, step).close()
        assert path.read_bytes() == b"".join(lines[: 3 if step == 4 else step])


def test_a_reader_sees_each_row_once_it_is_written_and_a_start_changes_the_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = StepLog(path, 0)
    for row in ROWS:
        log.write(row)
        assert last_row(path) == row
    log.close()
    os.utime(path, ns=(0, 0))
    before = path.stat()
    StepLog(path, 8).close()  # slurm/attempts.py: a training has begun
    assert path.stat().st_mtime_ns > 0
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


def test_sync_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "metrics.jsonl", []
    log = StepLog(path, 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor)))
    log.write({"step": 1})
    log.sync()
    log.close()
    assert [(status.st_ino, status.st_size) for status in synced] == [(path.stat().st_ino, path.stat().st_size)]


class CountingPath(type(Path())):  # type: ignore[misc]
    """A file that counts the bytes read from it."""

    bytes_read = 0

    def open(self, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        return io.BufferedReader(_Counting(self)) if mode == "rb" else super().open(mode, *arguments, **keywords)


class _Counting(io.FileIO):
    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        CountingPath.bytes_read += count or 0
        return count

    def read(self, size: int | None = -1) -> bytes | None:
        data = super().read(-1 if size is None else size)
        CountingPath.bytes_read += len(data or b"")
        return data

    def readall(self) -> bytes | None:
        data = super().readall()
        CountingPath.bytes_read += len(data or b"")
        return data


def test_how_much_of_a_long_file_is_read(tmp_path: Path) -> None:
    """200,000 rows: a bisection of 28 probes of 8 KiB and up to two blocks of 64 KiB, whichever the step."""
    path = CountingPath(tmp_path / "metrics.jsonl")
    row = '{"step": %d, "loss": 2.123456789012345, "lr": 0.0002, "grad_norm": 0.3, "tokens": %d}\n'
    path.write_text("".join(row % (step, 2_359_296 * step) for step in range(1, 200_001)))
    size = path.stat().st_size
    cases: list[tuple[Callable[[], object], object]] = [
        (lambda: (last_row(path) or {})["step"], 200_000),
        (lambda: [row["step"] for row in last_rows(path, 3)], [199_998, 199_999, 200_000]),
        (lambda: (last_row(path, up_to_step=77_777) or {})["step"], 77_777),
        (lambda: StepLog(path, 200_000).close(), None),
        (lambda: StepLog(path, 123_456).close(), None),
    ]
    for read, result in cases:
        CountingPath.bytes_read = 0
        assert read() == result
        assert 0 < CountingPath.bytes_read < 700_000 < size / 20
    assert (last_row(path) or {})["step"] == 123_456
