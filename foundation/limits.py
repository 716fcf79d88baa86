"""How large one thing from outside may be: a line of a data set, a row unpacked, a header of weights, a table.

A few kilobytes of compressed data unpack to gigabytes, and a number in a header can claim any size: what is read at
once is bounded, so that such a file is refused in a sentence instead of taking the machine's memory.
"""

import io
import os
import zlib
from collections.abc import Iterator
from typing import IO, cast

from foundation.errors import UserError

VARIABLE = "SMOLLM3_MAX_ITEM_MB"
_DEFAULT_MB = 256  # the longest documents and contest rows of the published sets have tens of MB
_BUFFER_BYTES = 1 << 20
MAX_LAYERS = 10_000  # of a model; the deepest published ones have hundreds
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file: the format's own limit (github.com/huggingface/safetensors)


class TooLargeError(UserError):
    """Something from outside that is larger than it may be."""


def max_item_bytes() -> int:
    """Of one line or row; SMOLLM3_MAX_ITEM_MB raises it.

    Raises:
        TooLargeError: if that variable is no whole number above 0.
    """
    given = os.environ.get(VARIABLE) or str(_DEFAULT_MB)
    if not given.isascii() or not given.isdigit() or not int(given[:12]) > 0:
        raise TooLargeError(f"{VARIABLE} is {given!r}. Give a whole number of megabytes, or unset it ({_DEFAULT_MB}).")
    return int(given[:12]) << 20


def too_large(what: str) -> TooLargeError:
    return TooLargeError(
        f"{what} has more than {max_item_bytes() >> 20} MB. If it is meant to be so large, set {VARIABLE} higher."
    )


def decompress(data: bytes, what: str) -> bytes:
    """Of zlib, at most `max_item_bytes`.

    Raises:
        TooLargeError: if it is more.
        zlib.error: if it is not zlib's, or cut off.
    """
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(data, max_item_bytes())
    if unpacker.unconsumed_tail:
        raise too_large(what)
    if not unpacker.eof:
        raise zlib.error("incomplete data")
    return content


def bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file that may be compressed, none of which is read further than it may be long.

    Raises:
        TooLargeError: for the first that is longer, with its number.
    """
    number, limit = 0, max_item_bytes()
    # Files of object storage, and zstandard's, read no line up to a limit themselves.
    reader = io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
    while line := reader.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise too_large(f"Line {number}")
        yield line
