"""Ending a run on request: behind the step that is under way, with a checkpoint, on all processes in the same step."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foundation.outcome import STOP_SIGNALS, StopSignal

_STUCK = 70  # exit code, as of a pretraining rank that cannot go on; EX_SOFTWARE of sysexits.h


class StopRequest:
    """Whether this process was sent SIGUSR1 (Slurm's warning before the time limit) or SIGTERM (preemption)."""

    def __init__(self, patience_seconds: float = 60.0, program: StopSignal | None = None) -> None:
        """`patience_seconds`: see StepWatch. `program` is the signal that ends this program while it starts."""
        self.patience_seconds = patience_seconds
        self._program = program
        self.watch: StepWatch | None = None
        self._signal: StopSignal | None = None
        self._asked_before = False

    def nothing_to_save(self) -> None:
        """From here to the next `heeded` a request ends the program at once."""
        if self._program is not None:
            self._program.ends_at_once = True

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Remember both signals instead of dying of them, for as long as there is something to save."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self._signal = StopSignal()
        if self._program is not None:
            self._program.ends_at_once = False
        self.watch = StepWatch(self.patience_seconds)
        try:
            yield
        finally:
            self.watch.close()
            self._asked_before, self._signal = self._asked_here, None
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def _asked_here(self) -> bool:
        signals = (self._signal, self._program)
        return self._asked_before or any(known.requested for known in signals if known is not None)

    def agreed(self) -> bool:
        """Whether any process of the run was asked. To be called on all of them alike: a signal may reach one alone."""
        if not torch.distributed.is_initialized():
            return self._asked_here
        asked = torch.tensor(int(self._asked_here), device=PartialState().device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked.item())


class StopBehindStep(TrainerCallback):
    """Ends training, with a checkpoint, in the step in which the request is agreed on."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.request.watch is not None:
            self.request.watch.step_ended()
        # One number more to wait for, where logging the loss of each step waits for the device anyway.
        if self.request.agreed():
            self._leave_time_to_save()
            control.should_save = control.should_training_stop = True
        elif control.should_save and self.request.watch is not None:
            self.request.watch.pause()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.request.watch is not None:
            self.request.watch.resume()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._leave_time_to_save()

    def _leave_time_to_save(self) -> None:
        if self.request.watch is not None:
            self.request.watch.close()


class StepWatch:
    """Ends this process if no step ends within `patience_seconds` of a SIGTERM, or five times the slowest step so far.

    It waits as long as it takes for a save, and for the first two steps: one pays for start-up (and for APO's reference
    log-probabilities), and the other is the first to tell how long a step is.

    torchrun sends SIGTERM as well when another process has died. This one may then wait for the dead one inside a
    collective operation, where no signal handler of Python's runs; so a thread is told of the signal.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._steps = 0
        self._slowest_seconds = 0.0
        self._step_began = time.monotonic()
        self._paused = False
        self._closed = False
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._descriptor_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True, name="step watch").start()

    def step_ended(self) -> None:
        now = time.monotonic()
        if self._steps:  # the first one pays for start-up
            self._slowest_seconds = max(self._slowest_seconds, now - self._step_began)
        self._steps, self._step_began = self._steps + 1, now

    def pause(self) -> None:
        """A save begins, which is no part of a step."""
        self._paused = True

    def resume(self) -> None:
        self._step_began, self._paused = time.monotonic(), False

    def close(self) -> None:
        """From here on everything takes the time that it takes."""
        if not self._closed:
            self._closed = True
            signal.set_wakeup_fd(self._descriptor_before)
            os.close(self._writing)

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM:
                self._leave_unless_a_step_ends()
        os.close(reading)

    def _leave_unless_a_step_ends(self) -> None:
        steps, asked = self._steps, time.monotonic()
        patience = max(self._patience_seconds, 5 * self._slowest_seconds)
        while self._steps == steps and not self._closed:
            is_watched = steps >= 2 and not self._paused
            if is_watched and time.monotonic() > max(asked, self._step_began) + patience:
                print("SIGTERM, and no step ends: another process is gone.", file=sys.stderr, flush=True)
                os._exit(_STUCK)
            time.sleep(0.1)
