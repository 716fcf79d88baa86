"""The summary's numbers against hand computations."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eval.pretraining import SummaryError, held_out, summarise_stage
from report.collect import Training


class Letters:
    """Token n is the n-th letter; 0 is special."""

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(96 + int(token)) for token in ids if token)


def write_source(folder: Path, tokens: list[int]) -> None:
    folder.mkdir(parents=True)
    np.array(tokens, "<u2").tofile(folder / "x.ds")
    (folder / "manifest.json").write_text(json.dumps({"token_bytes": 2, "files": [{"name": "x.ds"}]}))


def write_run(root: Path) -> Path:
    run = root / "stage1"
    run.mkdir()
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 10.0 - step, "tokens": 100 * step, "tokens_per_second": 50.0} for step in range(1, 31)
    ]
    rows[14]["validation_bits_per_byte"] = {"held": 9.0}
    rows[29]["validation_bits_per_byte"] = {"held": 1.5}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "data": {"path": str(root / "data")},
        "data_stages": [{"mixture": {"train": 1.0}}],
        "model": {"model_config": {"vocab_size": 4}},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_source(root / "data" / "train", [1, 1, 2, 0, 1, 0])
    write_source(root / "data" / "held", [1, 2, 3, 0])
    return run


def test_stage_summary(tmp_path: Path) -> None:
    summary = summarise_stage(write_run(tmp_path))
    assert (summary.first_step, summary.last_step, summary.tokens) == (1, 30, 3000)
    assert summary.first_loss == pytest.approx(10 - 5.5) and summary.last_loss == pytest.approx(10 - 25.5)
    assert summary.tokens_per_second == pytest.approx(50) and summary.minutes == pytest.approx(1.0)


def test_a_stage_whose_batch_was_doubled_on_its_way(tmp_path: Path) -> None:
    """Ten steps of 100 tokens and twenty of 200, at two seconds each."""
    rows = [{"step": step, "loss": 1.0, "tokens": 100 * step, "tokens_per_second": 50.0} for step in range(1, 11)]
    for step in range(11, 31):
        rows.append({"step": step, "loss": 1.0, "tokens": 200 * step - 1000, "tokens_per_second": 100.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = summarise_stage(tmp_path)
    assert summary.tokens == 5000 and summary.minutes == pytest.approx(1.0)
    assert summary.tokens_per_second == pytest.approx(5000 / 60)
    assert Training("stage1", {}, rows).tokens == 5000 and Training("stage1", {}, rows[20:]).tokens == 2000


def test_baselines_and_the_last_validation(tmp_path: Path) -> None:
    [row] = held_out(write_run(tmp_path), Letters())
    assert row.source == "held" and row.bytes == 3 and row.model == 1.5
    # Training counts a=3, b=1, special=2, c=0; one added to each of the four.
    probabilities = [4 / 10, 2 / 10, 1 / 10, 3 / 10]
    assert row.unigram == pytest.approx(-sum(map(math.log2, probabilities)) / 3)
    assert row.gzip == pytest.approx(8 * len(gzip.compress(b"abc", 9)) / 3)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SummaryError, match=r"metrics\.jsonl has no row"):
        summarise_stage(tmp_path)
