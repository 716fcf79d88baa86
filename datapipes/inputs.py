"""What a source consists of now, and whether that is what its shards were made from.

Files are the same when their contents are, wherever they lie and whatever commit or time they carry. On the hub the
listing tells the content (SHA-256 of large files, git's id of others), and in object storage the ETag. Of local files
only size, inode and times come for free, and these are looked at every time. SHA-256 is taken once, by the task that
has just read the file and has it in memory: 1.1 GB/s and core on an AMD EPYC, beside 0.0025 GB/s of tokenisation, so
0.2 % of the work, spread over all tasks; one process, before they start, would need eleven hours for 45 TB. A file is
read again only when its size is the same and its times are not: after `touch`, or in a copy elsewhere.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datatrove.io import DataFolder, get_datafolder
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from pydantic import BaseModel, ConfigDict, Field

from datapipes.errors import SourceError
from datapipes.math_problems import VERSION as MATH_VERSION
from datapipes.registry import CORPUS_FOLDER, Corpus, FactsGenerator, Files, Hub, MathGenerator, Source, Unreleased
from foundation.facts import VERSION as FACTS_VERSION

COMPARING_THREADS = 8
SHOWN_FILES = 3


class UnreachableInputError(SourceError):
    """A source whose files cannot be looked at now. What is prepared from them can still be used.

    Attributes:
        why: a sentence; the message adds what to do when nothing is prepared yet.
    """

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(f"{why} {fix}")
        self.why = why


class InputFile(BaseModel):
    """One file of a source."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str  # relative to the input's folder
    size: int  # bytes
    content: str | None = None  # <kind>:<digest>; two of the same kind tell whether contents are equal
    stamp: tuple[int, int, int] | None = None  # of a local file: inode, times of modification and of change in ns


class Input(BaseModel):
    """A source's content at one time: `revision` for people, `files` for comparison, and where they lie."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    revision: str
    files: tuple[InputFile, ...] = ()
    folder: str = Field("", exclude=True)


def find_input(source: Source, raw_folder: Path | None = None) -> Input:
    """What the source consists of now. A hub dataset is read from `raw_folder/<owner>/<name>` if that exists.

    Raises:
        UnreachableInputError: if its files cannot be listed, saying what to do.
        SourceError: if it cannot be had at all.
    """
    reader = source.reader
    if isinstance(reader, MathGenerator):
        return Input(revision=f"math-{MATH_VERSION}")
    if isinstance(reader, FactsGenerator):
        return Input(revision=f"facts-{FACTS_VERSION}")
    if isinstance(reader, Unreleased):
        raise SourceError(f"Source {source.name} cannot be had: {reader.note}{_instead(source)}")
    if isinstance(reader, Corpus):
        return _corpus(source, reader)
    if isinstance(reader, Files):
        return _listed(source, reader.path, reader.files)
    if raw_folder is not None and (raw_folder / reader.dataset).is_dir():
        return _listed(source, str(raw_folder / reader.dataset), reader.files)
    return hub_input(source, reader, _hub_commit(source, reader))


def hub_input(source: Source, reader: Hub, commit: str) -> Input:
    """What the source consists of at a commit of its dataset.

    Raises:
        UnreachableInputError: if the hub does not list it.
    """
    found = _listed(source, f"hf://datasets/{reader.dataset}@{commit}", reader.files)
    return found.model_copy(update={"revision": commit})


def _corpus(source: Source, reader: Corpus) -> Input:
    path = CORPUS_FOLDER / reader.file
    if not path.is_file():
        raise SourceError(f"Source {source.name} reads {path}, which is missing. Restore it from the repository.")
    content = content_of(path)
    file = InputFile(name=reader.file, size=path.stat().st_size, content=content)
    return Input(revision=content, files=(file,), folder=str(CORPUS_FOLDER))


def _listed(source: Source, path: str, patterns: list[str]) -> Input:
    try:
        folder = get_datafolder(path)
        folder.fs.invalidate_cache()  # what lies there now, not when this process looked before
        names = sorted({name for pattern in patterns for name in folder.list_files(glob_pattern=pattern)})
        files = tuple(_described(folder, name) for name in names)
    except Exception as error:  # every storage has errors of its own
        raise UnreachableInputError(
            f"Source {source.name} cannot list {path}: {reason_of(error)}", "Check the address and the credentials."
        ) from error
    if not files:
        raise UnreachableInputError(
            f"Source {source.name} finds no file {' or '.join(patterns)} below {path}.", "Correct the entry."
        )
    digest = hashlib.sha256(repr([(file.name, file.size) for file in files]).encode()).hexdigest()
    return Input(revision=f"files:{digest}", files=files, folder=path)


def _described(folder: DataFolder, name: str) -> InputFile:
    if folder.is_local():
        return local_file(folder.resolve_paths(name), name)
    info = folder.info(name)
    if info.get("lfs"):
        content = f"sha256:{info['lfs']['sha256']}"
    elif info.get("blob_id"):
        content = f"git:{info['blob_id']}"
    elif etag := info.get("ETag") or info.get("etag"):
        content = f"etag:{etag.strip(chr(34))}"
    else:
        content = f"listing:{folder.ukey(name)}"  # all that the storage says of the file
    return InputFile(name=name, size=info["size"], content=content)


def local_file(path: str | Path, name: str) -> InputFile:
    """A local file as it is now, its content unread.

    The time of change is among the stamps because nothing can set it back: an edit that keeps size and time of
    modification, as a copy with preserved times may, is seen.
    """
    found = Path(path).stat()
    return InputFile(name=name, size=found.st_size, stamp=(found.st_ino, found.st_mtime_ns, found.st_ctime_ns))


def content_of(path: str | Path, kind: str = "sha256") -> str:
    """`<kind>:<digest>` of a local file; `git` is git's id of it."""
    if kind == "git":
        content = Path(path).read_bytes()  # what the hub keeps outside of its large-file storage has at most 10 MB
        return "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    with Path(path).open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def with_contents(found: Input) -> Input:
    """The input with the contents of its local files, all of which are read."""
    if all(file.content for file in found.files):
        return found
    folder = get_datafolder(found.folder)
    files = [
        file.model_copy(update={"content": file.content or content_of(folder.resolve_paths(file.name))})
        for file in found.files
    ]
    return found.model_copy(update={"files": tuple(files)})


def compare(then: Input, now: Input, say: Callable[[str], None]) -> tuple[list[str], Input]:
    """What differs, as `key: old -> new`, and `now` with the contents that are known from `then`.

    Where only the contents can tell, it reads local files, and `say` gets a line about it first.
    """
    if not then.files and not now.files:  # generated
        return ([] if then.revision == now.revision else [f"revision: {then.revision} -> {now.revision}"]), now
    before = {file.name: file for file in then.files}
    pairs = [(before[file.name], file) for file in now.files if file.name in before]
    gone, new = before.keys() - {file.name for file in now.files}, [f.name for f in now.files if f.name not in before]
    verdicts = [_is_same(*pair) for pair in pairs]
    if not gone and not new and False not in verdicts and None in verdicts:
        verdicts = _read_and_compare(pairs, verdicts, now.folder, say)
    changed = [pair for pair, same in zip(pairs, verdicts, strict=True) if same is False]
    found = [*_in_words(changed), *(f"{name}: gone" for name in sorted(gone)), *(f"{name}: new" for name in new)]
    if not found:
        files = [file.model_copy(update={"content": file.content or old.content}) for old, file in pairs]
        return [], now.model_copy(update={"files": tuple(files)})
    more = f"; {len(found) - SHOWN_FILES} more of {len(now.files)} files" if len(found) > SHOWN_FILES else ""
    moved = [] if then.revision == now.revision else [f"revision: {then.revision[:19]} -> {now.revision[:19]}"]
    return [f"files: {'; '.join(found[:SHOWN_FILES])}{more}", *moved], now


def _is_same(then: InputFile, now: InputFile) -> bool | None:
    """None: a local file of the same size, which has to be read to tell."""
    if then.size != now.size:
        return False
    if then.content and now.content and _kind(then) == _kind(now):
        return then.content == now.content
    if then.stamp is not None and then.stamp == now.stamp:
        return True
    return None if now.stamp is not None and _kind(then) in ("sha256", "git") else False


def _kind(file: InputFile) -> str:
    return (file.content or "").partition(":")[0]


def _read_and_compare(
    pairs: Sequence[tuple[InputFile, InputFile]],
    verdicts: Sequence[bool | None],
    folder: str,
    say: Callable[[str], None],
) -> list[bool | None]:
    open_folder = get_datafolder(folder)
    unsure = [then for (then, _), same in zip(pairs, verdicts, strict=True) if same is None]
    size_gb = sum(file.size for file in unsure) / 1e9
    say(f"{folder}: reading {len(unsure)} files ({size_gb:.1f} GB) whose times changed, to see if their contents did.")
    with ThreadPoolExecutor(COMPARING_THREADS) as pool:
        paths = [open_folder.resolve_paths(file.name) for file in unsure]
        contents = iter(list(pool.map(content_of, paths, map(_kind, unsure))))
    return [
        then.content == next(contents) if same is None else same
        for (then, _), same in zip(pairs, verdicts, strict=True)
    ]


def _in_words(changed: Sequence[tuple[InputFile, InputFile]]) -> Iterator[str]:
    for then, now in changed:
        if then.size != now.size:
            yield f"{now.name}: {then.size:,} -> {now.size:,} bytes"
        elif then.content and (not now.content or _kind(then) == _kind(now)):
            yield f"{now.name}: other content, {now.size:,} bytes as before"
        else:
            yield f"{now.name}: {_kind(then) or 'unknown'} content -> {_kind(now) or 'local file'}, not comparable"


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}."


def _hub_commit(source: Source, reader: Hub) -> str:
    try:
        commit: str | None = HfApi().dataset_info(reader.dataset, revision=reader.revision).sha
    except (GatedRepoError, RepositoryNotFoundError):
        raise UnreachableInputError(
            f"The hub refuses {reader.dataset} of source {source.name}.",
            f"Accept its terms on its page and log in with `hf auth login`.{_instead(source)}",
        ) from None
    except Exception as error:  # the hub client raises a dozen types for "not reachable"
        raise UnreachableInputError(
            f"The hub cannot be reached for {reader.dataset} of source {source.name} ({type(error).__name__}).",
            f"Copy the dataset to RAW/{reader.dataset} and give --raw RAW, or try again online.{_instead(source)}",
        ) from None
    assert commit is not None
    return commit


def _instead(source: Source) -> str:
    return f" Or use the source {source.substitute} in its place." if source.substitute else ""
