"""Against regressions, nightly: ratios of the step benchmark against floors, and instructions of the loader's hot path.

No absolute time is compared: a ratio is of two variants that took their steps in turns on the same machine, in CPU
time of one thread, and instructions are counted by callgrind (Debian package valgrind).

    python bench/guard.py
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from data import SAMPLES_PER_STEP, small_recipe, write_small_sources
from stepbench.compare import compare
from stepbench.variants import OURS
from stepbench.work import Work

PEER = "transformers sdpa"
ROUNDS = 3
LEAST_SPEED_RATIO, MOST_MEMORY_RATIO = 1.3, 0.7
SEQUENCE_LENGTH, LOADER_STEPS = 4096, 40
# Counted with Python 3.11, numpy 2.4 and torch 2.13; the ceiling is a tenth above 88,154.
MOST_INSTRUCTIONS_PER_SAMPLE = 97_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loader", type=Path, metavar="FOLDER", help="what callgrind counts, on sources in FOLDER")
    if folder := parser.parse_args().loader:
        load_batches(folder)
        return 0
    problems = [*step_problems(), *loader_problems()]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def step_problems() -> list[str]:
    work = Work("30m", "float32", 2048, 1, 1, 512)
    measured = compare(work, [OURS, PEER], ROUNDS, threads=1, device="cpu")
    ours, peer = measured[OURS], measured[PEER]
    if ours.error or peer.error:
        return [f"{OURS}: {ours.error}; {PEER}: {peer.error}"]
    speed = statistics.median(other / own for other, own in zip(peer.seconds, ours.seconds, strict=True))
    memory = ours.peak_megabytes / peer.peak_megabytes
    print(f"step, 30m: {speed:.2f} x the speed of {PEER} (floor {LEAST_SPEED_RATIO}), {memory:.2f} of its memory")
    slow = [f"the step is only {speed:.2f} x as fast as {PEER}"] if speed < LEAST_SPEED_RATIO else []
    return slow + ([f"the step takes {memory:.2f} of its memory"] if memory > MOST_MEMORY_RATIO else [])


def loader_problems() -> list[str]:
    if shutil.which("valgrind") is None:
        print("loader: not counted, valgrind is not installed (apt-get install valgrind)")
        return []
    with tempfile.TemporaryDirectory() as folder:
        write_small_sources(Path(folder))
        counted = Path(folder) / "callgrind.out"
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={counted}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        subprocess.run([*tool, sys.executable, __file__, "--loader", folder], check=True, env=environment)
        instructions = int(re.findall(r"^(?:summary|totals): (\d+)", counted.read_text(), re.MULTILINE)[-1])
    per_sample = round(instructions / LOADER_STEPS / SAMPLES_PER_STEP[SEQUENCE_LENGTH])
    print(f"loader: {per_sample:,} instructions per sample (ceiling {MOST_INSTRUCTIONS_PER_SAMPLE:,})")
    if per_sample > MOST_INSTRUCTIONS_PER_SAMPLE:
        return [f"the loader takes {per_sample:,} instructions per sample"]
    return []


def load_batches(folder: Path) -> None:
    """Under callgrind: all that a step takes from the loader, counted once imports and the first step are over."""
    from nanotron_ext.data.loader import MixtureLoader

    loader = MixtureLoader(small_recipe(folder, SEQUENCE_LENGTH), 0, 1)
    for step in range(LOADER_STEPS + 1):
        for micro_batch in loader.batch(step + 1).micro_batches:
            _ = micro_batch.input_ids, micro_batch.label_ids, micro_batch.label_mask
        if step == 0:
            subprocess.run(["callgrind_control", "--instr=on", str(os.getpid())], check=True, capture_output=True)
    subprocess.run(["callgrind_control", "--instr=off", str(os.getpid())], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
