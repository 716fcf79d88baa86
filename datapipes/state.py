"""Whether what is prepared of each source is what the recipe asks for now, if not why, and what is to be made anew."""

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from datapipes.errors import SourceError
from datapipes.executors import tasks_completed
from datapipes.inputs import UnreachableInputError, compare, hub_input
from datapipes.pipeline import SourceBuild
from datapipes.record import Record, hash_before_records, read_record
from datapipes.registry import Hub, Source
from datapipes.shards import Manifest, read_manifest
from foundation.shards.errors import ShardError
from foundation.shards.manifest import read_source

ALL = "all"  # instead of the names of sources that may be replaced
SHOWN_SOURCES = 15  # in one message

Say = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """Of the folder of a source. `stale` are shards of something else than asked for, or not whole ones."""

    build: SourceBuild
    kind: Literal["done", "missing", "stale"]
    reasons: tuple[str, ...] = ()  # of "stale", as `key: old -> new`
    record: Record | None = None  # what the record in the folder should say now, if that is not what it says

    def in_words(self) -> str:
        tasks, done = self.build.source.tasks, self.build.tasks_completed()
        under_way = f"{done} of {tasks} tasks are done" if done else ""
        if self.kind == "stale":
            return "; ".join(self.reasons) + (f" (of its new shards {under_way})" if under_way else "")
        return "done" if self.kind == "done" else under_way or f"to be made, {tasks} tasks"


def state_of(build: SourceBuild, say: Say, verify: bool = False) -> State:
    """Look at the folder, and with `verify` read all of it; nothing is changed.

    `say` gets a line before files are read that take their time.
    """
    if not build.folder.is_dir() or not any(build.folder.iterdir()):
        begun = tuple(_begun_otherwise(build))
        return State(build, "stale" if begun else "missing", begun)
    try:
        read_source(build.folder)
        manifest = read_manifest(build.folder)
        assert manifest is not None
        if verify:
            say(f"{build.source.name}: reading {manifest.tokens:,} tokens to verify them.")
            build.verify()
    except ShardError as error:
        return State(build, "stale", tuple(error.problems))
    except SourceError as error:
        return State(build, "stale", (str(error),))
    recorded = read_record(build.folder)
    if recorded is None:
        return _without_record(build, manifest, say)
    reasons, found = [*recorded.differences(build.record)], build.input
    if not build.unreachable:
        changed, found = compare(recorded.input, build.input, say)
        reasons += changed
    if reasons:
        return State(build, "stale", tuple(reasons))
    record = build.record.model_copy(update={"input": found})
    return State(build, "done", record=record if record.model_dump() != recorded.model_dump() else None)


def _begun_otherwise(build: SourceBuild) -> Iterator[str]:
    """What unfinished builds from other inputs or settings have finished, which a build would drop."""
    for other in build.other_partial_builds():
        if tasks := tasks_completed(other / "logs", "shards"):
            begun = read_record(other)
            changed = "; ".join(begun.differences(build.record)) if begun else ""
            yield f"{tasks} finished tasks of an unfinished build, made from something else ({changed or 'its files'})"


def _without_record(build: SourceBuild, manifest: Manifest, say: Say) -> State:
    """Of a folder from before there were records: its manifest holds one hash over all that decided its shards."""
    reader, source = build.source.reader, build.source
    from_hub = isinstance(reader, Hub) and not manifest.revision.startswith("files:")
    revision = manifest.revision if from_hub else build.input.revision
    expected = hash_before_records(source, build.tokenizer, build.benchmarks, revision)
    if expected != manifest.pipeline_sha256:
        hashes = f"{manifest.pipeline_sha256[:12]} -> {expected[:12]}"
        reason = f"pipeline_sha256: {hashes} (an earlier release prepared it and noted no more)"
        return State(build, "stale", (reason,))
    if build.unreachable:
        return State(build, "done")
    if isinstance(reader, Hub) and from_hub and manifest.revision != build.input.revision:
        try:
            changed, _ = compare(hub_input(source, reader, manifest.revision), build.input, say)
        except UnreachableInputError as error:
            changed = [f"revision: {manifest.revision} -> {build.input.revision} ({error.why})"]
        if changed:
            return State(build, "stale", tuple(changed))
    return State(build, "done", record=build.record)


def look(builds: Sequence[SourceBuild], verify: bool, console: Console) -> list[State]:
    """The state of each build's folder; says what takes its time, and what cannot be compared."""
    with console.status("Comparing what is prepared with what the recipes ask for"):
        states = [state_of(build, lambda line: _say(console, line), verify) for build in builds]
    if unreachable := [build.unreachable.why for build in builds if build.unreachable]:
        _say(
            console,
            f"{len(unreachable)} of {len(builds)} sources are prepared and taken as they are, since it cannot be seen "
            f"whether their files changed. {unreachable[0]}",
        )
    return states


def show(states: Sequence[State], console: Console) -> None:
    for state in states:
        _say(console, f"{state.build.source.name}: {'stale, ' if state.kind == 'stale' else ''}{state.in_words()}")


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def check_names(rebuild: Collection[str], sources: Sequence[Source]) -> None:
    """Raises SourceError for a name that is no source's."""
    known = [ALL, *(source.name for source in sources)]
    for name in rebuild:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise SourceError(f"--rebuild {name}: the recipes use no source of that name.{hint}")


def to_build(states: Sequence[State], rebuild: Collection[str]) -> list[SourceBuild]:
    """What is missing, and what is stale and may be replaced: `rebuild` names it, or is ALL.

    Raises:
        SourceError: if something is stale that may not be replaced, or that cannot be made because its files cannot be
            looked at.
    """
    kept = [s for s in states if s.kind == "stale" and not {ALL, s.build.source.name} & set(rebuild)]
    if not kept:
        todo = [state.build for state in states if state.kind != "done"]
        for build in todo:
            if build.unreachable:
                raise build.unreachable
        return todo
    lines = [f"  {state.build.source.name}: {state.in_words()}" for state in kept[:SHOWN_SOURCES]]
    if len(kept) > SHOWN_SOURCES:
        lines.append(f"  ... and {len(kept) - SHOWN_SOURCES} more")
    names = " ".join(f"--rebuild {state.build.source.name}" for state in kept[:SHOWN_SOURCES])
    raise SourceError(
        f"{len(kept)} of {len(states)} sources are prepared or begun, but not from what the recipes now ask for, or "
        f"not whole. Nothing was changed.\n"
        + "\n".join(lines)
        + f"\nTo prepare them anew, add --rebuild {ALL}, or by name: {names}. What is there stays in use until its new "
        f"shards are whole. To keep it, undo what changed; to stay at an earlier commit of a hub dataset, name it as "
        f"`revision` of the source in its table."
    )


def take_note(states: Sequence[State], rebuild: Collection[str], console: Console) -> None:
    """Bring records up to date, and say what will be done otherwise than one might think."""
    for state in states:
        build, name = state.build, state.build.source.name
        if state.record is not None:
            state.record.write(build.folder)
        if state.kind == "done":
            if name in rebuild:
                _say(console, f"{name} is what the recipes ask for: not rebuilt.")
            continue
        for begun in _begun_otherwise(build):
            _say(console, f"{name}: done again are {begun}.")
