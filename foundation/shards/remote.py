"""Prepared data in object storage, read through a folder on local disk that never outgrows its limit.

A shard is downloaded whole when a window of it is first needed. As every step draws from all over its sources, the
folder should hold all that a stage draws on; with less, training goes on, but downloads shards again and again. The
processes of a machine share the folder.

    TOKEN_CACHE      the folder; default ~/.cache/token-shards
    TOKEN_CACHE_GB   its limit in 10^9 bytes; default 200
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from foundation.files import open_lock
from foundation.progress import Work
from foundation.shards.errors import ShardError

DEFAULT_FOLDER = "~/.cache/token-shards"
DEFAULT_LIMIT_GB = "200"
BLOCK_BYTES = 1 << 24

DOWNLOADS = Work()  # of this process, in whichever thread

Opened = TypeVar("Opened")


def is_remote(path: str) -> bool:
    """Whether this is a URL such as s3://bucket/folder, for one of the storages that fsspec supports."""
    return "://" in path


class RemoteFolder:
    """A source's folder in object storage, and `local`, its part of the cache.

    Raises:
        ShardError: if the storage or a setting of the cache cannot be used.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]  # only here, since local data does without it

        self.url = url.rstrip("/")
        self._cache = Path(os.environ.get("TOKEN_CACHE", DEFAULT_FOLDER)).expanduser()
        self._limit_bytes = _limit_bytes()
        self.local = self._cache / self.url.replace("://", "/").replace("//", "/")
        with self._storage_errors(self.url):
            self._storage, self._path = fsspec.core.url_to_fs(self.url)

    def sizes(self) -> dict[str, int]:
        """Name and bytes of every file in the remote folder; empty if there is no such folder."""
        with self._storage_errors(self.url):
            try:
                entries: list[dict[str, Any]] = self._storage.ls(self._path, detail=True)
            except FileNotFoundError:
                return {}
        return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries}

    def fetch_manifest(self, name: str) -> Path:
        """A fresh copy of the small file `name`."""
        self.local.mkdir(parents=True, exist_ok=True)
        partial = self.local / f"{name}.{os.getpid()}.partial"
        self._download(name, partial)
        partial.replace(self.local / name)
        return self.local / name

    def open(self, name: str, sha256: str, index_sha256: str, opener: Callable[[Path], Opened]) -> Opened:
        """What `opener` makes of a local copy of the shard, beside which lies its index, both with these checksums.

        Raises:
            ShardError: if the storage does not deliver what the manifest promises, or the cache is too small for it.
        """
        path = self.local / f"{sha256[:8]}{index_sha256[:8]}-{name}"
        try:
            opened = opener(path)
        except FileNotFoundError:
            with self._locked():  # no other process makes room in between
                if not path.is_file():
                    self._add(path, {f"{name}.index": index_sha256, name: sha256})
                opened = opener(path)
        with contextlib.suppress(FileNotFoundError):
            _mark_as_used(path)
        return opened

    def _add(self, path: Path, sums: dict[str, str]) -> None:
        """Download an index and its shard, in this order: where the shard is, its index is too."""
        self.local.mkdir(parents=True, exist_ok=True)
        sizes = self.sizes()
        self._make_room(sum(sizes.get(name, 0) for name in sums))
        for name, expected in sums.items():
            target = Path(f"{path}.index") if name.endswith(".index") else path
            partial = Path(f"{target}.partial")
            found = self._download(name, partial)
            if found != expected:
                partial.unlink()
                raise ShardError(
                    [
                        f"{self.url}/{name}: Its SHA-256 is {found}, but the manifest promises {expected}. Upload the "
                        f"prepared source again."
                    ]
                )
            partial.replace(target)

    def _make_room(self, needed_bytes: int) -> None:
        """Remove what an interrupted download left, then the shards that were used longest ago."""
        for path in [*self._cache.rglob("*.ds*.partial"), *self._cache.rglob("*.ds.index")]:
            if path.suffix == ".partial" or not path.with_suffix("").is_file():
                path.unlink()
        if needed_bytes > self._limit_bytes:
            raise ShardError(
                [
                    f"{self.url}: A shard of {needed_bytes} bytes with its index does not fit into the cache "
                    f"{self._cache} of {self._limit_bytes} bytes. Raise TOKEN_CACHE_GB."
                ]
            )
        shards = sorted((path.stat().st_mtime_ns, path) for path in self._cache.rglob("*.ds"))
        sizes = {path: _bytes(path) + _bytes(Path(f"{path}.index")) for _, path in shards}
        free_bytes = self._limit_bytes - sum(sizes.values())
        for _, path in shards:
            if free_bytes >= needed_bytes:
                return
            path.unlink()
            Path(f"{path}.index").unlink(missing_ok=True)
            free_bytes += sizes[path]

    def _download(self, name: str, target: Path) -> str:
        """Copy a file; returns its SHA-256."""
        digest = hashlib.sha256()
        with (
            self._storage_errors(f"{self.url}/{name}"),
            self._storage.open(f"{self._path}/{name}", "rb") as remote,
            target.open("wb") as local,
        ):
            while block := remote.read(BLOCK_BYTES):
                digest.update(block)
                local.write(block)
                DOWNLOADS.advance(len(block))
        return digest.hexdigest()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._cache.mkdir(parents=True, exist_ok=True)
        with open_lock(self._cache / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _storage_errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise ShardError([f"{url}: There is no such file. Upload the prepared source again."]) from None
        except Exception as error:  # every storage has errors of its own
            raise ShardError(
                [f"{url}: {type(error).__name__}: {error}. Check the address, the credentials and the local disk."]
            ) from error


def _limit_bytes() -> int:
    value = os.environ.get("TOKEN_CACHE_GB", DEFAULT_LIMIT_GB)
    try:
        limit = int(float(value) * 10**9)
    except ValueError:
        limit = 0
    if limit <= 0:
        raise ShardError([f"TOKEN_CACHE_GB: {value!r} is no size in gigabytes. Set it to a number above 0."])
    return limit


def _mark_as_used(path: Path) -> None:
    now = time.time_ns()  # finer than the time that the kernel would set
    os.utime(path, ns=(now, now))


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
