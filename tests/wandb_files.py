"""What offline runs of wandb have written."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2


@dataclass
class OfflineRun:
    """A run, and its history rows."""

    project: str = ""
    name: str = ""
    group: str = ""
    run_id: str = ""
    rows: list[dict[str, object]] = field(default_factory=list)


def _records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Of an offline run of less than one block: 7 bytes of header, then crc (4), length (2), type (1) and record."""
    content, position = file.read_bytes(), 7
    assert len(content) < 32768
    while position + 7 <= len(content):
        (length,) = struct.unpack_from("<H", content, position + 4)
        if position + 7 + length > len(content):
            break
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content[position + 7 : position + 7 + length])
        yield record
        position += 7 + length


def _finished(file: Path) -> list[wandb_internal_pb2.Record]:
    """All records; wandb's service may write them a moment after `finish` has returned."""
    deadline = time.monotonic() + 10
    while True:
        records = list(_records(file))
        if records and records[-1].HasField("exit"):
            return records
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.02)


def _begun(file: Path) -> int:
    return file.parent.stat().st_ctime_ns


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs of the folder, oldest first."""
    runs = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=_begun):
        run = OfflineRun()
        for record in _finished(file):
            if record.run.run_id:
                run.project, run.name = record.run.project, record.run.display_name
                run.group, run.run_id = record.run.run_group, record.run.run_id
            if record.history.item:
                items = record.history.item
                run.rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        runs.append(run)
    return runs
