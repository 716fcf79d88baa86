"""Prepare everything that recipes train on: their tokenizer and the token shards of all their sources.

Shards hold documents end to end, so recipes of different sequence lengths read the same ones.

Running it again does only what is missing. What is prepared already and no longer what the recipe asks for is kept, and
the command refuses with what changed, until --rebuild names the source.
"""

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from datapipes.decontaminate import build_index
from datapipes.errors import SourceError
from datapipes.executors import SlurmSettings
from datapipes.pipeline import SourceBuild, Summary
from datapipes.registry import find_source
from datapipes.state import check_names, look, show, take_note, to_build
from datapipes.tokenizer import load_tokenizer
from datapipes.trained_tokenizer import train_tokenizer_once
from foundation.files import open_lock, restore
from foundation.recipe import Recipe
from foundation.shards.remote import is_remote

LOCK_FILE = ".lock"


def sources_of(recipes: Sequence[Recipe]) -> list[str]:
    """Every source that the recipes train or validate on, in order of first mention."""
    names = [name for recipe in recipes for stage in recipe.data_stages for name in stage.mixture]
    return list(dict.fromkeys([*names, *(name for recipe in recipes for name in recipe.data.validation)]))


@contextmanager
def sole_preparation(data_folder: Path) -> Iterator[None]:
    """Keeps a second preparation of the same folder out; the lock ends with the process, however that ends.

    Raises:
        SourceError: if another process prepares the folder, on this machine or, on a shared disk that has locks, on
            another one.
    """
    data_folder.mkdir(parents=True, exist_ok=True)
    path = data_folder / LOCK_FILE
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SourceError(
                f"{file.read().strip() or 'Another process'} is preparing {data_folder} already. Wait for its end, or "
                f"stop it: what it has finished will not be done again."
            ) from None
        file.truncate(0)
        file.write(f"Process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def prepare(
    recipes: Sequence[Recipe],
    console: Console,
    workers: int = 1,
    verify: bool = False,
    raw_folder: Path | None = None,
    benchmarks_folder: Path | None = None,
    slurm: SlurmSettings | None = None,
    rebuild: Collection[str] = (),
    dry_run: bool = False,
) -> list[Summary]:
    """Make the shards of all sources, here or (`slurm`) in jobs of a cluster; returns what became of each.

    `rebuild` names sources of which prepared shards may be replaced, or ALL. With `dry_run` nothing is made.

    Raises:
        SourceError: at the first source that cannot be prepared, or when the recipes do not share tokenizer and folder;
            before anything is made or changed, when prepared shards are not what the recipes ask for.
    """
    recipe = recipes[0]
    if any((other.tokenizer, other.data.path) != (recipe.tokenizer, recipe.data.path) for other in recipes[1:]):
        raise SourceError("The recipes differ in tokenizer or data.path. Prepare them one by one.")
    sources = [find_source(name) for name in sources_of(recipes)]
    check_names(rebuild, sources)
    benchmarks = build_index(benchmarks_folder) if benchmarks_folder else None
    if is_remote(recipe.data.path):
        raise SourceError(
            f"data.path is {recipe.data.path}, but data is prepared on a local or shared disk: give data.path=FOLDER, "
            f"and copy the sources' folders to the storage afterwards, each manifest.json last."
        )
    data_folder, train = Path(recipe.data.path), recipe.tokenizer.train
    trained_on = [find_source(name) for name in train.sources] if train else []
    tokenizer = None if train else load_tokenizer(recipe)  # before anything is written
    if dry_run and train and not (Path(recipe.tokenizer.tokenizer_name_or_path) / "tokenizer.json").is_file():
        console.print("The tokenizer is to be trained first. What else is to be done can be told only with it.")
        return []
    with nullcontext() if dry_run else sole_preparation(data_folder):
        for source in () if dry_run else sources:
            restore(data_folder / source.name)
        if train is not None:
            train_tokenizer_once(recipe, train, trained_on, console)
        tokenizer = tokenizer or load_tokenizer(recipe)
        builds = [SourceBuild(source, tokenizer, data_folder, raw_folder, benchmarks) for source in sources]
        states = look(builds, verify, console)
        if dry_run:
            show(states, console)
            return []
        todo = to_build(states, rebuild)
        take_note(states, rebuild, console)
        finish: Callable[[SourceBuild], None] = partial(SourceBuild.build, workers=workers)
        if slurm is not None:
            finish = SourceBuild.finish_submitted
            for build in todo:
                build.submit(slurm)
        return list(_run(builds, todo, finish, console))


def _run(
    builds: Sequence[SourceBuild],
    todo: Sequence[SourceBuild],
    finish: Callable[[SourceBuild], None],
    console: Console,
) -> Iterator[Summary]:
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tasks"),
        TimeElapsedColumn(),
    )
    tasks = sum(build.source.tasks for build in builds)
    with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=tasks)
        tasks_before = 0
        for build in builds:
            progress.update(bar, description=build.source.name)
            if build in todo:
                with _watching(build, progress, bar, tasks_before):
                    finish(build)
            tasks_before += build.source.tasks
            progress.update(bar, completed=tasks_before)
            summary = build.summary(rebuilt=build in todo)
            if not console.is_terminal:  # a log file, where the bar does not show
                console.print(f"{tasks_before}/{tasks} tasks: {build.source.name}, {summary.tokens_out:,} tokens")
            yield summary


@contextmanager
def _watching(build: SourceBuild, progress: Progress, bar: TaskID, tasks_before: int) -> Iterator[None]:
    """Move the bar with every task that datatrove marks as complete."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(1.0):
            progress.update(bar, completed=tasks_before + build.tasks_completed())

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def summary_table(summaries: list[Summary]) -> Table:
    """One row per source: what came in, what was dropped by which step, what was written."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for header in ("source", "shards", "docs", "Mchars", "dropped", "kept", "tokens"):
        text = header in ("source", "shards", "dropped")
        justify: JustifyMethod = "left" if text else "right"
        table.add_column(header, justify=justify, min_width=len(header), no_wrap=header != "dropped")
    for row in summaries:
        table.add_row(
            row.source,
            "built" if row.rebuilt else "unchanged",
            f"{row.documents_in:,}",
            f"{row.characters_in / 1e6:.2f}",
            ", ".join(f"{reason} {count:,}" for reason, count in row.dropped.items()),
            f"{row.documents_out:,}",
            f"{row.tokens_out:,}",
        )
    return table
