"""Where the documents of a micro-batch lie; every pipeline stage gets it beside the hidden states."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Documents:
    """Document layout of one micro-batch of `tokens` tokens, samples laid end to end.

    position_ids: int64 `[tokens]`, restarting at 0 with each document.
    cu_seqlens: int32 `[documents + 1]`, ascending document borders from 0 to `tokens`.
    lengths: the same borders as document lengths, on the host, so that no backend has to ask the device for them.
    max_seqlen: the longest document, in tokens.
    """

    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    max_seqlen: int

    @classmethod
    def from_lengths(cls, lengths: list[int], device: torch.device | str = "cpu") -> "Documents":
        """Layout of documents with the given lengths (each at least 1), laid end to end."""
        ends = torch.tensor([0, *lengths]).cumsum(0)
        positions = torch.arange(int(ends[-1])) - ends[:-1].repeat_interleave(torch.tensor(lengths))
        return cls(positions.to(device), ends.to(device, torch.int32), tuple(lengths), max(lengths))
