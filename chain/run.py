"""Run the whole chain of a profile on this machine: data, pretraining, post-training, merge, evaluation, report.

What is done and unchanged (recipe, data and code) is not done again; interrupted, the same command goes on.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType

from chain.runner import only_one, pending, run_step
from chain.state import read_state, reason_to_run, step_keys
from chain.steps import ChainError, select, steps_of
from chain.view import View, duration
from foundation.plain_text import plain
from jobs.plan import typed
from jobs.profile import Profile


def run_chain(profile: Profile, stages: Sequence[str], *, dry_run: bool = False) -> None:
    """Run what is not done of the profile's chain, or of its `stages`.

    Raises:
        UserError: wrong recipes, an unknown stage, or a stage whose command failed.
        KeyboardInterrupt: after the running stage has stopped.
    """
    chain = steps_of(profile)
    keys = step_keys(chain, profile.run)
    chosen = select(chain, stages) if stages else chain
    state = read_state(profile.run)
    state.steps = {name: state.steps[name] for name in keys if name in state.steps}  # in the order of the chain
    todo = pending(chosen, keys, state)
    for step in todo:
        waits = [other for other in pending(chain, keys, state) if other.name in step.needs and other not in todo]
        if waits:
            raise ChainError(
                f"{step.name} needs {waits[0].name}, which the chain has to run first: it "
                f"{reason_to_run(waits[0], keys, state)}. Add it to the stages, or give none."
            )
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
        print(plain(summary.read_text(encoding="utf-8")))
    total = sum(record.seconds for name, record in state.steps.items() if name in keys)
    print(f"The stages took {duration(total)} in all.")


def run_profile(profile: Profile, stages: Sequence[str], *, dry_run: bool = False) -> None:
    """`run_chain`, alone in the run folder; a dry run prints what would run, and runs nothing."""
    os.environ["RUN"] = str(profile.run)  # for the commands, and for ${RUN} in recipes
    with nullcontext() if dry_run else only_one(profile.run):
        run_chain(profile, stages, dry_run=dry_run)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """A closed terminal and a plain kill are as good as a Ctrl-C: else the running stage would outlive the chain."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
