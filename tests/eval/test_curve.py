"""The curve over checkpoints: tokens, order, what is repeated, and the band."""

import json

import pytest
import yaml

from eval import curve
from eval.curve import below_band, follow
from eval.data import write_small_edition
from eval.errors import EvalError
from eval.recipe import load_eval_recipe
from eval.results import Curve, CurvePoint, Score
from smollm3.command_line import main


def make_curve(*points, stderr=1.0):
    return Curve(
        suites=["base"],
        settings_sha256="s",
        points=[
            CurvePoint(run="r", step=tokens, tokens=tokens, checkpoint_sha256=str(tokens),
                       scores={"base/piqa": Score(value=value, stderr=stderr, edition="full")})
            for tokens, value in points
        ],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("points", "failing"),
    [
        ([(100, 50.0), (200, 60.0)], []),  # the reference itself
        ([(150, 52.2)], []),  # within 2 * sqrt(2) standard errors of 55, half way between the reference's points
        ([(150, 52.1)], [150]),
        ([(100, 40.0), (150, 90.0), (200, 57.0)], [100, 200]),
        ([(50, 0.0), (250, 0.0)], []),  # the reference says nothing there
    ],
)
def test_the_band_lies_around_the_interpolated_reference(points, failing):
    found = below_band(make_curve(*points), make_curve((100, 50.0), (200, 60.0)), tolerance=2.0)
    assert [int(sentence.split("step ")[1].split()[0]) for sentence in found] == failing
    assert below_band(make_curve((100, 0.0)), make_curve((100, 50.0)), 2.0)  # a reference of one point


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs with checkpoints at 8 and 16 and at 24, a recipe, and an evaluation that scores tokens / 100."""
    for name, steps in (("stage1", (8, 16)), ("stage2", (24,))):
        for step in steps:
            (tmp_path / name / "checkpoints" / str(step)).mkdir(parents=True)
            (tmp_path / name / "checkpoints" / str(step) / "checkpoint.json").write_text(json.dumps({"step": step}))
        (tmp_path / name / "checkpoints" / "99").mkdir()  # was being written: no checkpoint.json
        rows = [{"step": step, "tokens": 10 * step} for step in range(1, 30)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "output": str(tmp_path / "eval"),
        "data": str(tmp_path / "data"),
        "suites": {"base": {"tasks": {"piqa": {}}}},
    }
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    write_small_edition(load_eval_recipe(tmp_path / "eval.yaml"))
    evaluated = []

    def evaluate(recipe, checkpoint, digest, suites, folder):
        run, step = checkpoint.parents[1], int(checkpoint.name)
        evaluated.append((run.name, step))
        scores = {"base/piqa": Score(value=step / 10, stderr=0.1, edition="small")}
        tokens = curve._tokens(run, step)
        return CurvePoint(run=str(run), step=step, tokens=tokens, checkpoint_sha256=digest, scores=scores)

    monkeypatch.setattr(curve, "_evaluate_checkpoint", evaluate)
    return tmp_path, evaluated


def test_every_complete_checkpoint_once_and_new_ones_later(runs):
    folder, evaluated = runs
    recipe = load_eval_recipe(folder / "eval.yaml")
    found = follow(recipe, [folder / "stage1"], ["base"])
    assert [(point.step, point.tokens) for point in found.points] == [(8, 80), (16, 160)]
    found = follow(recipe, [folder / "stage1", folder / "stage2"], ["base"])
    assert evaluated == [("stage1", 8), ("stage1", 16), ("stage2", 24)]
    assert [point.tokens for point in found.points] == [80, 160, 240]
    assert "| stage2 | 24 | 240 | 2.40 ± 0.10 |" in (folder / "eval_curve" / "curve.md").read_text()
    assert (folder / "eval_curve" / "curve.svg").read_text().startswith("<svg")
    changed = load_eval_recipe(folder / "eval.yaml", ["suites.base.tasks.piqa.max_documents=4"])
    follow(changed, [folder / "stage1"], ["base"])  # points of other settings do not compare
    assert len(evaluated) == 5


def test_no_point_that_was_evaluated_is_lost(runs, capsys):
    folder, evaluated = runs
    recipe, file = load_eval_recipe(folder / "eval.yaml"), folder / "eval_curve" / "curve.json"
    follow(recipe, [folder / "stage1", folder / "stage2"], ["base"])
    assert [point.step for point in follow(recipe, [folder / "stage2"], ["base"]).points] == [24]
    assert [point.step for point in curve.read_curve(file).points] == [8, 16, 24] and len(evaluated) == 3
    (folder / "stage1" / "checkpoints" / "8" / "checkpoint.json").write_text("trained anew")
    follow(recipe, [folder / "stage1"], ["base"])
    assert [point.step for point in curve.read_curve(file).points] == [8, 16, 24]  # the run's older point is gone
    before = file.read_text()
    follow(
        load_eval_recipe(folder / "eval.yaml", ["suites.base.tasks.piqa.max_documents=4"]),
        [folder / "stage2"],
        ["base"],
    )
    [aside] = file.parent.glob("curve-*.json")
    assert aside.read_text() == before and f"stay in {aside}" in capsys.readouterr().out
    assert [point.step for point in curve.read_curve(file).points] == [24]


def test_the_gate_on_the_command_line(runs, capsys):
    folder, _ = runs
    arguments = ["eval-curve", "--recipe", str(folder / "eval.yaml"), str(folder / "stage1")]
    assert main(arguments) == 0
    reference = folder / "reference.json"
    reference.write_text((folder / "eval_curve" / "curve.json").read_text())
    assert main([*arguments, "--reference", str(reference)]) == 0
    reference.write_text(make_curve((80, 5.0), (160, 1.0), stderr=0.1).model_dump_json())
    assert main([*arguments, "--reference", str(reference)]) == 1
    assert "step 8 (80 tokens): base/piqa is 0.80, more than 0.28 below the reference (5.00)" in capsys.readouterr().err
    assert main([*arguments[:3], str(folder / "absent")]) == 2
    assert "no complete checkpoint" in capsys.readouterr().err
    with pytest.raises(EvalError, match="is not a curve"):
        curve.read_curve(folder / "eval.yaml")
