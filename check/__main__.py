"""Preflight without a GPU: `python -m check RECIPE... [--data]`.

Validates recipes of every phase: keys and what must hold between them, sources against the registry, the recipe that a
run starts from, the Slurm script's nodes and GPUs against the layout. With --data also what a pretraining run finds on
disk: shards, tokenizer, checkpoint to start from, run folder and space.
"""

import argparse
import sys
from pathlib import Path

from check.recipes import check
from foundation.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    parser.add_argument("--data", action="store_true", help="also look at data, checkpoints and disk space")
    arguments = parser.parse_args()
    failures = 0
    for path in arguments.recipes:
        try:
            print(f"{path}: {check(path, arguments.data)}")
        except UserError as error:
            failures += 1
            print(error, file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
