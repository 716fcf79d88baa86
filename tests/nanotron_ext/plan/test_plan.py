"""The planner against the published run, against a run that it was not calibrated on, and against the model itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.live_bytes import peak_of_step
from foundation.errors import UserError
from foundation.recipe import Recipe, load_recipe
from nanotron_ext.engine import ParallelContext, dist, initialize_distributed
from nanotron_ext.plan import Estimate, cpu, estimate, memory
from nanotron_ext.plan.layout import stage_shards
from nanotron_ext.plan.recipes import best_layouts, gpu_target, on_nodes
from nanotron_ext.plan.search import layouts
from nanotron_ext.train.step import TrainState
from smollm3.command_line import main
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, small_recipe

PRETRAIN = "recipes/smollm3-3b/pretrain.yaml"
LLAMA_1B = (
    "model.model_config={vocab_size: 128256, hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 16, "
    "num_attention_heads: 32, num_key_value_heads: 8, max_position_embeddings: 4096, rope_theta: 500000.0, "
    "no_rope_layer_interval: 0, eos_token_id: 1}",
    "parallelism={dp: 8}",
    "tokens.batch_accumulation_per_replica=4",
)


def plan(*overrides: str, trainer: memory.Trainer = "ours", path: str = PRETRAIN) -> Estimate:
    recipe = load_recipe(path, overrides)
    return estimate(recipe, gpu_target(recipe, "h100"), trainer=trainer)


def test_published_run() -> None:
    """13,500-14,000 tokens/s per GPU (the overhead is calibrated on it), 24 days; 74 GB (nothing is)."""
    published = plan("optimizer.zero_stage=0", trainer="nanotron")
    assert published.parameters == 3_075_098_624 and published.devices == 384
    assert 13_500 < published.tokens_per_second_per_device < 14_000
    assert published.days == pytest.approx(24, rel=0.1)
    assert published.memory.total == pytest.approx(74e9, rel=0.1)
    assert published.mfu == pytest.approx(0.29, abs=0.015)
    assert published.tokens == 4_720_000 * 2_359_296
    assert plan("optimizer.zero_stage=0").memory.total < 0.85 * published.memory.total and plan().fits


def test_the_recipe_has_the_faster_way_to_keep_the_optimizers_state() -> None:
    """ZeRO-1 updates a share on each rank, and its new weights are gathered beside the next forward."""
    for path in (PRETRAIN, "recipes/smollm3-135m/pretrain.yaml", "recipes/smollm3-360m/pretrain.yaml"):
        recipe = load_recipe(path)
        target = gpu_target(recipe, "h100")
        if recipe.parallelism.world_size == 1:
            recipe = on_nodes(recipe, 1, target.machine.devices_per_node)
        assert recipe.optimizer.zero_stage == 1
        other = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"zero_stage": 0})})
        shipped, plain = estimate(recipe, target), estimate(other, target)
        assert shipped.step.total < plain.step.total and shipped.memory.total < plain.memory.total


def test_new_weights_hide_behind_the_forward_as_far_as_it_goes() -> None:
    """What is left of the reduction is the scatter alone; a step that computes next to nothing hides hardly any."""
    whole, part = plan("optimizer.zero_stage=0").step.data_parallel, plan().step.data_parallel
    assert part == pytest.approx(whole / 2)
    tiny = ("tokens.micro_batch_size=1", "tokens.sequence_length=64", "data.chunk_tokens=64")
    whole, part = (plan(*tiny, f"optimizer.zero_stage={zero}").step.data_parallel for zero in (0, 1))
    assert whole / 2 < part < 0.75 * whole


def test_a_run_that_nothing_was_calibrated_on() -> None:
    """The team's ablations: Llama 3.2's 1B on 8 H100, 42,000 tokens/s per GPU."""
    assert plan(*LLAMA_1B).tokens_per_second_per_device == pytest.approx(42_000, rel=0.1)


def test_segments_are_parts_of_the_run() -> None:
    segments = [plan(path=f"recipes/smollm3-3b/pretrain_stage{number}.yaml") for number in (1, 2, 3)]
    assert [segment.steps for segment in segments] == [3_450_000, 748_000, 522_000]


def test_a_measured_step_takes_the_place_of_the_calibrated_overhead(tmp_path: Path) -> None:
    single = load_recipe(PRETRAIN, ["parallelism={}", "optimizer.zero_stage=0"])
    step = plan("parallelism={}", "optimizer.zero_stage=0").step
    kernels = step.total - step.overhead
    variants = {"this trainer": {"seconds": [9.0 * kernels, 1.5 * kernels, 1.4 * kernels]}}
    result = {"recipe": single.to_dict(), "document_tokens": 4096, "variants": variants}
    path = tmp_path / "step.json"
    path.write_text(json.dumps({"results": {"3b": result}}))
    recipe = load_recipe(PRETRAIN)
    measured = estimate(recipe, gpu_target(recipe, "h100", path)).step
    assert measured.total / (measured.total - measured.overhead) == pytest.approx(1.5)
    other = load_recipe(PRETRAIN, LLAMA_1B)
    with pytest.raises(UserError, match=r"holds no step of 1,\d+,\d+,\d+ parameters"):
        gpu_target(other, "h100", path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"not a result of bench/step.py"):
        gpu_target(recipe, "h100", path)


@pytest.mark.parametrize(
    "parallelism",
    [
        {},
        {"recompute_layer": True},
        {"recompute_mlp": True},
        {"loss_chunk_tokens": 32},
        {"context_parallel_size": 2},
        {"context_parallel_size": 4, "recompute_mlp": True},
        {"context_parallel_size": 2, "recompute_layer": True},
    ],
    ids=str,
)
def test_peak_of_a_step_is_what_the_tensors_take(parallelism: dict[str, Any]) -> None:
    """Activations and loss, counted tensor by tensor while a step of the real model runs."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 512, "num_hidden_layers": 8}
    recipe = small_recipe(
        model_config={**sizes, "max_position_embeddings": 128},
        tokens={"sequence_length": 128, "micro_batch_size": 4},
        parallelism=parallelism,
    )
    peaks = run_ranks(_live_bytes, recipe.parallelism.world_size, recipe)
    predicted = memory.peak_memory(recipe, 0.0, on_cpu=True)
    assert predicted.activations + predicted.loss == pytest.approx(max(peaks), rel=0.1)


def _live_bytes(recipe: Recipe) -> int:
    launch = initialize_distributed()
    context = ParallelContext(1, 1, 1, recipe.parallelism.context_parallel_size)
    state = TrainState(recipe, context, launch.device)
    state.train_step(random_batch(recipe, 1))
    return peak_of_step(state, random_batch(recipe, 2))


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_each_rank(tied: bool) -> None:
    recipe = small_recipe(parallelism={"pp": 2, "tp": 2}, model_config={"tie_word_embeddings": tied})
    held = run_ranks(_parameters, 4, recipe)
    stages = stage_shards(recipe)
    assert [dict(held)[stage.number] for stage in stages] == [stage.parameters for stage in stages]


def _parameters(recipe: Recipe) -> tuple[int, int]:
    launch = initialize_distributed()
    context = ParallelContext(recipe.parallelism.tp, recipe.parallelism.pp, recipe.parallelism.dp)
    state = TrainState(recipe, context, launch.device)
    return dist.get_rank(context.pp_pg), sum(parameter.numel() for parameter in state.model.parameters())


def test_layouts_keep_the_global_batch() -> None:
    recipe = load_recipe(PRETRAIN)
    found = list(layouts(recipe, 96, 8))
    assert {one.global_batch_size for one in found} == {recipe.global_batch_size}
    assert {one.parallelism.world_size for one in found} == {96}
    assert {one.parallelism.tp for one in found} == {1, 2, 4}  # 4 key-value heads
    assert len({str(one.to_dict()) for one in found}) == len(found)


def test_best_layouts_fit_and_are_sorted() -> None:
    recipe = load_recipe(PRETRAIN, ["optimizer.zero_stage=0"])
    target = gpu_target(recipe, "l40s")
    best = best_layouts(recipe, target, 5, "ours", None)
    assert not estimate(recipe, target).fits and all(one.fits for one in best)
    speeds = [one.tokens_per_second_per_device for one in best]
    assert speeds == sorted(speeds, reverse=True)


def test_more_nodes_are_more_replicas() -> None:
    recipe = on_nodes(load_recipe(PRETRAIN), 24, 8)
    assert recipe.parallelism.dp == 96 and recipe.tokens.batch_accumulation_per_replica == 2
    assert recipe.hash() == load_recipe(PRETRAIN).hash()


def test_several_recipes_are_planned_as_each_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = [f"recipes/smollm3-3b/{name}.yaml" for name in ("pretrain_stage1", "long_context_64k")]
    assert main(["plan", *recipes, "--layouts", "0", "parallelism.recompute_layer=true", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert [shown.count(recipe) for recipe in recipes] == [1, 1]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["long_context_64k", "pretrain_stage1"]
    for recipe in recipes:
        alone = plan("parallelism.recompute_layer=true", path=recipe)
        figures = json.loads((tmp_path / Path(recipe).with_suffix(".json").name).read_text())
        assert (figures["memory"]["total"], figures["step"]["total"]) == (alone.memory.total, alone.step.total)


def test_recipes_of_one_name_are_not_written_over_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", PRETRAIN, "recipes/tiny/pretrain.yaml", "--profile", "tiny", "--out", str(tmp_path)]) == 2
    assert "Two recipes of one name" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_this_machine_is_measured_once_for_all_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def messages(function: Callable[..., None], arguments: tuple[str], nprocs: int) -> None:
        started.append(nprocs)
        (Path(arguments[0]) / "measured").write_text("1e-4 1e-2 4e8")

    monkeypatch.setattr("torch.multiprocessing.spawn", messages)
    cpu._measure_links.cache_clear()
    first, second = (cpu.measure_machine(small_recipe(parallelism=layout))[0] for layout in ({"dp": 2}, {"tp": 2}))
    assert started == [2] and first.kernels is second.kernels
    timed = []
    monkeypatch.setattr(cpu, "_seconds", lambda function: timed.append(function) or 1.0)
    assert first.kernels.norm(3, 5) == second.kernels.norm(3, 5) == 1.0 and len(timed) == 1
    cpu._measure_links.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpu", "h1000"], "Known: h100, h200"),
        (["--nodes", "7"], "do not carry dp 192 x pp 1 x tp 2"),
        (["tokens.sequence_lenght=1"], "Did you mean 'sequence_length'?"),
    ],
)
def test_wrong_arguments(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", PRETRAIN, *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_other_phases_are_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipes/smollm3-3b/sft.yaml"]) == 2
    assert "only pretraining and long-context recipes" in capsys.readouterr().err


def test_json_of_several_recipes_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [PRETRAIN.replace("pretrain.yaml", f"pretrain_stage{stage}.yaml") for stage in (1, 2)]
    assert main(["plan", *stages, "--layouts", "0", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert main(["plan", stages[1], "--layouts", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == second != first


def test_table_and_json_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", PRETRAIN, "--price", "2", "--layouts", "2"]) == 0
    table = capsys.readouterr().out
    assert main(["plan", PRETRAIN, "--price", "2", "--layouts", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert f"{figures['parameters']:,} parameters" in table and f"{figures['days']:.1f} days" in table
    assert f"cost {figures['cost']:,.0f}" in table and figures["cost"] == 2 * figures["device_hours"]
    assert len(figures["layouts"]) == 2
    none, mlp, layer = figures["memory_by_recomputation"].values()
    assert none == figures["memory"]["total"] and none > mlp > layer
    assert figures["memory"]["total"] == pytest.approx(
        sum(value for key, value in figures["memory"].items() if key not in ("total", "stage"))
    )
