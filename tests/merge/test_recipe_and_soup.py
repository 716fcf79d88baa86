"""The recipe's errors, the choice of checkpoints, greedy selection, and the command line end to end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from eval.data import write_small_edition
from eval.recipe import load_eval_recipe
from eval.results import read_suite
from foundation.recipe import RecipeError
from merge.checkpoint import Checkpoint, MergeError
from merge.recipe import Evaluation, Ingredient, Soup, load_merge_recipe
from merge.soup import choose_parent, find_checkpoints, greedy_selection
from merge.sweep import run_sweep
from smollm3.command_line import main
from smollm3.merging import ScoringError, suite_scores

REPOSITORY = Path(__file__).parents[2]


def write_recipe(folder: Path, text: str) -> Path:
    (folder / "merge.yaml").write_text(text, encoding="utf-8")
    return folder / "merge.yaml"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("soup: {methud: uniform, checkpoints: [{path: a}], output: o}", ["methud", "Did you mean 'method'", ":1"]),
        ("soup: {checkpoints: [{path: a, weight: 0.5}], output: o}", ["weights are given but method is uniform"]),
        (
            "soup: {method: weighted, checkpoints: [{path: a, weight: 0.5}, {path: b, weight: 0.6}], output: o}",
            ["sum to 1.1"],
        ),
        ("soup: {method: greedy, checkpoints: [{path: a}], output: o}", ["needs the section evaluation"]),
        (
            "soup: {checkpoints: [{path: a}], output: o}\nlinear: {mid_training: m, soup_weight: 1.5, output: l}",
            ["soup_weight", ":2"],
        ),
    ],
)
def test_wrong_recipes_name_key_and_fix(tmp_path, text, messages):
    with pytest.raises(RecipeError) as error:
        load_merge_recipe(write_recipe(tmp_path, text))
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize("profile", ["tiny", "smollm3-3b"])
def test_shipped_recipes_are_valid(profile):
    recipe = load_merge_recipe(REPOSITORY / "recipes" / profile / "merge.yaml")
    assert recipe.linear is not None and recipe.linear.soup_weight == 0.9


def test_patterns_come_in_numeric_order_and_the_last_is_the_parent(make_checkpoint, tmp_path):
    for step in (2, 10, 9):
        make_checkpoint(f"checkpoint-{step}", step)
    soup = Soup(checkpoints=[Ingredient(path=str(tmp_path / "checkpoint-*"))], output="o")
    checkpoints, weights = find_checkpoints(soup)
    assert [checkpoint.path.name for checkpoint in checkpoints] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert weights == [1 / 3] * 3
    assert choose_parent(None, checkpoints).path.name == "checkpoint-10"
    with pytest.raises(MergeError, match="not one of"):
        choose_parent(str(tmp_path), checkpoints)
    with pytest.raises(MergeError, match="No checkpoint matches"):
        find_checkpoints(Soup(checkpoints=[Ingredient(path=str(tmp_path / "none-*"))], output="o"))


def test_greedy_keeps_what_does_not_hurt(make_checkpoint, tmp_path):
    checkpoints = [Checkpoint(make_checkpoint(name)) for name in ("a", "b", "c")]
    scores = {"a": 0.5, "b": 0.7, "c": 0.6, "b+c": 0.65, "b+a": 0.7}
    chosen, log = greedy_selection(
        checkpoints,
        lambda path: scores[path.name],
        lambda trial: tmp_path / "+".join(checkpoint.path.name for checkpoint in trial),
    )
    # b is best; c pulls the soup down and is left out; a does no harm and stays.
    assert [checkpoint.path.name for checkpoint in chosen] == ["b", "a"]
    assert [(entry["score"], entry["kept"]) for entry in log] == [
        (0.5, False), (0.7, True), (0.6, False), (0.65, False), (0.7, True),
    ]  # fmt: skip


def test_a_greedy_soup_is_written_with_its_trials_and_without_their_models(make_checkpoint, tmp_path, monkeypatch):
    """Scores by the number of ingredients: two are better than one, three worse than two."""
    folders = [make_checkpoint(f"apo-{index}", index) for index in range(3)]

    def scores(model, name, evaluation, output):
        manifest = model / "merge_manifest.json"
        count = len(json.loads(manifest.read_text())["inputs"]) if manifest.is_file() else 1
        value = {1: 0.5 + 0.01 * int(model.name[-1]), 2: 0.9, 3: 0.7}[count]
        return {"base/a": {"value": value, "stderr": 0.1}}

    monkeypatch.setattr("smollm3.merging.suite_scores", scores)
    recipe = write_recipe(
        tmp_path,
        f"soup: {{method: greedy, checkpoints: [{{path: '{tmp_path}/apo-*'}}], output: {tmp_path}/soup}}\n"
        "evaluation: {recipe: eval.yaml, suites: [base]}\n",
    )
    assert main(["merge", str(recipe)]) == 0
    manifest = json.loads((tmp_path / "soup" / "merge_manifest.json").read_text())
    assert [(Path(entry["path"]), entry["weight"]) for entry in manifest["inputs"]] == [
        (folders[2], 0.5), (folders[1], 0.5),
    ]  # fmt: skip
    trials = json.loads((tmp_path / "soup.greedy" / "selection.json").read_text())
    assert [(len(trial["checkpoints"]), trial["kept"]) for trial in trials] == [
        (1, False), (1, False), (1, True), (2, True), (3, False),
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "soup.greedy").iterdir()] == ["selection.json"]


def test_command_line_writes_soup_and_linear_merge(make_checkpoint, tmp_path, capsys):
    apo = [make_checkpoint(f"apo-{index}", index) for index in (1, 2)]
    mid = make_checkpoint("mid", 3)
    recipe = write_recipe(
        tmp_path,
        f"soup: {{checkpoints: [{{path: '{tmp_path}/apo-*'}}], output: {tmp_path}/hf/soup}}\n"
        f"linear: {{mid_training: {mid}, output: {tmp_path}/hf/merged}}\ndtype: float32\n",
    )
    assert main(["merge", str(recipe), "--dry-run"]) == 0
    assert "0.9000" in capsys.readouterr().out and not (tmp_path / "hf").exists()
    assert main(["merge", str(recipe), f"linear.mid_training={tmp_path}/gone"]) == 2
    assert "no checkpoint folder" in capsys.readouterr().err and not (tmp_path / "hf").exists()

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "smollm3", "merge", str(recipe)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    name = "model.layers.1.self_attn.q_proj.weight"
    parts = [load_file(folder / "model.safetensors")[name].double() for folder in (*apo, mid)]
    expected = 0.45 * parts[0] + 0.45 * parts[1] + 0.1 * parts[2]
    merged = load_file(next((tmp_path / "hf" / "merged").glob("*.safetensors")))[name]
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("broken", ["apo-0", "apo-1", "mid"])
@pytest.mark.parametrize("method", ["uniform", "weighted", "greedy"])
def test_no_method_merges_or_evaluates_what_is_not_finite(
    make_checkpoint, tmp_path, monkeypatch, capsys, method, broken
):
    for seed, name in enumerate(("apo-0", "apo-1", "mid")):
        make_checkpoint(name, seed)
    file = tmp_path / broken / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][7, 5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    monkeypatch.setattr("smollm3.merging.suite_scores", lambda *_: pytest.fail("evaluated"))
    weight = ", weight: 0.5" if method == "weighted" else ""
    members = ", ".join(f"{{path: {tmp_path}/apo-{index}{weight}}}" for index in range(2))
    recipe = write_recipe(
        tmp_path,
        f"soup: {{method: {method}, checkpoints: [{members}], output: {tmp_path}/hf/soup}}\n"
        f"linear: {{mid_training: {tmp_path}/mid, output: {tmp_path}/hf/merged}}\n"
        "evaluation: {recipe: eval.yaml, suites: [base]}\n",
    )
    for arguments in (["merge", str(recipe), "--dry-run"], ["merge", str(recipe)]):
        assert main(arguments) == 2
        assert f"{file}: model.embed_tokens.weight holds nan in row 7." in capsys.readouterr().err
    assert not list(tmp_path.glob("hf*"))


def test_sweep_keeps_finished_weights_and_draws_them(make_checkpoint, tmp_path):
    soup, mid = make_checkpoint("soup", 1), make_checkpoint("mid", 2)
    recipe = load_merge_recipe(
        write_recipe(
            tmp_path,
            f"soup: {{checkpoints: [{{path: {soup}}}], output: {soup}}}\n"
            f"linear: {{mid_training: {mid}, output: {tmp_path}/merged}}\n"
            "evaluation: {recipe: eval.yaml, suites: [base]}\n"
            f"sweep: {{soup_weights: [1.0, 0.0, 0.5], output: {tmp_path}/sweep}}\n",
        )
    )
    evaluated = []

    def scores(model, name, evaluation, output):
        weight = json.loads((model / "merge_manifest.json").read_text())["inputs"][0]["weight"]
        evaluated.append(weight)
        return {"base/a": {"value": 1 - (weight - 0.5) ** 2, "stderr": 0.1}}

    run_sweep(recipe, scores, "as it is")
    document = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert document["best_soup_weight"] == 0.5 and evaluated == [0.0, 0.5, 1.0]
    assert [row["mean"] for row in document["rows"]] == [0.75, 1.0, 0.75]
    assert (tmp_path / "sweep" / "sweep.svg").is_file() and not list((tmp_path / "sweep").glob("soup-*"))
    run_sweep(recipe, scores, "as it is")
    assert len(evaluated) == 3
    # Scores of code that has changed say nothing about the merge any more.
    before = (tmp_path / "sweep" / "sweep.json").read_text()
    run_sweep(recipe, scores, "as it is now")
    assert evaluated == [0.0, 0.5, 1.0] * 2
    assert [file.read_text() for file in (tmp_path / "sweep").glob("sweep-*.json")] == [before]


def test_second_model_of_a_process_scores_as_in_its_own(make_checkpoint, tmp_path):
    tasks = {"piqa": {"max_documents": 4}, "gsm8k": {"max_documents": 1, "generation_tokens": 2}}
    tree = {"output": "unused", "data": f"{tmp_path}/data", "suites": {"base": {"tasks": tasks}}}
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump(tree | {"backend": {"device": "cpu"}}), encoding="utf-8")
    write_small_edition(load_eval_recipe(file))
    models = [make_checkpoint(name, seed, initializer_range=0.3) for seed, name in enumerate(("first", "second"))]
    evaluation = Evaluation(recipe=str(file), suites=["base"])
    _, scores = (suite_scores(model, model.name, evaluation, tmp_path / "together") for model in models)
    command = [
        sys.executable,
        "-m",
        "smollm3",
        "eval",
        str(file),
        "--model",
        str(models[1]),
        f"output={tmp_path}/alone",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    result = read_suite(tmp_path / "alone" / "second" / "base.json")
    assert result.command == " ".join(["python", *command[1:]])
    alone = [(task.task, task.main_metric) for task in result.tasks]
    assert scores == {f"base/{task}": {"value": main.value, "stderr": main.stderr or 0.0} for task, main in alone}
    piqa = "base/piqa.details.jsonl"  # with log-likelihoods
    details = [(tmp_path / place / piqa).read_text() for place in ("alone/second", "together/second", "together/first")]
    assert details[0] == details[1] != details[2]


def test_an_evaluation_that_fails_says_how_to_repeat_it(tmp_path, monkeypatch):
    """With the run folder that its recipe reads."""
    monkeypatch.setenv("RUN", "my runs")
    repeat = r"(?s)There is no recipe .*To repeat it: RUN='my runs' smollm3 eval .*output=.*/eval"
    with pytest.raises(ScoringError, match=repeat):
        suite_scores(tmp_path, "m", Evaluation(recipe=str(tmp_path / "no.yaml"), suites=["base"]), tmp_path / "eval")


def test_merging_reaches_the_evaluation_by_no_import_at_all():
    """What import-linter does not see: an import by name."""
    for file in (REPOSITORY / "merge").glob("*.py"):
        assert not re.search(r"import_module|__import__|runpy|from eval|import eval", file.read_text()), file
