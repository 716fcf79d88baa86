"""Shipped recipes pass the preflight; with any one of these mistakes they do not, and the message names the key."""

import shutil
from pathlib import Path

import pytest

from check.recipes import check
from foundation.errors import UserError
from tests.nanotron_ext import tiny_run

RECIPES = Path("recipes")
SHIPPED = sorted(
    path for path in RECIPES.glob("*/*.yaml") if path.stem != "cluster" and path.parent.name != "ablations"
)
DECAY = "optimizer.learning_rate_scheduler"
MODEL = "model.model_config"

# recipe, mistake as overrides, the key that the message must name
MUTATIONS: list[tuple[str, str, str]] = [
    # keys and types
    ("smollm3-3b/pretrain", "tokens.sequence_lenght=4096", "tokens.sequence_lenght"),
    ("smollm3-3b/pretrain", "optimiser.zero_stage=1", "optimiser"),
    ("smollm3-3b/pretrain", "data_stages.0.mixtures={dclm: 1.0}", "data_stages.0.mixtures"),
    ("smollm3-3b/pretrain", f"{DECAY}.learning_rate='2e-4'", f"{DECAY}.learning_rate"),
    ("smollm3-3b/pretrain", "tokens.train_steps=4720000.5", "tokens.train_steps"),
    ("smollm3-3b/pretrain", "parallelism.tp_mode=REDUCE", "parallelism.tp_mode"),
    ("smollm3-3b/pretrain", f"{DECAY}.lr_decay_style=wsd", f"{DECAY}.lr_decay_style"),
    ("smollm3-3b/pretrain", "optimizer.zero_stage=2", "optimizer.zero_stage"),
    ("smollm3-3b/pretrain", "optimizer.adam_beta2=1.0", "optimizer.adam_beta2"),
    ("smollm3-3b/pretrain", "optimizer.clip_grad=0", "optimizer.clip_grad"),
    ("smollm3-3b/pretrain", "checkpoints.checkpoint_interval=0", "checkpoints.checkpoint_interval"),
    ("smollm3-3b/pretrain", "checkpoints.resume=maybe", "checkpoints.resume"),
    ("smollm3-3b/pretrain", f"{MODEL}.rope_theta=0", f"{MODEL}.rope_theta"),
    ("smollm3-3b/pretrain", f"{MODEL}.no_rope_layer_interval=-4", f"{MODEL}.no_rope_layer_interval"),
    # layout
    ("smollm3-3b/pretrain", "parallelism.tp=3", "parallelism.tp"),
    ("smollm3-3b/pretrain", "parallelism.tp=8", "parallelism.tp"),
    ("smollm3-3b/pretrain", "parallelism.pp=37", "parallelism.pp"),
    ("smollm3-3b/pretrain", "parallelism.pp=2; parallelism.layers_per_stage=[20,15]", "parallelism.layers_per_stage"),
    ("smollm3-3b/pretrain", "parallelism.pp=4", "tokens.batch_accumulation_per_replica"),
    ("smollm3-3b/pretrain", "tokens.sequence_length=4095", "tokens.sequence_length"),
    ("smollm3-3b/pretrain_stage1", "parallelism.dp=191", "parallelism"),
    ("smollm3-3b/long_context_32k", "parallelism.dp=6", "parallelism"),
    ("smollm3-3b/long_context_32k", "parallelism.context_parallel_size=3", "parallelism.context_parallel_size"),
    ("smollm3-3b/long_context_64k", "parallelism.recompute_mlp=true", "parallelism.recompute_mlp"),
    ("smollm3-135m/pretrain_stage1", "parallelism.dp=8; tokens.batch_accumulation_per_replica=1", "parallelism"),
    # architecture
    ("smollm3-3b/pretrain", f"{MODEL}.hidden_size=2050", f"{MODEL}.hidden_size"),
    ("smollm3-3b/pretrain", f"{MODEL}.num_key_value_heads=3", f"{MODEL}.num_key_value_heads"),
    ("smollm3-3b/pretrain", f"{MODEL}.eos_token_id=128256", f"{MODEL}.eos_token_id"),
    ("smollm3-3b/pretrain", f"{MODEL}.vocab_size=128005", "parallelism.tp"),
    ("smollm3-3b/pretrain", "tokens.sequence_length=8192", "tokens.sequence_length"),
    ("tiny/pretrain", "tokenizer.train.vocab_size=8192", "tokenizer.train.vocab_size"),
    # schedule: off by one, and ends that do not meet
    ("smollm3-3b/pretrain", "tokens.train_steps=4720001", f"{DECAY}.lr_decay_steps"),
    ("smollm3-3b/pretrain", "tokens.train_steps=4719999", f"{DECAY}.lr_decay_steps"),
    ("smollm3-3b/pretrain", f"{DECAY}.lr_decay_steps=521999", f"{DECAY}.lr_decay_steps"),
    ("smollm3-3b/pretrain", f"{DECAY}.lr_decay_starting_step=4198000", f"{DECAY}.lr_decay_steps"),
    ("smollm3-3b/pretrain", f"{DECAY}.lr_warmup_steps=5000000", f"{DECAY}.lr_warmup_steps"),
    ("smollm3-3b/pretrain", f"{DECAY}.min_decay_lr=1e-3", f"{DECAY}.min_decay_lr"),
    ("smollm3-3b/pretrain_stage3", "tokens.stop_step=4720001", "tokens.stop_step"),
    # stages and mixtures
    (
        "smollm3-3b/pretrain",
        "data_stages.0.start_training_step=3450001; data_stages.1.start_training_step=1",
        "data_stages.0.start_training_step",
    ),
    ("smollm3-3b/pretrain", "data_stages.0.start_training_step=2", "data_stages.0.start_training_step"),
    ("smollm3-3b/pretrain", "data_stages.1.start_training_step=4198001", "data_stages.2.start_training_step"),
    ("smollm3-3b/pretrain", "data_stages.2.start_training_step=4720001", "data_stages.2.start_training_step"),
    ("smollm3-3b/pretrain", "data_stages.1.normalize=false", "data_stages.1.mixture"),
    ("smollm3-3b/pretrain", "data_stages.2.normalize=false", "data_stages.2.mixture"),
    ("smollm3-3b/pretrain", "data_stages.0.mixture.fineweb-edu=0.334", "data_stages.0.mixture"),
    ("smollm3-3b/pretrain", "data_stages.0.mixture.dclm=-0.37", "data_stages.0.mixture.dclm"),
    ("smollm3-3b/pretrain", "data_stages.0.mixture.dclm=.nan", "data_stages.0.mixture.dclm"),
    ("smollm3-3b/pretrain", "data_stages.0.mixture={fineweb-edv: 1.0}", "data_stages.0.mixture.fineweb-edv"),
    ("smollm3-3b/pretrain", "data_stages.0.mixture={infiwebmath: 1.0}", "data_stages.0.mixture.infiwebmath"),
    ("tiny/pretrain", "data.validation=[tiny-web-eng-heldout]", "data.validation.0"),
    ("smollm3-3b/pretrain", "tokens.val_check_interval=100", "data.validation"),
    ("smollm3-3b/long_context_64k", "data.chunk_tokens=4096", "data.chunk_tokens"),
    # what a run starts from
    (
        "smollm3-3b/pretrain_stage3",
        "checkpoints.load_weights_path=runs/smollm3-3b/stage2",
        "checkpoints.load_weights_path",
    ),
    ("smollm3-3b/pretrain_stage2", "data.seed=7", "checkpoints.resume_checkpoint_path"),
    ("smollm3-3b/pretrain_stage2", "tokens.stop_step=3450000", "checkpoints.resume_checkpoint_path"),
    ("smollm3-3b/long_context_32k", f"{MODEL}.num_hidden_layers=32", f"{MODEL}.num_hidden_layers"),
    # eval.yaml evaluates the checkpoints of every 100 and 20,000 steps
    ("tiny/pretrain_stage1", "checkpoints.checkpoint_interval=30", "checkpoints.checkpoint_interval"),
    ("smollm3-3b/pretrain_stage2", "checkpoints.checkpoint_interval=3000", "checkpoints.checkpoint_interval"),
    # other phases
    ("smollm3-3b/sft", "data.packing_strategy=wrapped", "data.packing_strategy"),
    ("smollm3-3b/sft", "data.max_lenght=65536", "data.max_lenght"),
    ("smollm3-3b/midtrain", "optimizer.micro_batch_size=3", "optimizer.global_batch_size"),
    ("smollm3-3b/apo", "apo=null", "apo"),
    ("smollm3-3b/merge", "linear.soup_weight=1.1", "linear.soup_weight"),
    ("smollm3-3b/eval", "suites.base.tasks.helaswag={}", "suites.base.tasks.helaswag"),
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_recipes_pass(path: Path) -> None:
    check(path)


@pytest.mark.parametrize(("recipe", "mistakes", "key"), MUTATIONS, ids=[mistake for _, mistake, _ in MUTATIONS])
def test_mistakes_are_refused(recipe: str, mistakes: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        check(RECIPES / f"{recipe}.yaml", overrides=mistakes.split("; "))
    message = str(caught.value)
    assert any(line.strip().split("  ")[0] == key for line in message.splitlines())
    assert len(message.splitlines()) < 40


@pytest.mark.parametrize(("interval", "rotary"), [(2, 2), (4, 3), (0, 4), (8, 4)])
def test_the_summary_says_in_how_many_layers_positions_are(interval: int, rotary: int) -> None:
    """An interval above the number of layers leaves out none, and nothing else would say so."""
    summary = check(RECIPES / "tiny/pretrain.yaml", overrides=[f"{MODEL}.no_rope_layer_interval={interval}"])
    assert f"rotary in {rotary} of 4 layers" in summary


def test_there_are_fifty() -> None:
    assert len({(recipe, mistakes) for recipe, mistakes, _ in MUTATIONS}) >= 50


def test_prepared_data_passes(tmp_path: Path) -> None:
    tiny_run.prepare(tmp_path)
    summary = check(RECIPES / "tiny/pretrain.yaml", with_data=True, overrides=tiny_run.overrides(tmp_path))
    assert summary.startswith("ok: ") and summary.endswith(" GB free for them")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("tokenizer", "The tokens were made by tokenizer"),
        ("source", "There is no source 'b'"),
        ("window", "No file holds the 4097 tokens"),
    ],
)
def test_mistakes_that_only_the_data_shows(tmp_path: Path, change: str, expected: str) -> None:
    tiny_run.prepare(tmp_path)
    overrides = tiny_run.overrides(tmp_path)
    if change == "tokenizer":
        file = tmp_path / "tokenizer" / "tokenizer.json"
        file.write_text(file.read_text() + "\n")
    elif change == "source":
        shutil.rmtree(tmp_path / "data" / "b")
    else:
        overrides += ["tokens.sequence_length=4096", f"{MODEL}.max_position_embeddings=4096", "data.chunk_tokens=null"]
    with pytest.raises(UserError, match=expected):
        check(RECIPES / "tiny/pretrain.yaml", with_data=True, overrides=overrides)
