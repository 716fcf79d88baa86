"""The comparison with the base, and the commands that train the variants."""

import itertools
import json
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from scipy import stats

from chain import ablations
from chain.ablations import BASE, Effect, Outcome, effect_of
from chain.steps import ChainError
from foundation.recipe import load_recipe
from smollm3.command_line import main


def test_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    base, variant = rng.normal(3, 1, 5), rng.normal(3.2, 1, 5)
    outcomes = [Outcome(BASE, seed, 0.0, value) for seed, value in enumerate(base)]
    outcomes += [Outcome("mha", seed, 0.0, value) for seed, value in enumerate(variant)]
    effect = effect_of("mha", "bits_per_byte", outcomes)
    interval = stats.ttest_rel(variant, base).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.difference == pytest.approx((variant - base).mean())


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.1, 0.2, "no difference"), (0.1, 0.2, "worse"), (-0.2, -0.1, "better")]
)
def test_conclusion_follows_the_interval(low: float, high: float, word: str) -> None:
    assert word in Effect("rope", "bits_per_byte", 2.0, (low + high) / 2, low, high).conclusion


def test_one_seed_gives_no_interval() -> None:
    with pytest.raises(ChainError, match="two seeds"):
        effect_of("mha", "training_loss", [Outcome(BASE, 1, 1.0, 1.0), Outcome("mha", 1, 1.0, 1.0)])


def test_every_variant_is_trained_under_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training itself is replaced by what its recipe would give: held-out bits follow from overlay and seed."""
    runs = []

    def run(command: list[str], env: dict[str, str]) -> CompletedProcess[str]:
        assert command[1:4] == ["-m", "smollm3", "train"]
        overlays = [file for option, file in itertools.pairwise(command) if option == "--with"]
        recipe = load_recipe(command[4], [*overlays, *(word for word in command if "=" in word)])
        assert recipe.general.project == "own"
        runs.append(recipe.general.run)
        worse = 0.5 if recipe.architecture.no_rope_layer_interval == 0 else 0.0
        row = {"step": 1, "loss": 3.0, "validation_bits_per_byte": {"held": 2 + worse + recipe.general.seed / 1000}}
        recipe.run_folder.mkdir(parents=True)
        (recipe.run_folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return CompletedProcess(command, 0)

    monkeypatch.setattr(ablations.subprocess, "run", run)
    arguments = ["ablations", "--run", str(tmp_path), "--seeds", "1,2", "general.project=own"]
    assert main([*arguments, "rop"]) == 2
    assert "There is no ablation 'rop' in recipes/ablations. Did you mean rope?" in capsys.readouterr().err and not runs
    assert main([*arguments, "rope", "data.seed=7"]) == 2
    assert "data.seed=7: every run is given its own general.seed" in capsys.readouterr().err and not runs
    assert main([*arguments, "rope"]) == 0
    assert runs == ["base-1", "rope-1", "base-2", "rope-2"]
    document = json.loads((tmp_path / "ablations" / "ablations.json").read_text())
    assert document["seeds"] == [1, 2] and document["effects"][0]["difference"] == pytest.approx(0.5)
