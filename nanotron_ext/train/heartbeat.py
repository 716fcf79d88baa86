"""A dead or hung rank ends the whole job within a minute, with its name, its step and its Python stack.

Beside the training, a thread of every rank tells the job's store every few seconds how far the main thread has come.
The first rank watches all, and all others watch the first. Whoever finds a rank that is silent (killed, its machine
lost) raises the alarm, and so does the first rank when the job is stuck: no rank has made progress for longer than its
phase allows. As long as one does, the others may well be waiting for it. On an alarm every rank writes its stacks to
`<run>/logs/stacks-rank<n>.txt`, torch's flight recorder beside them, and ends; one of them first says which rank was
the cause: the one that has not entered the collective operation in which others wait (collectives.py).

How long a phase may take without progress:

| phase | limit |
| --- | --- |
| training, validation, bookkeeping | the time-out, or SLOW_STEP_FACTOR times the slowest so far |
| each of them for the first time, start-up: compiling, connecting | START_UP_FACTOR times the time-out |
| waiting for disks and object storage | STORAGE_FACTOR times the time-out; every block that is done is progress |

The first of a phase pays for compiling, so it counts for the second one's limit alone.

The main thread pays for one assignment per phase of a step.
"""

import contextlib
import dataclasses
import faulthandler
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

import torch.distributed

from foundation import outcome
from foundation.errors import UserError
from foundation.outcome import Outcome
from foundation.progress import Work
from foundation.recipe import Recipe
from nanotron_ext.engine import Launch, node_name
from nanotron_ext.train import flight_recorder
from nanotron_ext.train.collectives import causes, entered
from nanotron_ext.train.flight_recorder import PREFIX

logger = logging.getLogger("nanotron_ext.train")

BEATS_PER_TIMEOUT = 10
START_UP_FACTOR = 60
SLOW_STEP_FACTOR = 5  # steps that take long by themselves are not stuck
STORAGE_FACTOR = 17  # 306 s by default: a file server may fail over for minutes. At FLUSH_BYTES, 0.9 MB/s are enough.
EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
USER_ERROR_EXIT_CODE = 2
_WAITING_PLACES = ("/torch/distributed/", "/nanotron/distributed.py", "/nanotron_ext/engine.py", "/autograd/graph.py")


@dataclass(frozen=True)
class Pulse:
    """What a rank says of itself; `beat` grows as long as its process lives."""

    beat: int
    step: int
    activity: str
    seconds: float  # of this activity
    stuck_seconds: float  # since the main thread's last progress
    limit_seconds: float  # of that
    host: str
    pid: int
    is_storage: bool = False  # what the main thread waits for
    done_bytes: int = 0  # of that
    total_bytes: int = 0
    is_done: bool = False

    @property
    def is_stuck(self) -> bool:
        return self.stuck_seconds > self.limit_seconds

    def __str__(self) -> str:
        volume = _volume(self.done_bytes, self.total_bytes)
        return f"in step {self.step} ({self.activity}{volume}) on {self.host}, process {self.pid}"


@dataclass(frozen=True)
class Phase:
    """What the main thread is about, since when (monotonic), and with `work`, how far whoever it waits for is."""

    step: int
    activity: str
    began: float
    work: Work | None = None


@dataclass(frozen=True)
class Alarm:
    """Why the job ends. Without `message` a rank is stuck, and the reporter finds out which."""

    reporter: int
    message: str = ""
    is_user_error: bool = False


@dataclass(frozen=True)
class Account:
    """What a rank says of itself on an alarm."""

    waits: bool  # whether its program stands in a collective operation
    stack: str
    entered: dict[str, int]  # of collectives.entered


class Heartbeat:
    """The thread of one rank; a context manager around everything that all ranks do together."""

    def __init__(self, recipe: Recipe, launch: Launch) -> None:
        self._recipe, self._rank, self._world_size = recipe, launch.rank, launch.world_size
        self._is_on_gpu = launch.device.type == "cuda"
        self._logs = recipe.run_folder / "logs"
        self._timeout = recipe.parallelism.hang_timeout_seconds
        self._interval = self._timeout / BEATS_PER_TIMEOUT
        self._main_thread = threading.get_ident()
        self._phase = Phase(0, "starting", time.monotonic())
        self._first: dict[str, float] = {}  # activity -> seconds, with compiling: what the second is judged by
        self._slowest: dict[str, float] = {}  # activity -> seconds, the first time not counted
        self._seen: tuple[Work | None, int, float] = (None, 0, 0.0)  # work, its advances, when they were last news
        self._started = self._reported = time.monotonic()
        self._beat = 0
        self._last_heard: dict[int, tuple[Pulse, float]] = {}  # with the time of its last new beat
        self._closing = threading.Event()
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=START_UP_FACTOR * self._timeout)  # all ranks connect at the same moment
        store = torch.distributed.TCPStore(*address, is_master=False, timeout=patience, wait_for_workers=False)
        store.set_timeout(timedelta(seconds=self._timeout / 2))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives its attempts
        self._store = torch.distributed.PrefixStore(f"heartbeat{attempt}", store)
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def progress(self, step: int, activity: str) -> None:
        """The main thread goes on to something else, or with the same."""
        self._enter(Phase(step, activity, time.monotonic()))

    def waits_for(self, activity: str, work: Work) -> None:
        """The main thread goes on to something that disks or storage hold up; `work` advances as long as they do."""
        self._enter(Phase(self._phase.step, activity, time.monotonic(), work))

    def _enter(self, phase: Phase) -> None:
        left = self._phase
        if left.work is None:
            seconds = phase.began - left.began
            if left.activity in self._first:
                self._slowest[left.activity] = max(self._slowest.get(left.activity, 0.0), seconds)
            else:
                self._first[left.activity] = seconds
        self._phase = phase

    def __enter__(self) -> "Heartbeat":
        faulthandler.enable()
        self._tell()
        self._thread.start()
        self._logs.mkdir(parents=True, exist_ok=True)  # NCCL makes no folder for what it leaves by itself
        if self._rank == 0:
            logger.info(
                f"The job ends when no rank makes progress for {self._timeout:g} s, or {SLOW_STEP_FACTOR} times its "
                f"slowest step; for {STORAGE_FACTOR * self._timeout:g} s while it waits for disks or storage; for "
                f"{START_UP_FACTOR * self._timeout:g} s as it starts."
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Silence is no alarm from here on; an exception is one for the others."""
        if isinstance(error, Exception):
            self._on_exception(error)
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(torch.distributed.DistError):
            self._tell(is_done=True)

    def _on_exception(self, error: Exception) -> None:
        """Tell the others; of broken connections, wait for the news whose death it was."""
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            with contextlib.suppress(torch.distributed.DistError):  # gone with the first rank
                self._store.set("broken", "")
            self._thread.join(2 * self._timeout)  # it ends this process when it knows
            return
        message = str(error)
        if not isinstance(error, UserError):
            where = f"step {self._phase.step} ({self._phase.activity})"
            message = f"Rank {self._rank} raised {type(error).__name__} in {where}: {error}"
        with contextlib.suppress(torch.distributed.DistError):
            self._raise_alarm(Alarm(0, message, isinstance(error, UserError)))

    def _watch(self) -> None:
        last_contact = time.monotonic()
        while not self._closing.wait(self._interval):
            # Not even this thread runs while the main thread hangs in a call that keeps the interpreter's lock.
            faulthandler.dump_traceback_later(self._timeout + 4 * self._interval, exit=True)
            try:
                self._tell()
                if self._store.check(["alarm"]):
                    self._end(Alarm(**json.loads(self._store.get("alarm"))))
                    return
                self._look_at_others()
                last_contact = time.monotonic()
            except torch.distributed.DistError as error:
                if time.monotonic() - last_contact > self._timeout:
                    self._end(Alarm(self._rank, f"Rank {self._rank} lost the first node's store: {error}"))
                    return

    def _tell(self, is_done: bool = False) -> None:
        self._beat += 1
        phase, now = self._phase, time.monotonic()
        work = phase.work
        if work is not None and (work is not self._seen[0] or work.advances != self._seen[1]):
            self._seen = work, work.advances, now
        since = phase.began if work is None else max(phase.began, self._seen[2])
        pulse = Pulse(
            self._beat,
            phase.step,
            phase.activity,
            seconds=now - phase.began,
            stuck_seconds=now - since,
            limit_seconds=self._limit_seconds(phase),
            host=node_name(),
            pid=os.getpid(),
            is_storage=work is not None,
            done_bytes=0 if work is None else work.done_bytes,
            total_bytes=0 if work is None else work.total_bytes,
            is_done=is_done,
        )
        self._store.set(f"pulse/{self._rank}", json.dumps(dataclasses.asdict(pulse)))

    def _limit_seconds(self, phase: Phase) -> float:
        if phase.work is not None:
            return STORAGE_FACTOR * self._timeout
        slowest = self._slowest.get(phase.activity, self._first.get(phase.activity))
        return START_UP_FACTOR * self._timeout if slowest is None else max(self._timeout, SLOW_STEP_FACTOR * slowest)

    def _look_at_others(self) -> None:
        now = time.monotonic()
        watched = range(self._world_size) if self._rank == 0 else [0]
        keys = [f"pulse/{rank}" for rank in watched]
        if not self._store.check(keys):
            if now - self._started > self._timeout:
                missing = [rank for rank, key in zip(watched, keys, strict=True) if not self._store.check([key])]
                self._raise_alarm(Alarm(self._rank, f"Ranks {missing} ended or hang before the start of the training."))
            return
        silence_limit = 3 * self._interval if self._store.check(["broken"]) else self._timeout
        pulses = {
            rank: Pulse(**json.loads(text)) for rank, text in zip(watched, self._store.multi_get(keys), strict=True)
        }
        for rank, pulse in pulses.items():
            last, heard = self._last_heard.get(rank, (None, now))
            if last is None or pulse.beat != last.beat:
                self._last_heard[rank] = pulse, now
                heard = now
            if pulse.is_done:
                continue
            if now - heard > silence_limit:
                self._raise_alarm(Alarm(self._rank if rank == 0 else 0, _silence(rank, pulse, now - heard)))
        if self._rank == 0:
            at_work = {rank: pulse for rank, pulse in pulses.items() if not pulse.is_done}
            if at_work and all(pulse.is_stuck for pulse in at_work.values()):
                self._raise_alarm(Alarm(0))
            self._report_waiting(at_work, now)

    def _report_waiting(self, pulses: dict[int, Pulse], now: float) -> None:
        """Tell the user, once per time-out, that disks hold the job up, and which rank has most left to do."""
        waiting = {rank: pulse for rank, pulse in pulses.items() if pulse.is_storage and pulse.seconds > self._timeout}
        if not waiting or now - self._reported < self._timeout:
            return
        self._reported = now
        # When all is written, the first rank makes it a checkpoint.
        last = max(waiting, key=lambda rank: max(waiting[rank].total_bytes - waiting[rank].done_bytes, 0))
        same = [pulse for pulse in waiting.values() if pulse.activity == waiting[last].activity]
        volume = _volume(sum(pulse.done_bytes for pulse in same), sum(pulse.total_bytes for pulse in same))
        logger.info(
            f"Still {waiting[last].activity}{volume}, {waiting[last].seconds:.0f} s; waiting for rank {last} on "
            f"{waiting[last].host}."
        )

    def _raise_alarm(self, alarm: Alarm) -> None:
        """The first alarm counts."""
        self._store.compare_set("alarm", "", json.dumps(dataclasses.asdict(alarm)))

    def _end(self, alarm: Alarm) -> None:
        """Let the reporter speak, leave the stacks, and end this process, unless it is coming to its end by itself."""
        if alarm.message and self._closing.wait(self._interval):
            return
        frames = traceback.extract_stack(sys._current_frames()[self._main_thread])
        message, reports = alarm.message, self._rank == alarm.reporter
        with contextlib.suppress(torch.distributed.DistError):
            stack = "".join(traceback.format_list(frames[-8:]))
            account = Account(_waits_for_others(frames), stack, entered())
            self._store.set(f"account/{self._rank}", json.dumps(dataclasses.asdict(account)))
        if reports:
            time.sleep(1.5 * self._interval)  # all have heard by then
            message = message or "\n".join(self._suspects())
            where = f" All stacks: {self._logs}/stacks-rank*.txt, operations: {self._logs}/{PREFIX}*"
            where = "" if alarm.is_user_error else where
            print(f"error: {message}{where}", file=sys.stderr, flush=True)
        with contextlib.suppress(torch.distributed.DistError):
            if reports:
                self._store.set("reported", "")
            else:
                self._store.wait(["reported"], timedelta(seconds=4 * self._interval))
        # To disk last: it may be what hangs. Then faulthandler, armed by `_watch`, ends this process.
        with contextlib.suppress(OSError):
            self._write_stacks()
            if reports:
                step = outcome.last_recorded_step(self._recipe)
                outcome.write(self._recipe, Outcome("failed" if alarm.is_user_error else "crashed", step, message))
            flight_recorder.write(self._logs, self._rank)  # last: it asks the device
        os._exit(USER_ERROR_EXIT_CODE if alarm.is_user_error else EXIT_CODE)

    def _write_stacks(self) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"stacks-rank{self._rank}.txt").open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    def _suspects(self) -> Iterator[str]:
        """The ranks that keep the others waiting, and where they are."""
        found: dict[int, Account] = {}
        for rank in range(self._world_size):
            if self._store.check([f"account/{rank}"]):
                found[rank] = Account(**json.loads(self._store.get(f"account/{rank}")))
        silent = [rank for rank in self._last_heard if rank not in found]
        for rank in silent:
            pulse, heard = self._last_heard[rank]
            yield _silence(rank, pulse, time.monotonic() - heard)
        pulses = {rank: self._last_heard[rank][0] for rank in found}
        behind = causes({rank: account.entered for rank, account in found.items()})
        computes = len(found) > 1 and not any(pulse.is_storage for pulse in pulses.values())
        if self._is_on_gpu and computes and not silent and not behind:
            yield (
                f"All ranks have entered the same collective operations: a GPU, or the network between them, has "
                f"stopped. Look for Xid errors in the nodes' kernel logs and into {PREFIX}*. Rank 0 is "
                f"{pulses[0]}:\n{found[0].stack}"
            )
            return
        culprits = [] if silent else _not_waiting(behind or list(found), found, pulses)
        for rank in culprits:
            idle = f"no progress for {pulses[rank].stuck_seconds:.0f} s"
            yield f"Rank {rank} is stuck {pulses[rank]}: {idle}. Its stack:\n{found[rank].stack}"
        if others := len(found) - len(culprits):
            yield f"The others ({others}) wait for it in collective operations."


def _not_waiting(ranks: list[int], accounts: dict[int, Account], pulses: dict[int, Pulse]) -> list[int]:
    """Of `ranks`, those whose programs do not wait for others; if all do, those in the earliest step."""
    at_work = [rank for rank in ranks if not accounts[rank].waits]
    least = min(pulses[rank].step for rank in ranks)
    return at_work or [rank for rank in ranks if pulses[rank].step == least]


def _volume(done_bytes: int, total_bytes: int) -> str:
    if total_bytes:
        return f": {done_bytes / 1e9:.2f} of {total_bytes / 1e9:.2f} GB"
    return f": {done_bytes / 1e9:.2f} GB" if done_bytes else ""


def _silence(rank: int, pulse: Pulse, seconds: float) -> str:
    return (
        f"Rank {rank} was killed, or hangs in a call that holds Python's lock, or its machine is lost: {seconds:.0f} s "
        f"ago it was {pulse}."
    )


def _waits_for_others(frames: traceback.StackSummary) -> bool:
    """Whether the main thread waits in a collective operation, for a peer's message, or for the device's results."""
    innermost = frames[-1]
    return any(place in innermost.filename for place in _WAITING_PLACES) or ".tolist()" in (innermost.line or "")
