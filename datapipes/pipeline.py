"""One source's way from text to verified shards, on datatrove's executors.

A source is built in `<data>/.partial/<source>-<hash>-<tasks>/`, which also holds datatrove's logs and completion marks:
an interrupted build goes on task by task, and only with the same pipeline and number of tasks. When every task's output
has been verified, the manifest is written and the folder takes its place as `<data>/<source>/`. What had that place
before stays in use until then.
"""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.tokens import DocumentTokenizer
from numpy.random import default_rng
from tokenizers import Tokenizer

from datapipes.chat import ChatEncoder, special_ids
from datapipes.clean import Clean
from datapipes.decontaminate import BenchmarkIndex, Decontaminate
from datapipes.dedup import Stage, exact_stages, minhash_stages
from datapipes.errors import SourceError
from datapipes.executors import SlurmSettings, run_locally, submit, tasks_completed, wait
from datapipes.inputs import UnreachableInputError, find_input
from datapipes.readers import read_contents, reader_of
from datapipes.record import Record, input_of, record_of
from datapipes.registry import Source
from datapipes.shards import Manifest, ShardFile, read_manifest, token_bytes_for, verify_folder, verify_shard
from datapipes.tokenizer import LoadedTokenizer
from foundation.files import put_in_place

TOKENIZER_BATCH_DOCUMENTS = 1000


@dataclass(frozen=True)
class Summary:
    """What became of a source's documents."""

    source: str
    rebuilt: bool
    documents_in: int
    characters_in: int
    dropped: dict[str, int]  # step and reason -> documents
    documents_out: int
    tokens_out: int


class ShardWriter(DocumentTokenizer):
    """Tokenises, ends every document with EOS, shuffles the documents of each task with a seed of its own.

    Special tokens that a raw text spells out are tokenised as the characters they are.
    """

    def __init__(self, folder: Path, source: Source, tokenizer: LoadedTokenizer) -> None:
        super().__init__(
            output_folder=str(folder),
            tokenizer_name_or_path=str(tokenizer.file),
            local_working_dir=str(folder / "scratch"),
            eos_token=tokenizer.eos_token,
            batch_size=TOKENIZER_BATCH_DOCUMENTS,
            save_final_metadata=False,
        )
        self.source = source
        self.eos_token_id = tokenizer.eos_token_id

    @cached_property
    def tokenizer(self) -> Tokenizer | ChatEncoder:
        tokenizer = super().tokenizer
        tokenizer.encode_special_tokens = True
        return ChatEncoder(tokenizer, self.eos_token_id) if self.source.is_chat else tokenizer

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        digest = hashlib.sha256(f"{self.source.name}/{rank}".encode()).digest()
        self.rand = default_rng(int.from_bytes(digest[:8], "big"))
        return super().run(self._counted(data), rank, world_size)

    def _counted(self, data: DocumentsPipeline) -> DocumentsPipeline:
        for document in data:
            self.stat_update("documents")
            yield document


class TokenLimits(BaseFilter):
    """Drops documents of fewer than `min_tokens` or more than `max_tokens` tokens.

    Only documents of at least `min_tokens` bytes are tokenised here: a token has a byte or more.
    """

    name = "Token limits"

    def __init__(self, source: Source, writer: ShardWriter) -> None:
        super().__init__()
        self.min_tokens = source.min_tokens or 0
        self.max_tokens = source.max_tokens or math.inf
        self.writer = writer

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if len(doc.text.encode()) + 1 < self.min_tokens:
            return False, "too_few_tokens"
        tokens = len(self.writer.tokenizer.encode_batch([doc.text])[0].ids)
        if tokens < self.min_tokens:
            return False, "too_few_tokens"
        return True if tokens <= self.max_tokens else (False, "too_many_tokens")


class SourceBuild:
    """The build of one source with one tokenizer below one data folder.

    `raw_folder` holds copies of hub datasets; `benchmarks` is what sources are decontaminated against. Where the source
    is prepared already and its files cannot be looked at now, `unreachable` says why.

    Raises:
        SourceError: on construction, if the source is not prepared and cannot be.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: LoadedTokenizer,
        data_folder: Path,
        raw_folder: Path | None = None,
        benchmarks: BenchmarkIndex | None = None,
    ) -> None:
        if source.decontaminate and benchmarks is None:
            raise SourceError(
                f"Source {source.name} is decontaminated against evaluation sets: give their folder as --benchmarks."
            )
        self.source = source
        self.tokenizer = tokenizer
        self.benchmarks = benchmarks
        self.folder = data_folder / source.name
        self._replaces = self.folder.exists()
        self.unreachable: UnreachableInputError | None = None
        try:
            self.input = find_input(source, raw_folder)
        except UnreachableInputError as error:
            if (prepared_from := input_of(self.folder)) is None:
                raise
            self.input, self.unreachable = prepared_from, error
        self.record = record_of(source, tokenizer, benchmarks, self.input)
        self.pipeline_sha256 = self.record.sha256()
        self.partial = data_folder / ".partial" / f"{source.name}-{self.pipeline_sha256[:12]}-{source.tasks}"
        self.logs = self.partial / "logs"
        self.contents = self.logs / "contents"  # stays: a kill just before the folder is put in place must not lose it
        chat_ids = special_ids(tokenizer.tokenizer).values() if source.is_chat else ()
        self._forbidden_ids = [token_id for token_id in tokenizer.special_ids if token_id not in chat_ids]

    def verify(self) -> None:
        """Check the prepared shards byte by byte against their manifest.

        Raises:
            SourceError: naming the file that differs.
        """
        manifest = read_manifest(self.folder)
        assert manifest is not None
        verify_folder(self.folder, manifest, self._forbidden_ids)

    def tasks_completed(self) -> int:
        """How many tasks of the running or interrupted build are done."""
        return tasks_completed(self.logs, "shards")

    def build(self, workers: int) -> None:
        """Run what is still to run, verify it, and put it in place.

        Raises:
            SourceError: if the source cannot be read or a task's output is not whole.
        """
        self._begin()
        run_locally(self.stages(), self.logs, workers)
        self._publish()

    def submit(self, settings: SlurmSettings) -> None:
        """Have Slurm run what is still to run, unless it is about to already.

        Raises:
            SourceError: if Slurm does not take the jobs.
        """
        self._begin()
        submit(self.stages(), self.logs, settings, self.source.name)

    def finish_submitted(self) -> None:
        """Wait for the submitted jobs, verify what they wrote, and put it in place.

        Raises:
            SourceError: if a task failed or its output is not whole.
        """
        wait(self.stages(), self.logs)
        self._publish()

    def stages(self) -> list[Stage]:
        """The launches that make the shards, one after the other; the last one writes them."""
        find = {"exact": exact_stages, "minhash": minhash_stages}.get(self.source.deduplicate or "")
        before: list[Stage] = []
        filters: list[PipelineStep] = []
        if find is not None:
            before, duplicates = find(self._read, self.partial / "dedup", self.source.tasks)
            filters = [duplicates]
        writer = ShardWriter(self.partial, self.source, self.tokenizer)
        if self.source.min_tokens or self.source.max_tokens:
            filters.append(TokenLimits(self.source, writer))
        return [*before, Stage("shards", [*self._read(self.contents), *filters, writer], self.source.tasks)]

    def _read(self, contents: Path | None = None) -> list[PipelineStep]:
        """The steps that give the source's documents, the same ones in the same order every time."""
        steps = [reader_of(self.source, self.input, contents), Clean(self.source.min_characters)]
        if self.source.decontaminate:
            assert self.benchmarks is not None
            steps.append(Decontaminate(self.benchmarks))
        return steps

    def other_partial_builds(self) -> list[Path]:
        """Unfinished builds of this source from other inputs or settings; the next build of this one drops them."""
        return [
            folder
            for folder in self.partial.parent.glob(f"{self.source.name}-*")
            if folder.name.rsplit("-", 2)[0] == self.source.name and folder != self.partial
        ]

    def _begin(self) -> None:
        if self.unreachable:
            raise self.unreachable
        for folder in self.other_partial_builds():
            shutil.rmtree(folder)
        self.record.write(self.partial)

    def _verified_files(self, rank: int) -> Iterator[ShardFile]:
        """The stage barrier: a task counts as done when its files are whole and hold all that it says it wrote."""
        steps = _task_stats(self.logs / "shards", rank)
        self._check_same_documents_as_deduplicated(steps, rank)
        try:
            entries = [
                verify_shard(
                    path,
                    self.tokenizer.vocab_size,
                    token_bytes_for(self.tokenizer.vocab_size),
                    self.tokenizer.eos_token_id,
                    self._forbidden_ids,
                )
                for path in sorted(self.partial.glob(f"{rank:05d}_*.ds"))
            ]
        except SourceError as error:
            raise SourceError(f"{error} Check the disk, delete {self.partial} and run again.") from None
        found = sum(entry.documents for entry in entries), sum(entry.tokens for entry in entries)
        expected = _total(steps[-1], "documents"), _total(steps[-1], "tokens")
        if found != expected:
            raise SourceError(
                f"Task {rank} of {self.source.name} wrote {expected[0]} documents of {expected[1]} tokens, but "
                f"{self.partial} holds {found[0]} of {found[1]}. Check the disk, delete that folder and run again."
            )
        yield from entries

    def _check_same_documents_as_deduplicated(self, steps: list[dict[str, Any]], rank: int) -> None:
        """Duplicates are known by their position: the source must not have changed between the stages."""
        if self.source.deduplicate is None:
            return
        signatures = _task_stats(self.logs / "signatures", rank)
        find, drop = signatures[-1], steps[len(signatures) - 1]  # after the same steps of reading
        before, now = _total(find, "total"), _total(drop, "total")
        if before != now:
            raise SourceError(
                f"Task {rank} of {self.source.name} read {before} documents to find duplicates and then {now}: its "
                f"files changed meanwhile. Delete {self.partial} and run again."
            )

    def _publish(self) -> None:
        files = [entry for rank in range(self.source.tasks) for entry in self._verified_files(rank)]
        if not files:
            raise SourceError(f"Source {self.source.name} has no document left after cleaning. Check its files.")
        record = self._record_with_contents()
        for leftover in ("scratch", "dedup"):
            shutil.rmtree(self.partial / leftover, ignore_errors=True)
        Manifest(
            source=self.source.name,
            revision=self.input.revision,
            pipeline_sha256=record.sha256(),
            tokenizer_sha256=self.tokenizer.sha256,
            tokenizer_content_sha256=self.tokenizer.content_sha256,
            vocab_size=self.tokenizer.vocab_size,
            token_bytes=token_bytes_for(self.tokenizer.vocab_size),
            eos_token_id=self.tokenizer.eos_token_id,
            documents=sum(entry.documents for entry in files),
            tokens=sum(entry.tokens for entry in files),
            files=files,
        ).write(self.partial)
        record.write(self.partial)
        if self.folder.exists() and not self._replaces:
            raise SourceError(
                f"{self.folder} appeared while {self.source.name} was prepared. Its new shards are whole in "
                f"{self.partial}: move one of the two folders away, and run again."
            )
        put_in_place(self.partial, self.folder)

    def _record_with_contents(self) -> Record:
        """With what the tasks found the local files to hold."""
        found = read_contents(self.contents)
        unread = [file.name for file in self.input.files if file.content is None and file.name not in found]
        if unread:
            raise SourceError(
                f"The tasks of {self.source.name} noted no content of {unread[0]} and {len(unread) - 1} other files in "
                f"{self.contents}. Check the disk, delete {self.partial} and run again."
            )
        files = [file.model_copy(update={"content": file.content or found[file.name]}) for file in self.input.files]
        return self.record.model_copy(update={"input": self.input.model_copy(update={"files": tuple(files)})})

    def summary(self, rebuilt: bool) -> Summary:
        """Counts over all tasks, from the logs that lie next to the shards."""
        tasks = [_task_stats(self.folder / "logs" / "shards", rank) for rank in range(self.source.tasks)]
        dropped: Counter[str] = Counter()
        for steps in tasks:
            for step in steps[1:-1]:
                reasons = [label for label in step["stats"] if label.startswith("dropped_")]
                for label in reasons:
                    dropped[label.removeprefix("dropped_")] += _total(step, label)
                if not reasons:
                    dropped[step["name"].rpartition(": ")[2]] += _total(step, "dropped")
        return Summary(
            source=self.source.name,
            rebuilt=rebuilt,
            documents_in=sum(_total(steps[1], "total") for steps in tasks),
            characters_in=sum(_total(steps[0], "doc_len") for steps in tasks),
            dropped={reason: count for reason, count in dropped.items() if count},
            documents_out=sum(_total(steps[-1], "documents") for steps in tasks),
            tokens_out=sum(_total(steps[-1], "tokens") for steps in tasks),
        )


def _task_stats(logs: Path, rank: int) -> list[dict[str, Any]]:
    """Per step what datatrove counted. Its merged stats.json would lack the tasks of an interrupted launch."""
    steps: list[dict[str, Any]] = json.loads((logs / "stats" / f"{rank:05d}.json").read_text(encoding="utf-8"))
    return steps


def _total(step: dict[str, Any], label: str) -> int:
    value = step["stats"].get(label, 0)
    return int(value["total"] if isinstance(value, dict) else value)
