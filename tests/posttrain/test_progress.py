"""What a run's account makes of an earlier attempt's."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from foundation.journal import read_metrics
from posttrain.progress import MetricsWriter

ROWS = [{"step": step, "tokens": 100 * step + step**2} for step in range(1, 6)]


def resumed(folder: Path, step: int) -> MetricsWriter:
    """The writer after one more step of 7 tokens and a checkpoint."""
    writer, state = MetricsWriter(folder), TrainerState(global_step=step, max_steps=100)
    arguments, control = TrainingArguments(output_dir=str(folder)), TrainerControl()
    writer.on_train_begin(arguments, state, control)
    state.global_step, state.epoch = step + 1, 0.5
    logs = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_tokens": 7.0}
    writer.on_log(arguments, state, control, logs)
    writer.on_save(arguments, state, control)
    writer.on_train_end(arguments, state, control)
    return writer


@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "lo', bytes(100) + b"\n"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_tokens_count_on_behind_a_torn_line(tmp_path: Path, step: int, torn: bytes) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "metrics.jsonl").write_bytes(lines + torn)
    resumed(tmp_path, step)
    *before, last = read_metrics(tmp_path)
    assert before == ROWS[:step]
    assert (last["step"], last["tokens"]) == (step + 1, (ROWS[step - 1]["tokens"] if step else 0) + 7)


def test_lost_rows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    resumed(tmp_path, 3)
    assert "has no row of step 3: tokens count on from step 1" in capsys.readouterr().out
    assert [row["tokens"] for row in read_metrics(tmp_path)] == [101, 108]
