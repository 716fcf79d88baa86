"""How far work on disks and storage has come, for a watchdog that must tell slow from stuck."""

import threading


class Work:
    """A count that grows as long as a piece of work goes on; advanced by the threads at work, read by others."""

    def __init__(self, total_bytes: int = 0) -> None:
        """`total_bytes`: all there is to do, 0 when that is not known."""
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self.advances = 0
        self._lock = threading.Lock()

    def advance(self, done_bytes: int = 0) -> None:
        """Some bytes more, or without any: a file, a folder, an answer."""
        with self._lock:
            self.done_bytes += done_bytes
            self.advances += 1


def unwatched(done_bytes: int = 0) -> None:
    """The `advance` of work that nobody watches."""
