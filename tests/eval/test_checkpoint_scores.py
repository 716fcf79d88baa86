"""A checkpoint's scores join the run's rows and wandb under the checkpoint's step."""

import json
from pathlib import Path

import pytest
import yaml

from eval.results import DatasetInfo, Metric, ModelInfo, SuiteResult, TaskResult, write_json
from foundation.recipe import load_recipe
from foundation.wandb_run import Wandb
from smollm3.command_line import main
from tests.wandb_files import offline_runs


def suite(score: float) -> SuiteResult:
    dataset = DatasetInfo(repo="own", subset="a", split="test", revision="1", edition="small", sha256="0")
    task = TaskResult(
        task="piqa", benchmark="piqa", mode="plain", chance=0.5, num_documents=4, num_samples=1,
        num_unclosed_reasoning=0, num_over_length=0, seconds=1.0, dataset=dataset, settings={}, fingerprint="f",
        metrics=[Metric(name="acc", value=score / 2, stderr=None, main=False),
                 Metric(name="acc_norm", value=score, stderr=None, main=True)],
    )  # fmt: skip
    model = ModelInfo(
        name="m", path="m", weights_sha256="0", chat_template_sha256=None, tokenizer_sha256="0", num_parameters=1
    )
    return SuiteResult(
        suite="base", model=model, tasks=[task], seconds=1.0, versions={}, command="", created="2026-11-24"
    )


def evaluate(run_folder: Path, step: int, score: float) -> int:
    folder = run_folder / "evaluations" / str(step)
    for weights in ("checkpoint", f"stage1-{step}"):
        (folder / weights).mkdir(parents=True)
    write_json(suite(score), folder / "results" / "m" / "base.json")
    return main(["eval-checkpoint", str(folder), "--model", str(folder / f"stage1-{step}")])


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    overrides = ["wandb.mode=offline", f"general.runs_path={tmp_path}", "general.run=stage1"]
    recipe = load_recipe("recipes/tiny/pretrain.yaml", overrides)
    recipe.run_folder.mkdir()
    (recipe.run_folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    return recipe.run_folder


def test_scores_join_the_run_in_the_order_of_steps(run_folder: Path) -> None:
    assert evaluate(run_folder, 200, 0.6) == 0 and evaluate(run_folder, 100, 0.5) == 0
    rows = [json.loads(line) for line in (run_folder / "evaluations.jsonl").read_text().splitlines()]
    assert rows == [{"step": 100, "evaluation/base/piqa": 0.5}, {"step": 200, "evaluation/base/piqa": 0.6}]
    assert sorted(path.name for path in (run_folder / "evaluations" / "200").iterdir()) == ["results", "scores.json"]


def test_wandb_has_training_and_evaluation_under_the_same_step_in_one_group(run_folder: Path) -> None:
    tracker = Wandb(load_recipe(run_folder / "recipe.yaml"), "offline", 0)
    tracker.log({"step": 100, "loss": 3.0})
    tracker.close()
    evaluate(run_folder, 100, 0.5)
    training, evaluation = offline_runs(run_folder)
    assert (training.name, evaluation.name) == ("stage1", "stage1-evaluation")
    assert training.group == evaluation.group == "stage1"
    assert training.run_id != evaluation.run_id
    assert training.rows[0]["_step"] == evaluation.rows[0]["_step"] == 100
    assert training.rows[0]["loss"] == 3.0 and evaluation.rows[0]["evaluation/base/piqa"] == 0.5


def test_no_result_is_an_error_that_keeps_the_weights(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder / "evaluations" / "100"
    (folder / "checkpoint").mkdir(parents=True)
    assert main(["eval-checkpoint", str(folder), "--model", str(folder / "none")]) == 2
    assert "There is no result in" in capsys.readouterr().err
    assert (folder / "checkpoint").is_dir()


def test_a_folder_that_is_no_evaluation_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run_folder, run_folder / "checkpoints" / "100"):
        folder.mkdir(parents=True, exist_ok=True)
        assert main(["eval-checkpoint", str(folder), "--model", str(folder)]) == 2
        assert "RUN_FOLDER/evaluations/STEP" in capsys.readouterr().err and folder.is_dir()
