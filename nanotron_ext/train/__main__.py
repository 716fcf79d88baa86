"""Command line of the training run; started by torchrun, or alone for a layout of one process."""

import argparse
import logging
import os
import sys

from foundation.outcome import EXIT_CODES, StopSignal

# Segments that grow: a step over documents of all lengths asks for blocks of all sizes, and fixed segments leave memory
# between them that fits none. torch reads it when a GPU is first used; a setting of the user's stays.
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # as all releases call it, and newer ones prefer


def main() -> int:
    stop = StopSignal(ends_at_once=True)  # before imports that take seconds
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"
    from foundation.errors import MachineError, UserError
    from foundation.plain_text import plain
    from foundation.recipe import load_recipe

    parser = argparse.ArgumentParser(
        prog="torchrun ... -m nanotron_ext.train",
        description="Pretrain a recipe, from the newest checkpoint of its run folder on.",
    )
    parser.add_argument("recipe", help="YAML file, for example recipes/tiny/pretrain_stage1.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace single values")
    arguments = parser.parse_args()
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        level = recipe.logging.log_level.upper() if is_first else "ERROR"
        logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        from nanotron_ext.train.run import run  # seconds of imports, which a wrong recipe should not cost

        return EXIT_CODES[run(recipe, stop).outcome]
    except (UserError, MachineError) as error:
        if is_first:
            print(plain(f"error: {error}"), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 70


if __name__ == "__main__":
    sys.exit(main())
