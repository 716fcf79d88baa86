"""Headers of safetensors files, read before anything trusts what they claim."""

import math
import struct
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.json_text import loads
from foundation.limits import MAX_HEADER_BYTES

_WIDTHS = {"64": 8, "32": 4, "16": 2, "8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}  # bytes, by what a dtype ends in


class WeightFileError(UserError):
    """A file that is no safetensors file, or not all of one."""


def read_header(file: Path) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}.

    Raises:
        WeightFileError: for a header that is none, is larger than the format allows, or promises other bytes than there
            are.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError
            header = loads(stream.read(length))
        header.pop("__metadata__", None)
        end = _end_of(header)
    except (struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise WeightFileError(f"{file} is not a safetensors file, or it is cut off. Write it again.") from None
    if size != 8 + length + end:
        raise WeightFileError(
            f"{file} has {size:,} bytes but its header promises {8 + length + end:,}. Write it again."
        )
    return dict(header)


def _end_of(header: dict[str, Any]) -> int:
    """Where the tensors end, which lie one behind the other; raises ValueError and others if they do not."""
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, next_start = entry["data_offsets"]
        elements = math.prod(entry["shape"])
        width = next((width for suffix, width in _WIDTHS.items() if entry["dtype"].endswith(suffix)), None)
        if start != end or min(entry["shape"], default=0) < 0 or (width and next_start - start != width * elements):
            raise ValueError
        end = next_start
    return end
