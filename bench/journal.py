"""Resuming behind the 3.45 million rows of the 3B run's longest stage: time, and peak memory of the process.

    python bench/journal.py [--rows 3450000] [--out runs/bench-journal/journal.json]

Writes metrics.jsonl into a temporary folder (0.7 GB). Then, in a process of its own each: the import of the journal
alone, a resume at the last step, one a checkpoint (2,000 steps) before it, and one in the middle of the run. Time is
that of opening StepLog and writing the first row, of a file that the kernel was asked to drop from its cache; memory is
VmHWM. Exit code 1 above 2 s or 200 MB.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKPOINT_INTERVAL = 2000
TOKENS_PER_STEP = 2_359_296
LIMIT_SECONDS, LIMIT_MB = 2.0, 200.0

RESUME = """
import sys, time
from pathlib import Path
from foundation.journal import StepLog, last_row
path, step = Path(sys.argv[1]), int(sys.argv[2])
began = time.perf_counter()
if step:
    assert last_row(path, up_to_step=step)["step"] == step
    log = StepLog(path, step)
    log.write({"step": step + 1})
    log.close()
seconds = time.perf_counter() - began
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(seconds, int(peak) / 1024)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_450_000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-journal/journal.json"))
    options = parser.parse_args()
    steps = {
        "import alone": 0,
        "at the last step": options.rows,
        "one checkpoint back": options.rows - CHECKPOINT_INTERVAL,
        "in the middle": options.rows // 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_rows(path, options.rows)
        size = path.stat().st_size
        results = {name: resume(path, step) for name, step in steps.items()}
    document = {
        "rows": options.rows,
        "bytes": size,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d')}",
        "resume": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{options.rows:,} rows, {size / 1e9:.2f} GB; {document['machine']}")
    for name, (seconds, peak_mb) in results.items():
        print(f"{name:20} {seconds:8.4f} s {peak_mb:8.1f} MB")
    print(f"Wrote {options.out}.")
    return int(any(seconds > LIMIT_SECONDS or peak_mb > LIMIT_MB for seconds, peak_mb in results.values()))


def write_rows(path: Path, rows: int) -> None:
    """As pretraining writes them: full precision, the loader's account with every checkpoint, a torn last line."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, rows + 1):
            row = {
                "step": step,
                "loss": 2 + rng.random(),
                "lr": 2e-4 * (1 - step / (rows + 1)),
                "grad_norm": rng.random(),
                "tokens": step * TOKENS_PER_STEP,
                "tokens_per_second": 5e6 * (1 + rng.random()),
                "mfu": 0.3 + 0.01 * rng.random(),
            }
            if step % CHECKPOINT_INTERVAL == 0:
                row["data"] = {f"source{number}": {"tokens": step * number, "epochs": 0.5} for number in range(30)}
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 345')


def resume(path: Path, step: int) -> tuple[float, float]:
    """(seconds, peak MB) of a process that resumes at `step`; at 0 it imports what a resume imports."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # only what the disk holds can be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-c", RESUME, str(path), str(step)]
    seconds, peak_mb = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak_mb)


if __name__ == "__main__":
    sys.exit(main())
