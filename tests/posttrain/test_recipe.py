"""Post-training recipes: the shipped ones load and say what the facts say; wrong ones are refused with the fix."""

from pathlib import Path

import pytest

from foundation.recipe import RecipeError
from posttrain import launch
from posttrain import train as train_command
from posttrain.launch import process_count
from posttrain.recipe import PostTrainingRecipe, load_recipe
from smollm3.command_line import main

RECIPES = [Path("recipes") / profile / f"{phase}.yaml" for profile in ("tiny", "smollm3-3b")
           for phase in ("midtrain", "sft", "apo", "apo_seed43")]  # fmt: skip
SFT, APO = Path("recipes/tiny/sft.yaml"), Path("recipes/tiny/apo.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_shipped_recipes_load(path: Path) -> None:
    assert path.stem.startswith(load_recipe(path).phase)


def test_phases_follow_each_other() -> None:
    for profile in ("tiny", "smollm3-3b"):
        mid, sft, apo = (
            load_recipe(Path("recipes") / profile / f"{phase}.yaml") for phase in ("midtrain", "sft", "apo")
        )
        assert Path(sft.model.model_name_or_path) == mid.model_folder
        assert Path(apo.model.model_name_or_path) == sft.model_folder


def test_published_settings() -> None:
    """Figures of the announcement and the published recipes."""
    mid, sft, apo = (load_recipe(f"recipes/smollm3-3b/{phase}.yaml") for phase in ("midtrain", "sft", "apo"))
    assert (mid.data.max_length, sft.data.max_length, apo.data.max_length) == (32_768, 65_536, 24_576)
    assert [r.optimizer.global_batch_size for r in (mid, sft, apo)] == [128, 128, 32]
    assert [r.optimizer.learning_rate for r in (mid, sft, apo)] == [2e-5, 2e-5, 1e-6]
    assert [r.optimizer.num_train_epochs for r in (mid, sft, apo)] == [4, 4, 1]
    assert [r.optimizer.warmup_ratio for r in (mid, sft, apo)] == [0.03, 0.03, 0.1]
    assert {r.optimizer.max_grad_norm for r in (mid, sft, apo)} == {0.2}
    assert {r.optimizer.min_lr_rate for r in (mid, sft, apo)} == {0.1}
    assert [r.data.packing_strategy for r in (mid, sft, apo)] == ["wrapped", "bfd", None]
    assert (mid.data.chat_template, sft.data.chat_template, apo.data.chat_template) == (
        "chatml",
        "dual_mode",
        "dual_mode",
    )
    assert sft.data.assistant_only_loss and not mid.data.assistant_only_loss
    assert apo.apo is not None and apo.apo.beta == 0.05
    assert [len(r.data.datasets) for r in (mid, sft, apo)] == [2, 25, 2]
    weights = {spec.split: spec.weight for r in (mid, sft, apo) for spec in r.data.datasets}
    assert sorted(w for w in weights.values() if w != 1) == [0.02, 0.25, 0.3, 0.4, 0.5, 0.5, 0.5]


BAD = {
    "unknown key": (SFT, "data.max_lenght=9", "data.max_lenght", "Did you mean 'max_length'?"),
    "unknown key in a set": (SFT, "data.datasets.0.wieght=1", "data.datasets.0.wieght", "Did you mean 'weight'?"),
    "unknown section": (SFT, "optimiser.learning_rate=1", "optimiser", "Did you mean 'optimizer'?"),
    "wrong type": (SFT, "data.max_length=long", "data.max_length", "valid integer"),
    "weight above one": (SFT, "data.datasets.0.weight=2", "data.datasets.0.weight", "Fraction of the set"),
    "a mode that is text": (SFT, 'data.datasets.0.chat_template_kwargs={enable_thinking: "false"}',
                            "data.datasets.0.chat_template_kwargs.enable_thinking", "'false' is no boolean"),
    "a mode that is null": (SFT, "data.datasets.0.chat_template_kwargs={enable_thinking: null}",
                            "data.datasets.0.chat_template_kwargs.enable_thinking", "None is no boolean"),
    "no sets": (SFT, "data.datasets=[]", "data.datasets", "at least 1 item"),
    "removed TRL name": (SFT, "data.packing_strategy=ffd", "data.packing_strategy", "bfd"),
    "wrapped sft": (SFT, "data.packing_strategy=wrapped", "data.packing_strategy", "Use bfd"),
    "packed pairs": (APO, "data.packing_strategy=bfd", "data.packing_strategy", "not packed"),
    "apo without beta section": (APO, "apo=null", "apo", "Phase apo needs this section"),
    "beta in sft": (SFT, "apo.beta=0.1", "apo", "Only phase apo"),
    "beta of zero": (APO, "apo.beta=0.0", "apo.beta", "greater than 0"),
    "batch no multiple": (SFT, "optimizer.micro_batch_size=3", "optimizer.global_batch_size", "no multiple"),
    "no equals sign": (SFT, "data.max_length", "data.max_length", "section.key=value"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "override", "key", "hint"), BAD.values(), ids=BAD.keys())
def test_refused(path: Path, override: str, key: str, hint: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, [override])
    assert key in str(refused.value) and hint in str(refused.value)


def test_a_missing_file_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean recipes/tiny/sft\.yaml"):
        load_recipe("recipes/tiny/stf.yaml")


def test_processes_divide_every_step() -> None:
    """8 sequences in passes of 2 can be shared by 4 processes, beside 6 in passes of 1 by 2."""
    recipes = [
        load_recipe(SFT, [f"optimizer.global_batch_size={batch}", f"optimizer.micro_batch_size={micro}"])
        for batch, micro in ((8, 2), (6, 1))
    ]
    assert [process_count(recipes[:1], available) for available in (1, 2, 3, 16)] == [1, 2, 2, 4]
    assert [process_count(recipes, available) for available in (1, 3, 16)] == [1, 2, 2]


def test_a_wrong_recipe_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posttrain", str(SFT), "optimizer.learning_rat=1"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_absent_inputs_are_named_before_any_process_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launch.os, "execve", lambda _, arguments, environment: started.append(arguments))
    monkeypatch.setenv("RUN", str(tmp_path))
    sft, midtrain = str(SFT), "recipes/tiny/midtrain.yaml"
    assert main(["posttrain", sft]) == 2
    assert f"There is no model at {tmp_path}/hf/midtrain" in capsys.readouterr().err
    folder = tmp_path / "hf" / "long_context_64k"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert main(["posttrain", midtrain]) == 2
    assert "midtrain_reasoning/train.jsonl or " in capsys.readouterr().err
    for name in ("midtrain_reasoning", "sft_think", "sft_no_think"):
        (tmp_path / "posttrain_data" / name).mkdir(parents=True)
        (tmp_path / "posttrain_data" / name / "train.jsonl").touch()
    assert main(["posttrain", midtrain]) == 2
    assert "midtrain_reasoning/train.jsonl is empty" in capsys.readouterr().err
    for name in ("midtrain_reasoning", "sft_think", "sft_no_think"):
        (tmp_path / "posttrain_data" / name / "train.jsonl").write_text("{}\n")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("optimizer: {num_train_epochs: 7}\n")
    # The second starts from the model of the first, and is named as people name it.
    assert main(["posttrain", midtrain, "sft", "--with", str(overlay), "data.seed=3"]) == 0
    assert started[0][1:3] == ["-m", "foundation.torchrun"]  # which other machines cannot reach
    trained: list[PostTrainingRecipe] = []
    monkeypatch.setattr(train_command, "_train", lambda recipes, stop: trained.extend(recipes) or 0)
    assert train_command.main(started[0][started[0].index("posttrain.train") + 1 :]) == 0
    assert [recipe.phase for recipe in trained] == ["midtrain", "sft"]
    assert {(recipe.optimizer.num_train_epochs, recipe.data.seed) for recipe in trained} == {(7, 3)}
