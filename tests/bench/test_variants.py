"""transformers as the step benchmark runs it, by transformers' own rules for packed samples."""

import sys
from pathlib import Path

import pytest
import torch
from transformers.modeling_flash_attention_utils import _is_packed_sequence, _prepare_from_posids

from nanotron_ext.model.documents import Documents

sys.path.append(str(Path("bench").resolve()))  # last: it has a merge.py

from stepbench.variants import FLASH, packed_shape
from stepbench.work import Work

WORK = Work("tiny", "bfloat16", 128, 3, 2, 64, mean_document_tokens=40)


@pytest.mark.parametrize("lengths", WORK.lengths(1), ids=str)
def test_flash_attention_gets_the_borders_of_all_documents(lengths: list[int]) -> None:
    positions = Documents.from_lengths(lengths).position_ids
    rows, tokens = packed_shape(FLASH, WORK)
    assert rows * tokens == sum(lengths) == 3 * 128
    shaped = positions.view(rows, tokens)
    assert _is_packed_sequence(shaped, rows)
    x = torch.zeros(rows, tokens, 2, 4)
    *_, (cu_seqlens, _), (longest, _) = _prepare_from_posids(x, x, x, shaped)
    assert cu_seqlens.diff().tolist() == lengths and longest == max(lengths)
    as_before = positions.view(WORK.micro_batch_size, WORK.sequence_length)
    assert not _is_packed_sequence(as_before, WORK.micro_batch_size)  # whole rows: other work
