"""Recipes: what resolves, and what is refused with the key, the place and the fix."""

from pathlib import Path

import pytest

from foundation.recipe import RecipeError, load_recipe

TINY = Path("recipes/tiny")
STAGES = [TINY / f"pretrain_stage{number}.yaml" for number in (1, 2, 3)]


@pytest.mark.parametrize("path", sorted(TINY.glob("pretrain*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    load_recipe(path)


def test_the_three_segments_are_one_run() -> None:
    whole = load_recipe(TINY / "pretrain.yaml")
    segments = [load_recipe(path) for path in STAGES]
    assert {segment.hash() for segment in segments} == {whole.hash()}
    ends = [segment.last_step for segment in segments]
    assert ends[-1] == whole.tokens.train_steps
    assert [end + 1 for end in ends[:-1]] == [stage.start_training_step for stage in whole.data_stages[1:]]


def test_run_variable_moves_all_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "/elsewhere")
    recipe = load_recipe(STAGES[1])
    assert recipe.run_folder == Path("/elsewhere/stage2")
    assert recipe.checkpoints.resume_checkpoint_path == "/elsewhere/stage1"
    assert recipe.hash() == load_recipe(TINY / "pretrain.yaml").hash()


def test_override_reads_yaml_numbers() -> None:
    recipe = load_recipe(STAGES[0], ["optimizer.adam_eps=1e-6", "data_stages.0.mixture.tiny-math=0.03"])
    assert recipe.optimizer.adam_eps == 1e-6


def test_smollm3_3b_has_its_exact_number_of_parameters() -> None:
    overrides = [
        "model.model_config.vocab_size=128256",
        "model.model_config.hidden_size=2048",
        "model.model_config.intermediate_size=11008",
        "model.model_config.num_hidden_layers=36",
        "model.model_config.num_attention_heads=16",
        "model.model_config.num_key_value_heads=4",
    ]
    assert load_recipe(TINY / "pretrain.yaml", overrides).architecture.num_parameters() == 3_075_098_624


BAD = {
    "unknown key": ("tokens.sequence_lenght=256", "tokens.sequence_lenght", "Did you mean 'sequence_length'?"),
    "unknown section": ("optimiser.zero_stage=1", "optimiser", "Did you mean 'optimizer'?"),
    "wrong type": ("tokens.sequence_length=abc", "tokens.sequence_length", "valid integer"),
    "number as text": ("tokens.sequence_length='256'", "tokens.sequence_length", "valid integer"),
    "tp does not divide heads": ("parallelism.tp=3", "parallelism.tp", "does not divide num_attention_heads 8"),
    "fewer layers than stages": ("parallelism.pp=5", "parallelism.pp", "4 layers cannot fill 5 pipeline stages"),
    "sequence beyond positions": ("tokens.sequence_length=512", "tokens.sequence_length", "max_position_embeddings"),
    "weights off one": ("data_stages.1.mixture.tiny-math=0.1565", "data_stages.1.mixture", "sum to 1.0565, not 1"),
    "negative weight": ("data_stages.0.mixture.tiny-math=-0.03", "data_stages.0.mixture.tiny-math", "positive"),
    "zero weight": ("data_stages.0.mixture.tiny-math=0", "data_stages.0.mixture.tiny-math", "leave a source out"),
    "infinite weight": ("data_stages.0.mixture.tiny-math=.inf", "data_stages.0.mixture.tiny-math", "positive"),
    "NaN weight": ("data_stages.0.mixture.tiny-math=.nan", "data_stages.0.mixture.tiny-math", ""),
    "swapped stages": ("data_stages.2.start_training_step=200", "data_stages.2.start_training_step", "order"),
    "decay ends early": ("tokens.train_steps=401", "optimizer.learning_rate_scheduler.lr_decay_steps", "to 101"),
    "stop behind the end": ("tokens.stop_step=401", "tokens.stop_step", "behind train_steps 400"),
    "bad regular expression": (
        "optimizer.weight_decay_exclude_named_params=['(']",
        "optimizer.weight_decay_exclude_named_params",
        "not a regular expression",
    ),
    "not an assignment": ("tokens", "tokens", "section.key=value"),
}


@pytest.mark.parametrize(("override", "key", "expected"), BAD.values(), ids=BAD.keys())
def test_bad_values_name_key_and_fix(override: str, key: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(TINY / "pretrain.yaml", [override])
    message = str(caught.value)
    assert key in message
    assert expected in message
    assert len(message.splitlines()) < 40


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_error_names_file_and_line(tmp_path: Path) -> None:
    base = (TINY / "pretrain.yaml").resolve()
    bad = write(tmp_path / "mine.yaml", f"extends: {base}\ntokens:\n  train_step: 5\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:3"):
        load_recipe(bad)


def test_duplicate_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="given twice"):
        load_recipe(write(tmp_path / "twice.yaml", "tokens: {}\ntokens: {}\n"))


def test_unset_variable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="NOT_SET_ANYWHERE is not set"):
        load_recipe(write(tmp_path / "variable.yaml", "data: {path: '${NOT_SET_ANYWHERE}'}\n"))


def test_missing_file_suggests_a_near_one() -> None:
    with pytest.raises(RecipeError, match=r"Did you mean recipes/tiny/pretrain_stage2\.yaml"):
        load_recipe("recipes/tiny/pretrain_stag2.yaml")


def test_self_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(write(tmp_path / "loop.yaml", "extends: loop.yaml\n"))


def test_extension_in_a_circle_through_folders_is_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pretrain.yaml").write_text(f"extends: ../{other}/pretrain.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(tmp_path / "a" / "pretrain.yaml")


def test_recipes_of_ones_own_extend_shipped_ones_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`recipes/...` means what it means on a command line, also where the user has recipes/ too."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "recipes" / "mine" / "pretrain_stage1.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("extends: recipes/tiny/pretrain_stage1.yaml\ngeneral: {seed: 7}\n")
    recipe = load_recipe("recipes/mine/pretrain_stage1.yaml")
    shipped = load_recipe("recipes/tiny/pretrain_stage1.yaml")
    assert recipe.general.seed == 7 and recipe.tokens == shipped.tokens


def test_an_empty_variable_is_not_the_root_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN", "")
    assert load_recipe("recipes/tiny/pretrain_stage1.yaml").run_folder == Path("runs/tiny/stage1")


def test_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(write(tmp_path / "broken.yaml", "a: [1, 2\n"))


@pytest.mark.parametrize("profile", ["tiny", "smollm3-3b"])
@pytest.mark.parametrize("overlay", sorted(path.name for path in Path("recipes/ablations").glob("*.yaml")))
def test_ablation_overlays_change_one_key(profile: str, overlay: str) -> None:
    def leaves(tree: object, key: str = "") -> dict[str, object]:
        if not isinstance(tree, dict):
            return {key: tree}
        return {k: v for name, value in tree.items() for k, v in leaves(value, f"{key}.{name}").items()}

    recipe = f"recipes/{profile}/pretrain_ablation.yaml"
    base, changed = (
        leaves(load_recipe(recipe).to_dict()),
        leaves(load_recipe(recipe, [f"recipes/ablations/{overlay}"]).to_dict()),
    )
    assert len([key for key in base if base[key] != changed[key]]) == 1


def test_null_kv_heads_are_multi_head_attention() -> None:
    recipe = load_recipe("recipes/tiny/pretrain.yaml", ["model.model_config.num_key_value_heads=null"])
    assert recipe.model.model_config_.num_key_value_heads == 8
