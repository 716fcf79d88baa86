"""Questions about a record: as long as asked, answered by one word in it, and by nothing else."""

import re

import pytest
from transformers import AutoTokenizer

from eval.facts import generate
from foundation.facts import KINDS


def test_the_record_and_only_the_record_answers(model_folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = generate({}, tokenizer, 1000, 40, seed=0)
    assert rows == generate({}, tokenizer, 1000, 40, seed=0) != generate({}, tokenizer, 1000, 40, seed=1)
    for row in rows:
        assert 900 < len(tokenizer.encode(row["input"])) == row["length"] <= 1000
        body, _, asked = row["input"].partition("\nRecall: ")
        noted = dict(re.findall(r"Noted: (\w+) (\w+)\.", body))
        assert row["outputs"] == [noted[asked]]
        assert [value for value in KINDS[asked] if re.search(rf"\b{value}\b", body)] == row["outputs"]
    assert len({row["outputs"][0] for row in rows}) > 10
    with pytest.raises(ValueError, match="the question alone has"):
        generate({}, tokenizer, 20, 1, seed=0)
