"""The chain under several seeds, with stages that write made-up results."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import chain.seeds
from chain.seeds import run_seeds, write_recipes
from chain.steps import ChainError
from foundation.recipe import load_recipe
from jobs.profile import Profile
from posttrain.recipe import load_recipe as load_posttraining_recipe
from smollm3.command_line import main
from tests.report.run_folder import summary, write_capabilities, write_stage

RECIPES = Path("recipes/tiny")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def without_seeds(dump: dict[str, Any]) -> dict[str, Any]:
    sections = {name: dict(section) if isinstance(section, dict) else section for name, section in dump.items()}
    for name in ("general", "data"):
        sections[name].pop("seed")
    return sections


@pytest.mark.parametrize("name", ["pretrain_stage1", "long_context_64k", "sft", "apo", "apo_seed43"])
def test_recipes_differ_in_their_seeds_only(tmp_path: Path, name: str) -> None:
    write_recipes(RECIPES, 44, tmp_path / "recipes")
    load = load_recipe if name.startswith(("pretrain", "long")) else load_posttraining_recipe
    original, seeded = (load(folder / f"{name}.yaml") for folder in (RECIPES, tmp_path / "recipes"))
    assert (seeded.general.seed, seeded.data.seed) == (original.general.seed + 2, original.data.seed + 2)
    assert without_seeds(seeded.model_dump()) == without_seeds(original.model_dump())


def test_members_of_the_soup_keep_different_seeds(tmp_path: Path) -> None:
    write_recipes(RECIPES, 43, tmp_path)
    seeds = [load_posttraining_recipe(path).data.seed for path in sorted(tmp_path.glob("apo*.yaml"))]
    assert len(seeds) > 1 and len(set(seeds)) == len(seeds)


def test_effects_are_gathered_over_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def fake_chain(profile: Profile, stages: list[str]) -> None:
        seed = int(profile.run.name)
        ran.append((seed, os.environ["RUN"], Path(os.environ["RECIPES"])))
        assert "merge" in stages and "capabilities" in stages and "merge_sweep" not in stages
        recipe = yaml.safe_load((Path(os.environ["RECIPES"]) / "pretrain.yaml").read_text())
        assert recipe["general"]["seed"] == seed
        held_out = {1: {"held": 3.0}, 4: {"held": 2.0 - (seed - 42) / 10}}
        write_stage(profile.run / "stage1", 1, 4, {"web": 1.0}, {"web": 400}, held_out)
        base, final = (summary({"all": (n, n), "chain": (n, n)}, (100, 100), 100) for n in (0, 50))
        write_capabilities(profile.run, {"base": base, "merged": final})

    monkeypatch.setattr(chain.seeds, "run_chain", fake_chain)
    assert main(["demo-seeds", "--profile", "tiny", "--run", str(tmp_path / "tiny")]) == 0
    assert [seed for seed, _, _ in ran] == [42, 43, 44]
    assert all(run == str(tmp_path / "tiny-seeds" / str(seed)) for seed, run, _ in ran)
    document = json.loads((tmp_path / "tiny-seeds" / "seeds.json").read_text())
    effects = {(entry["claim"], entry["effect"]): entry for entry in document["effects"]}
    falls = effects["stages", "stage1"]
    assert falls["values"] == pytest.approx([1.0, 1.1, 1.2]) and falls["mean"] == pytest.approx(1.1)
    # Student's t with two degrees of freedom: 4.3027 x 0.1 / sqrt(3)
    assert (falls["low"], falls["high"]) == pytest.approx((1.1 - 0.24841, 1.1 + 0.24841), abs=1e-4)
    assert effects["taught", "all tasks"]["values"] == pytest.approx([50.0] * 3)
    assert effects["modes", "/think"]["null"] == 95.0
    ran.clear()
    assert main(["report-seeds", "--run", str(tmp_path / "tiny"), "--seeds", "42,44"]) == 0
    document = json.loads((tmp_path / "tiny-seeds" / "seeds.json").read_text())
    assert document["seeds"] == [42, 44] and document["effects"][0]["values"] == pytest.approx([1.0, 1.2]) and not ran


def test_one_seed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="two different seeds"):
        run_seeds(RECIPES, tmp_path / "tiny", [42, 42])
    assert not (tmp_path / "tiny-seeds").exists()
