"""What a run's account makes of an earlier attempt's."""

import json
import os
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from foundation.journal import read_metrics
from posttrain.progress import MetricsWriter
from posttrain.recipe import PostTrainingRecipe, load_recipe
from tests.wandb_files import offline_runs

ROWS = [{"step": step, "tokens": 100 * step + step**2} for step in range(1, 6)]


@pytest.fixture
def recipe(tmp_path: Path) -> PostTrainingRecipe:
    overrides = [f"general.runs_path={tmp_path}", "general.run=run", "general.project=planets"]
    recipe = load_recipe("recipes/tiny/sft.yaml", overrides)
    recipe.run_folder.mkdir()
    return recipe


def resume(recipe: PostTrainingRecipe, step: int, tracking_mode: str = "disabled") -> None:
    """Train one more step of 7 tokens, and save a checkpoint."""
    writer, state = MetricsWriter(recipe, tracking_mode), TrainerState(global_step=step, max_steps=100)
    arguments, control = TrainingArguments(output_dir=str(recipe.run_folder)), TrainerControl()
    writer.on_train_begin(arguments, state, control)
    state.global_step, state.epoch = step + 1, 0.5
    logs = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3, "num_tokens": 7.0}
    writer.on_log(arguments, state, control, logs)
    writer.on_save(arguments, state, control)
    writer.on_train_end(arguments, state, control)


@pytest.mark.parametrize("torn", [b"", b'{"step": 6, "lo', bytes(100) + b"\n"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_tokens_count_on_behind_a_torn_line(recipe: PostTrainingRecipe, step: int, torn: bytes) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (recipe.run_folder / "metrics.jsonl").write_bytes(lines + torn)
    resume(recipe, step)
    *before, last = read_metrics(recipe.run_folder)
    assert before == ROWS[:step]
    assert (last["step"], last["tokens"]) == (step + 1, (ROWS[step - 1]["tokens"] if step else 0) + 7)


def test_lost_rows_are_told(recipe: PostTrainingRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.run_folder / "metrics.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    resume(recipe, 3)
    assert "has no row of step 3: tokens count on from step 1" in capsys.readouterr().out
    assert [row["tokens"] for row in read_metrics(recipe.run_folder)] == [101, 108]


def test_wandb_has_the_rows_of_the_journal_under_project_and_run(recipe: PostTrainingRecipe) -> None:
    resume(recipe, 0, "offline")
    resume(recipe, 1, "offline")
    first, second = offline_runs(recipe.run_folder)
    assert (first.project, first.name, first.group) == ("planets", "run", "run")
    assert (second.project, second.name, second.group) == ("planets", "run", "run")
    assert first.run_id != second.run_id
    rows = read_metrics(recipe.run_folder)
    for run, row in zip((first, second), rows, strict=True):
        [logged] = run.rows
        assert logged["_step"] == row.pop("step") and row.items() <= logged.items()


def test_what_the_user_tells_wandb_goes_first_and_stays(
    recipe: PostTrainingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "WANDB_PROJECT": "comets", "WANDB_NAME": "halley", "WANDB_RUN_GROUP": "visible", "WANDB_RUN_ID": "1p",
        "WANDB_DIR": str(tmp_path / "own"), "WANDB_SILENT": "false", "WANDB_MODE": "offline",
    }  # fmt: skip
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    resume(recipe, 0, "offline")
    assert dict(os.environ) == before
    [run] = offline_runs(tmp_path / "own")
    assert (run.project, run.name, run.group, run.run_id) == ("comets", "halley", "visible", "1p")
    assert offline_runs(recipe.run_folder) == []
