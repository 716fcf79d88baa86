"""Lint of training windows: empty, duplicated, or mostly boilerplate, judged on a sample from every source."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from numpy.typing import NDArray
from tokenizers import Tokenizer

from datapipes.decontaminate import ngram_hashes
from datapipes.words import PlainWords
from foundation.recipe import Recipe
from foundation.shards.manifest import open_sources
from foundation.shards.reader import ShardSet

MIN_CHARACTERS_PER_TOKEN = 0.5  # visible ones; text has about 4, rows of blanks or of end tokens next to none
MAX_SEEN_PASSAGES = 0.5  # of a window's passages of 12 words, those that an earlier window of the sample has too
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Window:
    """The `number`-th window of a source: token ids, and the exclusive ends of the documents that end inside."""

    source: str
    number: int
    tokens: NDArray[np.int32]
    document_ends: NDArray[np.int64]

    def pieces(self) -> list[NDArray[np.int32]]:
        """The window cut at the ends of documents."""
        return [piece for piece in np.split(self.tokens, self.document_ends) if len(piece)]


class WindowReader:
    """Windows of a recipe's prepared sources, as the loader cuts them.

    Raises:
        SourceError: if a source is not prepared (nanotron_ext.data).
    """

    def __init__(self, recipe: Recipe, names: Sequence[str]) -> None:
        self.names = list(names)
        self.sequence_length = recipe.tokens.sequence_length
        self._shards = ShardSet(open_sources(recipe, names), recipe.chunk_tokens)

    def read(self, source: str, number: int) -> Window:
        tokens = np.empty((1, self.sequence_length + 1), np.int32)
        place = np.array([self.names.index(source)]), np.array([number * self.sequence_length])
        ends = self._shards.read(*self._shards.locate(*place), tokens)
        return Window(source, number, tokens[0, :-1], ends)

    def spread(self, source: str, windows: int) -> Iterable[Window]:
        """At most so many windows at equal distances, from the source's first to its last."""
        chunks = int(self._shards.chunks[self.names.index(source)])
        available = chunks * (self._shards.chunk_tokens // self.sequence_length)
        for number in np.unique(np.linspace(0, available - 1, windows).astype(np.int64)).tolist():
            yield self.read(source, number)


@dataclass
class Findings:
    """What lint found in a source: kind of finding -> windows, and the numbers of a few of them to look at."""

    windows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def add(self, kind: str, window: int) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(window)


class WindowLint:
    """Judges windows one after the other; what counts as duplicated is what came earlier, from any source."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        # Without the rule for the most frequent pair of words, which in a short window need not even occur twice.
        self._repetition = GopherRepetitionFilter(top_n_grams=(), language=PlainWords())
        self._seen: set[int] = set()

    def judge(self, window: Window) -> str | None:
        """The first of "empty", "duplicated" and "boilerplate" that holds; None for a sound window.

        Boilerplate is what repeats itself by the rules of Gopher (Rae et al. 2021, table A1; datatrove's filter):
        lines, paragraphs or runs of words.
        """
        text = self.tokenizer.decode(window.tokens.tolist(), skip_special_tokens=True)
        if sum(map(len, text.split())) < MIN_CHARACTERS_PER_TOKEN * len(window.tokens):
            return "empty"
        passages = set(ngram_hashes(text).tolist())
        is_duplicate = len(passages & self._seen) > MAX_SEEN_PASSAGES * len(passages)
        self._seen |= passages
        if is_duplicate:
            return "duplicated"
        repeats_itself = self._repetition.filter(Document(text=text, id="")) is not True
        return "boilerplate" if repeats_itself else None


def lint(reader: WindowReader, tokenizer: Tokenizer, windows_per_source: int) -> dict[str, Findings]:
    """Judge windows of every source of the reader."""
    judge = WindowLint(tokenizer).judge
    findings = {name: Findings() for name in reader.names}
    for name, found in findings.items():
        for window in reader.spread(name, windows_per_source):
            found.windows += 1
            if (kind := judge(window)) is not None:
                found.add(kind, window.number)
    return findings
