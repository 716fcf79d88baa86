"""The 3B recipes against what was published."""

import csv
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pytest

from datapipes.registry import find_source, load_registry
from nanotron_ext.recipe import Recipe, load_recipe

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


def test_every_published_weight(recipe: Recipe) -> None:
    """Weights as published, under the one name that each source has here; the recipe has nothing else."""
    here = {published: source.name for source in load_registry().values() for published in source.published_as}
    published: dict[str, dict[str, Fraction]] = defaultdict(dict)
    with (FOLDER / "published_mixtures.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            published[row["stage"]][here.get(row["source"], row["source"])] = Fraction(row["weight"])
    for stage in recipe.data_stages:
        total = sum(published[stage.name].values())
        assert stage.shares() == {source: weight / total for source, weight in published[stage.name].items()}


@pytest.mark.parametrize("name", ANNOUNCED)
def test_shares_of_categories_are_the_announced_ones(recipe: Recipe, name: str) -> None:
    stage = next(stage for stage in recipe.data_stages if stage.name == name)
    shares: dict[str, float] = defaultdict(float)
    for source, share in stage.shares().items():
        shares[find_source(source).category] += 100 * float(share)
    multilingual = shares["web-multilingual"]
    found = (shares["web"] + multilingual, multilingual, shares["code"], shares["math"] + shares["reasoning"])
    # Stage 2 as published has 76.6 % web where the announcement says 75: the one share that is off by over a point.
    assert found == pytest.approx(ANNOUNCED[name], abs=1.6 if name == "stage2" else 1.0)
