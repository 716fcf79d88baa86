"""Whatever the training loop asks of disks, networks or other programs happens in a phase that allows for minutes.

An audit hook of the interpreter sees each such call of the main thread, whoever makes it, so that one that nobody
announced fails here, and not at a file server's next failover.
"""

import functools
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import UserError
from foundation.journal import StepLog
from foundation.recipe import Recipe
from nanotron_ext.train.heartbeat import Heartbeat
from nanotron_ext.train.run import run
from nanotron_ext.train.spikes import SpikeDetector
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

BLOCKING = ("open", "os.", "shutil.", "glob.", "pathlib.", "subprocess.", "socket.connect", "socket.getaddrinfo",
            "time.sleep", "fcntl.")  # fmt: skip
HARMLESS = ("os.putenv", "os.unsetenv", "os.urandom", "os.register_at_fork")


class Watch:
    """Notes calls that may block while the watchdog allows for no more than a slow step, or does not look."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.unannounced: set[str] = set()
        self._heartbeat: Heartbeat | None = None
        enter = Heartbeat.__enter__

        def entered(heartbeat: Heartbeat) -> Heartbeat:
            self._heartbeat = heartbeat
            return enter(heartbeat)

        Heartbeat.__enter__ = entered  # type: ignore[method-assign]
        sys.addaudithook(self._on_event)
        for owner, name in ((os, "fsync"), (StepLog, "write"), (StepLog, "sync"), (StepLog, "close")):
            self._note_calls(owner, name)  # no event tells of writes to an open file

    def _note_calls(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def noted(*arguments: Any) -> Any:
            self._happened(f"{name} of {owner.__name__}")
            return function(*arguments)

        setattr(owner, name, noted)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(BLOCKING) and event not in HARMLESS:
            if str(arguments[0]).startswith(("/proc/", "/sys/")) or arguments[0] == os.devnull:
                return
            self._happened(f"{event} {arguments[0]}")

    def _happened(self, what: str) -> None:
        heartbeat = self._heartbeat
        if heartbeat is None or threading.current_thread() is not threading.main_thread():
            return
        phase = heartbeat._phase
        self.seen.add(phase.activity)
        if heartbeat._closing.is_set():
            self.unannounced.add(f"unwatched: {what}")
        elif phase.work is None and phase.activity in heartbeat._first:  # the first time may take minutes anyhow
            self.unannounced.add(f"{phase.activity}: {what}")


def run_watched(recipe: Recipe, spike_step: int | None) -> tuple[set[str], set[str]]:
    watch, steps = Watch(), iter(range(1, 100))
    if spike_step is not None:
        SpikeDetector.observe = lambda *_: "loss 99" if next(steps) == spike_step else None  # type: ignore[method-assign]
    try:
        run(recipe)
    except UserError as error:
        assert "Its samples are" in str(error)
    return watch.seen, watch.unannounced


@pytest.mark.parametrize("case", ["to the end", "spike"])
def test_no_call_that_may_block_goes_unannounced(case: str, tmp_path: Path) -> None:
    """Everything that a run can do: evaluations, samples, saves, pruning, uploads; or an end at a spike."""
    prepare(tmp_path)
    recipe = tiny_recipe(
        tmp_path,
        checkpoints=f"{{checkpoint_interval: 2, keep_last: 1, remote_path: file://{tmp_path}/bucket}}",
        tokens="{sequence_length: 16, train_steps: 8, micro_batch_size: 2, val_check_interval: 2}",
        logging__log_samples="true",
        spikes__action="stop",
    )
    of_ranks = run_ranks(run_watched, 2, recipe, 7 if case == "spike" else None)
    assert {"writing checkpoint 4", "recording the step"} <= of_ranks[0][0]  # so the hook does see
    assert [unannounced for _, unannounced in of_ranks] == [set(), set()]
