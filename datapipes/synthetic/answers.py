"""What a teacher said: kept as it came, so that filters can change without asking again, and judged."""

import errno
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document

_TAG = re.compile(r"</?think>")
_LOOP_WINDOW_BYTES = 4096
_LOOP_RATIO = 0.1  # deflate leaves 0.3 to 0.5 of English or code, 0.02 to 0.06 of a phrase said over and over


class Unusable(Exception):
    """An answer that is dropped; the text is the reason under which it is counted."""


@dataclass(frozen=True)
class Answer:
    """One assistant turn; `thinking` is empty when the teacher does not reason."""

    thinking: str
    text: str

    @property
    def content(self) -> str:
        """As the chat template takes it."""
        return f"<think>\n{self.thinking}\n</think>\n{self.text}" if self.thinking else self.text


def parse_answer(turn: dict[str, Any], thinking: bool) -> Answer:
    """Take apart a turn with text, reasoning (where the server separates it) and finish_reason.

    The opening tag may be missing: some models' prompts end with it.

    Raises:
        Unusable: truncated, empty, without the think block it needs, or caught in a loop.
    """
    if turn["finish_reason"] != "stop":
        raise Unusable("truncated")
    text, reasoning = turn["text"], turn["reasoning"].strip()
    thinking_part, closing, answer = text.partition("</think>")
    if not reasoning and closing:
        reasoning, text = thinking_part.lstrip().removeprefix("<think>").strip(), answer
    text = text.strip()
    if _TAG.search(text) or _TAG.search(reasoning):
        raise Unusable("unbalanced think tags")
    if thinking and not reasoning:
        raise Unusable("without reasoning")
    if not thinking and reasoning:
        raise Unusable("reasoning that was not asked for")
    if not text:
        raise Unusable("empty answer")
    if repeats_itself(reasoning) or repeats_itself(text):
        raise Unusable("repeats itself")
    return Answer(reasoning, text)


def without_thinking(content: str) -> str:
    """What of an assistant turn goes back to the model in later turns."""
    _, closing, answer = content.partition("</think>")
    return answer.strip() if closing else content


def repeats_itself(text: str) -> bool:
    """Whether some stretch of 4 kB (or the whole of a text from a quarter of that) says little but the same."""
    data = text.encode("utf-8", "replace")
    if len(data) < _LOOP_WINDOW_BYTES // 4:
        return False
    starts = range(0, max(1, len(data) - _LOOP_WINDOW_BYTES // 2), _LOOP_WINDOW_BYTES // 2)
    windows = (data[start : start + _LOOP_WINDOW_BYTES] for start in starts)
    return any(len(zlib.compress(window)) < _LOOP_RATIO * len(window) for window in windows)


class AnswerLog:
    """Append-only JSON lines: {id, messages, turns} per conversation, or {id, messages, refused}.

    Opened in a `with` statement it removes a line that a kill or a full disk left unfinished, and reads the rest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: dict[str, int] = {}

    def __enter__(self) -> "AnswerLog":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._end = 0
        with self.path.open("a+b") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(self._end)
                    break
                self.offsets[orjson.loads(line)["id"]] = self._end
                self._end += len(line)
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, document: Document) -> None:
        """Append a conversation; a kill of this process cannot lose it once this returns.

        Raises:
            OSError: it could not be written.
        """
        metadata = {key: value for key, value in document.metadata.items() if key != "unusable"}
        line = orjson.dumps({"id": document.id, **metadata}, option=orjson.OPT_APPEND_NEWLINE)
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self.offsets[document.id] = self._end
        self._end += len(line)

    def read(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The conversations of these ids, in their order."""
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self.offsets[key])
                yield orjson.loads(file.readline())
