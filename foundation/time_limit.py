"""A bound on how long code runs that works on what others wrote: templates of models, graders of answers."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_SECONDS = 0.1  # for code that catches what ends it


class _Over(BaseException):
    """Not an Exception: libraries catch those."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """End the block after so many seconds of this process's own computing, however busy the machine is.

    It ends between two steps of Python, and in the main thread only. The timer is not that of `alarm`, which graders
    of mathematics set themselves.

    Raises:
        TimeoutError: when the time is over.
    """

    def end(number: int, frame: Any) -> None:
        raise _Over

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    except _Over:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
