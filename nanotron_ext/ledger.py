"""`<run>/ledger.jsonl`: what people decided about a run that its recipe does not say, one JSON object per line.

{"event": "rewind", "time": ..., "to_step": 400, "skipped_samples": [1024, 256]}   first sample and their number
{"event": "recipe changed", "time": ..., "step": 400, "changes": {key: [old, new]}}
{"event": "keeping other checkpoints", "time": ..., "spared_up_to": 400}   older ones stay (retention.py)
"""

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundation.files import flush_file

LEDGER_FILE = "ledger.jsonl"
Samples = tuple[int, int]  # first sample of a range, counted over the whole run, and their number


def record(run_folder: Path, event: str, **content: Any) -> None:
    """Append an entry, and have it on disk before anything follows from it.

    Nothing has followed from one that a kill cut off, so it goes.
    """
    path = run_folder / LEDGER_FILE
    path.touch()
    os.truncate(path, len(_whole_lines(path)))
    entry = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **content}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        flush_file(file)


def read(run_folder: Path, *events: str) -> list[dict[str, Any]]:
    """Entries of these kinds, oldest first."""
    entries = map(json.loads, _whole_lines(run_folder / LEDGER_FILE).splitlines())
    return [entry for entry in entries if entry["event"] in events]


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]


def skipped_samples(run_folder: Path, before: Iterable[Iterable[int]] = ()) -> list[Samples]:
    """All ranges that the run leaves out, in order; `before` are those that the run it continues has left out."""
    own = [entry["skipped_samples"] for entry in read(run_folder, "rewind") if entry["skipped_samples"]]
    ranges: set[Samples] = set()
    for first, count in [*before, *own]:
        ranges.add((first, count))
    return sorted(ranges)
