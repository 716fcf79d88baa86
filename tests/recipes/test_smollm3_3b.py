"""The 3B recipes against what was published."""

import csv
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pytest

from datapipes.registry import find_source, load_registry
from foundation.recipe import DataStage, Recipe, load_recipe
from nanotron_ext.train.schedule import learning_rate

FOLDER = Path("recipes/smollm3-3b")
# Announced shares in percent: web (multilingual among it), code, math.
ANNOUNCED = {"stage1": (85, 12, 12, 3), "stage2": (75, 12, 15, 10), "stage3": (63, 12, 24, 13)}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(FOLDER / "pretrain.yaml")


def test_token_budget_and_segments(recipe: Recipe) -> None:
    assert recipe.tokens_per_step == 2_359_296 and recipe.tokens.train_steps == 4_720_000
    assert recipe.parallelism.world_size == 384
    segments = [load_recipe(FOLDER / f"pretrain_stage{number}.yaml") for number in (1, 2, 3)]
    assert {segment.hash() for segment in segments} == {recipe.hash()}
    starts = [stage.start_training_step for stage in recipe.data_stages]
    assert starts == [1, segments[0].last_step + 1, segments[1].last_step + 1]
    assert segments[2].last_step == recipe.tokens.train_steps


def test_long_context_phases(recipe: Recipe) -> None:
    """Tokens per step as in pretraining; each starts from the weights of the run before it."""
    folder = recipe.run_folder.parent
    start = folder / "stage3"
    phases = {"long_context_32k": (32_768, 20_000, 1.5e6), "long_context_64k": (65_536, 22_000, 5e6)}
    for name, (sequence_length, steps, theta) in phases.items():
        phase = load_recipe(FOLDER / f"{name}.yaml")
        assert (phase.tokens.sequence_length, phase.tokens.train_steps) == (sequence_length, steps)
        assert phase.tokens_per_step == recipe.tokens_per_step and phase.parallelism.world_size == 96
        assert phase.architecture.rope_theta == theta
        assert phase.architecture.num_parameters() == recipe.architecture.num_parameters()
        assert (learning_rate(phase, 1_000), learning_rate(phase, steps)) == (2e-5, 0.0)
        assert Path(phase.checkpoints.load_weights_path or "") == start
        start = phase.run_folder


def test_every_published_weight(recipe: Recipe) -> None:
    """All 256 as published, under the one name that each source has here; the recipes have nothing else."""
    here = {published: source.name for source in load_registry().values() for published in source.published_as}
    published: dict[str, dict[str, Fraction]] = defaultdict(dict)
    with (FOLDER / "published_mixtures.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            published[row["stage"]][here.get(row["source"], row["source"])] = Fraction(row["weight"])
    assert sum(len(weights) for weights in published.values()) == 256
    long_context = [load_recipe(path) for path in sorted(FOLDER.glob("long_context_*.yaml"))]
    stages = [stage for run in (recipe, *long_context) for stage in run.data_stages]
    assert {stage.name for stage in stages} == set(published)
    for stage in stages:
        total = sum(published[stage.name].values())
        assert stage.shares() == {source: weight / total for source, weight in published[stage.name].items()}


@pytest.mark.parametrize("name", ANNOUNCED)
def test_shares_of_categories_are_the_announced_ones(recipe: Recipe, name: str) -> None:
    stage = next(stage for stage in recipe.data_stages if stage.name == name)
    # Stage 2 as published has 76.6 % web where the announcement says 75: the one share that is off by over a point.
    assert shares_by_category(stage) == pytest.approx(ANNOUNCED[name], abs=1.6 if name == "stage2" else 1.0)


def shares_by_category(stage: DataStage) -> tuple[float, float, float, float]:
    """Percent of web (multilingual included), multilingual, code, mathematics and reasoning."""
    shares: dict[str, float] = defaultdict(float)
    for source, share in stage.shares().items():
        shares[find_source(source).category] += 100 * float(share)
    multilingual = shares["web-multilingual"]
    return shares["web"] + multilingual, multilingual, shares["code"], shares["math"] + shares["reasoning"]


@pytest.mark.parametrize(("size", "parameters"), [("135m", 135e6), ("360m", 360e6)])
def test_smaller_sizes(size: str, parameters: float, recipe: Recipe) -> None:
    """About as large as their names, over the announced shares, on the 3B run's parts of the schedule."""
    small = load_recipe(f"recipes/smollm3-{size}/pretrain.yaml")
    assert small.architecture.num_parameters() == pytest.approx(parameters, rel=0.02)
    assert small.parallelism.world_size == 1
    for stage, of_3b in zip(small.data_stages, recipe.data_stages, strict=True):
        start, start_of_3b = stage.start_training_step - 1, of_3b.start_training_step - 1
        assert start / small.tokens.train_steps == pytest.approx(start_of_3b / recipe.tokens.train_steps, abs=0.005)
        assert shares_by_category(stage) == pytest.approx(ANNOUNCED[stage.name], abs=0.5)
