"""A finished folder takes the place of another: killed at any call to the file system, one of the two is whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chain.runner import only_one
from datapipes.prepare import LOCK_FILE, sole_preparation
from foundation.files import LinkedFileError, open_lock, put_in_place, restore, write_atomically
from nanotron_ext.train import startup
from tests.nanotron_ext.tiny_run import tiny_recipe

OLD, NEW = {"a": "old", "sub/b": "old"}, {"a": "new", "c": "new"}


class Killed(BaseException):
    """Not caught by anything, like the end of a process."""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_new_folder_has_the_place_and_the_old_one_is_gone(tmp_path: Path) -> None:
    place = write(tmp_path / "place", OLD)
    put_in_place(write(tmp_path / "new", NEW), place)
    assert read(place) == NEW and [path.name for path in tmp_path.iterdir()] == ["place"]
    put_in_place(write(tmp_path / "new", OLD), tmp_path / "free")
    assert read(tmp_path / "free") == OLD


@pytest.mark.parametrize("killed_at", range(8))
def test_a_kill_leaves_one_of_the_two_whole(killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after every rename and deletion, deletions being cut off half-way too."""
    place, new = write(tmp_path / "place", OLD), write(tmp_path / "new", NEW)
    moments, remove = iter(range(100)), shutil.rmtree

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*arguments: Any, **options: Any) -> Any:
            if next(moments) == killed_at:
                raise Killed
            if call is remove:
                (Path(arguments[0]) / "a").unlink()
                if next(moments) == killed_at:
                    raise Killed
            found = call(*arguments, **options)
            if next(moments) == killed_at:
                raise Killed
            return found

        return maybe

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killing(Path.rename))
        patch.setattr(shutil, "rmtree", killing(remove))
        try:
            put_in_place(new, place)
        except Killed:
            assert killed_at < 7
        else:
            assert killed_at == 7  # all moments were tried
    restore(place)
    was_moved = killed_at >= 3
    assert read(place) == (NEW if was_moved else OLD)
    assert was_moved or read(new) == NEW  # nothing of the work is lost either
    put_in_place(new if new.exists() else write(tmp_path / "newer", NEW), place)
    assert read(place) == NEW and [path.name for path in tmp_path.iterdir()] == ["place"]


def _enter(manager: Any) -> None:
    with manager:
        pass


LOCKS: dict[str, Callable[[Path], object]] = {
    "chain.lock": lambda folder: _enter(only_one(folder)),
    LOCK_FILE: lambda folder: _enter(sole_preparation(folder)),
    f"runs/run/{startup.LOCK_FILE}": lambda folder: startup.take_run_folder(
        tiny_recipe(folder)
    ).close(),
    "any.lock": lambda folder: open_lock(folder / "any.lock").close(),
    "chain.json.tmp": lambda folder: write_atomically(folder / "chain.json", "{}"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCKS)
def test_a_link_in_the_place_of_a_lock_is_refused_and_what_it_leads_to_stays(name: str, tmp_path: Path) -> None:
    """In a folder that others can write to, a link put there first would have had any file of the user's emptied."""
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    mine.write_text("of the user")
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(mine)
    with pytest.raises(LinkedFileError, match="is a link to another file"):
        LOCKS[name](folder)
    assert mine.read_text() == "of the user"
    (folder / name).unlink()
    LOCKS[name](folder)
    LOCKS[name](folder)


def test_a_lock_keeps_what_its_holder_wrote(tmp_path: Path) -> None:
    with open_lock(tmp_path / "lock") as file:
        file.write("process 7\n")
    with open_lock(tmp_path / "lock") as file:
        assert file.read() == "process 7\n"


def test_a_users_umask_holds_for_what_is_written(tmp_path: Path) -> None:
    """As `umask 077` before a command keeps a run folder private."""
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "file", "text")
        open_lock(tmp_path / "lock").close()
        _enter(only_one(tmp_path / "run"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o600, "lock": 0o600, "run": 0o700, "chain.lock": 0o600}
