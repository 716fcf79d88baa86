"""Checkpoints in object storage, through fsspec: `<url>/<step>/`, complete once its checkpoint.json is there."""

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.files import open_lock, write_atomically
from foundation.paths import inside
from foundation.progress import Work, unwatched
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import (
    MANIFEST,
    Advance,
    CheckpointError,
    CheckpointReader,
    checkpoint_folder,
    list_checkpoints,
    newest_first,
    parse_manifest,
)
from nanotron_ext.retention import in_use

BLOCK_BYTES = 1 << 24
UPLOADED = "uploaded"  # a file in a checkpoint's folder that says where its copy is
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0  # doubles with every attempt

logger = logging.getLogger("nanotron_ext.train")


class StorageError(UserError):
    """Object storage that cannot be used, or does not give back what it was given."""


class RemoteCheckpoints:
    """The checkpoints of one run in object storage.

    Every method raises StorageError when the storage fails.
    """

    def __init__(self, recipe: Recipe, advance: Advance = unwatched) -> None:
        """`advance` is told of the uploaded bytes that were compared, and of signs of life without any."""
        import fsspec  # type: ignore[import-untyped]  # only here, since most runs do without

        assert recipe.checkpoints.remote_path is not None
        self._advance = advance
        self.url = f"{recipe.checkpoints.remote_path.rstrip('/')}/{recipe.general.run}"
        with self._errors("cannot be opened"):
            self._storage, self._path = fsspec.core.url_to_fs(self.url)

    def steps(self) -> list[int]:
        """Of all complete checkpoints, oldest first."""
        return list(self.newest_first())[::-1]

    def newest_first(self, after: int = -1) -> Iterator[int]:
        """Of those behind step `after`; the storage is asked about each when it is its turn."""
        with self._errors("cannot be listed"):
            self._storage.invalidate_cache()
            try:
                found = self._storage.ls(self._path, detail=False)
            except FileNotFoundError:
                return
            names = [path.rstrip("/").rpartition("/")[2] for path in found]
        for step in sorted((int(name) for name in names if name.isdigit() and int(name) > after), reverse=True):
            with self._errors("cannot be listed"):
                is_complete = self._storage.exists(self._at(str(step), MANIFEST))
            if is_complete:
                yield step

    def upload(self, folder: Path) -> None:
        """Copy a checkpoint, and read the copy back to compare checksums; its manifest goes last.

        Nothing but the files of its own folder is sent: raises CheckpointError or UnsafeNameError if it lists others.
        """
        with in_use(folder):
            described = parse_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))["files"]
            sources = {name: inside(folder, name) for name in described}
            self._remove(folder.name)
            for name, description in described.items():
                self._put(sources[name], self._at(folder.name, name))
                with self._errors(f"did not take {folder / name}"):
                    found = self._sha256(self._at(folder.name, name))
                if found != description["sha256"]:
                    raise StorageError(f"{self.url}/{folder.name}/{name} is not what was uploaded. Upload it again.")
            self._put(folder / MANIFEST, self._at(folder.name, MANIFEST))
            write_atomically(folder / UPLOADED, f"{self.url}/{folder.name}")

    def fetch(self, step: int, run_folder: Path) -> Path:
        """Bring a checkpoint to the run folder; raises StorageError too when a file differs from its checksum.

        What is there under the same step is moved aside.
        Nothing is written outside of the checkpoint's folder: raises CheckpointError if it lists other files.
        """
        final = checkpoint_folder(run_folder, step)
        fetched = final.with_name(f"{step}.fetch-{os.getpid()}")
        fetched.mkdir(parents=True)
        try:
            with self._errors(f"did not give checkpoint {step}"):
                text = self._storage.cat_file(self._at(str(step), MANIFEST))
                described = parse_manifest(text, f"{self.url}/{step}/{MANIFEST}")["files"]
                for name, description in described.items():
                    target = inside(fetched, name)
                    self._storage.get_file(self._at(str(step), name), str(target))
                    with target.open("rb") as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                    if found != description["sha256"]:
                        raise StorageError(f"{self.url}/{step}/{name} does not match its checksum")
            (fetched / MANIFEST).write_bytes(text)
            (fetched / UPLOADED).write_text(f"{self.url}/{step}", encoding="utf-8")
            if final.exists():  # not whole, or it would not be fetched; the user may still want to look at it
                aside = tempfile.mkdtemp(prefix=f"{step}.damaged-", dir=final.parent)
                final.replace(aside)
                logger.warning(f"Moved {final}, which cannot be read, to {aside}.")
            fetched.replace(final)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        return final

    def set_aside(self, after_step: int, number: int) -> None:
        """Move checkpoints behind a step to `rewound/<number>/`."""
        for step in self.steps():
            if step > after_step:
                with self._errors(f"could not move checkpoint {step}"):
                    self._storage.mv(self._at(str(step)), self._at("rewound", str(number), str(step)), recursive=True)

    def _at(self, *names: str) -> str:
        return "/".join([self._path, *names])

    def _remove(self, name: str) -> None:
        with self._errors(f"could not remove {name}"), contextlib.suppress(FileNotFoundError):
            self._storage.rm(self._at(name), recursive=True)

    def _put(self, source: Path, target: str) -> None:
        from fsspec import AbstractFileSystem
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        with self._errors(f"did not take {source}"):
            self._storage.makedirs(target.rpartition("/")[0], exist_ok=True)
            # fsspec's own copy goes block by block and tells of each; that of local files does not.
            put_file = self._storage.put_file
            if isinstance(self._storage, LocalFileSystem):
                put_file = partial(AbstractFileSystem.put_file, self._storage)
            put_file(str(source), target, callback=self._on_transfer())
            self._advance(0)

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._storage.open(path, "rb", cache_type="none") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                self._advance(len(block))
        return digest.hexdigest()

    def _on_transfer(self) -> Any:
        from fsspec.callbacks import Callback  # type: ignore[import-untyped]

        return Callback(hooks={"advance": lambda *_, **__: self._advance(0)})

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # every storage has errors of its own
            raise StorageError(
                f"{self.url} {what}: {type(error).__name__}: {error}. Check checkpoints.remote_path, the credentials "
                f"and the network."
            ) from error


def not_uploaded(run_folder: Path) -> list[Path]:
    return [path for path in list_checkpoints(run_folder) if not (path / UPLOADED).is_file()]


class Uploader:
    """Uploads checkpoints one after the other in a thread of its own. What fails is tried again with the next one."""

    def __init__(self, recipe: Recipe) -> None:
        self.work = Work()
        self._remote, self._run_folder = RemoteCheckpoints(recipe, self.work.advance), recipe.run_folder
        self._wishes: queue.Queue[None] = queue.Queue()
        threading.Thread(target=self._work, name="upload", daemon=True).start()
        self.upload_all()

    def upload_all(self) -> None:
        """Have everything uploaded that is not; returns at once."""
        self._wishes.put(None)

    def finish(self) -> None:
        """Wait for the uploads; what still fails stays for the next start."""
        self._wishes.join()
        if left := not_uploaded(self._run_folder):
            logger.error(
                f"{len(left)} checkpoints are not in {self._remote.url}; `smollm3 checkpoints upload "
                f"{self._run_folder}` tries again."
            )

    def _work(self) -> None:
        while True:
            self._wishes.get()
            try:
                for folder in not_uploaded(self._run_folder):
                    upload_patiently(self._remote, folder)
            except Exception as error:  # whatever it was, the thread has to be there for the next checkpoint
                logger.warning(f"Not uploaded, tried again with the next checkpoint: {error}")
            finally:
                self._wishes.task_done()


def upload_patiently(remote: RemoteCheckpoints, folder: Path) -> None:
    """Raises StorageError when the storage fails ATTEMPTS times, CheckpointError when the checkpoint is gone."""
    pause_seconds = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            remote.upload(folder)
            logger.info(f"Uploaded {folder} to {remote.url}.")
            return
        except StorageError as error:
            if attempt == ATTEMPTS:
                raise
            logger.warning(f"Upload failed, trying again in {pause_seconds:.0f} s: {error}")
        time.sleep(pause_seconds)
        pause_seconds *= 2


def fetch_newest(recipe: Recipe) -> None:
    """Bring the newest whole checkpoint of object storage here, if it is newer than what is here.

    Raises:
        StorageError: when the storage cannot be asked, and there is nothing here to go on from.
    """
    newest_here = _newest_whole_step(recipe.run_folder)
    try:
        remote = RemoteCheckpoints(recipe)
        newest_there = next(remote.newest_first(after=newest_here), None)
    except StorageError as error:
        if not newest_here:
            raise
        logger.warning(f"Whether there are newer checkpoints than step {newest_here} is unknown: {error}")
        return
    if newest_there is None:
        return
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    with open_lock(recipe.run_folder / "fetch.lock") as lock:  # one process of the machine, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        for step in remote.newest_first(after=_newest_whole_step(recipe.run_folder)):
            logger.info(f"Fetching checkpoint {step} from {remote.url}.")
            try:
                remote.fetch(step, recipe.run_folder)
                return
            except (StorageError, CheckpointError) as error:
                logger.warning(f"Skipping checkpoint {step} of {remote.url}: {error}")


def _newest_whole_step(run_folder: Path) -> int:
    """0 if there is none."""
    for folder in newest_first(run_folder):
        with contextlib.suppress(CheckpointError):
            return CheckpointReader(folder).step
    return 0
