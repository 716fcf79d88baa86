"""Run the whole chain of a profile on this machine: data, pretraining, post-training, merge, evaluation, report.

`python -m chain recipes/tiny [STAGE ...]`. What is done and unchanged (recipe, data and code) is not done again;
interrupted, the same command goes on. Results go to RUN (default runs/<profile>).
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType

from chain.runner import only_one, pending, run_step
from chain.state import read_state, reason_to_run, step_keys
from chain.steps import ChainError, select, steps_of
from chain.view import View, duration
from foundation.errors import UserError
from jobs.plan import typed
from jobs.profile import Profile


def run_chain(profile: Profile, stages: list[str], *, dry_run: bool = False) -> None:
    """Run what is not done of the profile's chain, or of its `stages`.

    Raises:
        UserError: wrong recipes, an unknown stage, or a stage whose command failed.
        KeyboardInterrupt: after the running stage has stopped.
    """
    chain = steps_of(profile)
    keys = step_keys(chain)
    chosen = select(chain, stages) if stages else chain
    state = read_state(profile.run)
    state.steps = {name: state.steps[name] for name in keys if name in state.steps}  # in the order of the chain
    todo = pending(chosen, keys, state)
    for step in todo:
        waits = [other for other in pending(chain, keys, state) if other.name in step.needs and other not in todo]
        if waits:
            raise ChainError(f"{step.name} needs {waits[0].name}, which is not done. Add it to STAGES, or give none.")
    print(
        f"{profile.recipes} -> {profile.run}: {len(chosen) - len(todo)} of {len(chosen)} stages are done.", flush=True
    )
    if dry_run:
        for step in todo:
            print(f"  {step.name} ({reason_to_run(step, keys, state)}): {typed(profile, step.plan.commands)}")
        return
    with View(chain, state, todo) as view:
        for step in todo:
            run_step(step, profile.run, keys, state, view.tick)
            view.finished(step, state.steps[step.name].seconds)
    summary = profile.run / "logs" / "report.log"
    if summary.is_file():
        print(summary.read_text(encoding="utf-8"))
    total = sum(record.seconds for name, record in state.steps.items() if name in keys)
    print(f"The stages took {duration(total)} in all.")


def exit_status(run: Callable[[], None]) -> int:
    """Of a command that does `run`: 0, 2 after an error of the user's, 130 when it was stopped.

    A closed terminal and a plain kill are as good as a Ctrl-C: else the running stage would outlive the chain.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped in good order; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chain", description=__doc__)
    parser.add_argument("recipes", type=Path, help="folder of recipes, such as recipes/tiny")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="only these, such as sft or pretrain; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    options = parser.parse_args()
    run = Path(os.environ.setdefault("RUN", f"runs/{options.recipes.name}"))
    os.environ["PROFILE"], os.environ["RECIPES"] = options.recipes.name, str(options.recipes)

    def run_what_is_left() -> None:
        with nullcontext() if options.dry_run else only_one(run):
            run_chain(Profile(options.recipes, run), options.stages, dry_run=options.dry_run)

    return exit_status(run_what_is_left)


if __name__ == "__main__":
    sys.exit(main())
