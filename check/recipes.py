"""What can be said of a recipe without a GPU, and of the data that it will find."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from check.loaders import loader_for
from datapipes.errors import SourceError
from datapipes.registry import find_source
from eval.recipe import EvalRecipe, load_eval_recipe
from foundation.errors import UserError
from foundation.recipe import Problem, Recipe, load_as, load_recipe
from foundation.recipe.checks import check_recipe
from foundation.recipe.compare import differences
from jobs.checks import processes_per_node
from jobs.plan import POST_TRAINING, PRETRAINING, default_run
from jobs.profile import Profile
from jobs.scheduler import load_cluster_settings, load_scheduler
from nanotron_ext.flops import step_flops
from nanotron_ext.plan.estimate import checkpoints_kept, steps_before
from posttrain.recipe import PostTrainingRecipe, check_inputs

_SHAPES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)  # of the architecture: what a checkpoint's tensors must agree in


def check(path: Path, with_data: bool = False, overrides: Sequence[str] = ()) -> str:
    """One line on what the recipe says.

    Raises:
        UserError: when it cannot be used.
    """
    if path.stem == "cluster":
        load_scheduler(_profile_of(path))
        return "ok"
    load = loader_for(path)
    if load is not load_recipe:
        left_out = _check_other_phase(path, load(path, overrides), with_data)
        check_slurm(path, overrides)
        return f"ok, but not looked for on the hub: {', '.join(left_out)}" if left_out else "ok"

    def problems(recipe: Recipe) -> list[Problem]:
        return check_recipe(recipe) or [
            *_check_surroundings(recipe, path),
            *_check_evaluations(recipe, path),
            *_check_layout(path, overrides),
        ]

    recipe = load_as(Recipe, path, overrides, problems)
    if not with_data:
        return _summary(recipe)
    from nanotron_ext.train.startup import free_disk_bytes, preflight  # imports torch

    preflight(recipe, recipe.parallelism.world_size)
    return f"{_summary(recipe)}, {free_disk_bytes(recipe) / 1e9:,.0f} GB free for them"


def _check_other_phase(path: Path, recipe: Any, with_data: bool) -> list[str]:
    """Raises UserError for a recipe that is right alone, but not beside the profile's others, or has no input; returns
    the inputs that only the hub may have."""
    left_to_the_hub = check_inputs(recipe) if with_data and isinstance(recipe, PostTrainingRecipe) else []
    if isinstance(recipe, EvalRecipe) and recipe.checkpoints is not None:
        for name in PRETRAINING:
            stage = path.with_name(f"{name}.yaml")
            if stage.is_file() and (problem := _left_out(recipe.checkpoints.every_steps, _loaded(stage), path)):
                raise UserError(f"{path}: with {stage}, {problem}")
    return left_to_the_hub


def check_slurm(path: Path, overrides: Sequence[str] = ()) -> None:
    """Raises UserError when the job that runs this recipe asks for other nodes and GPUs than its layout needs."""
    name = path.stem
    if name not in (*PRETRAINING, *POST_TRAINING):  # which torchrun starts on all nodes
        return
    profile = _profile_of(path)
    resources = load_scheduler(profile).resources(name)
    processes_per_node(profile.plan(name, overrides), resources, load_cluster_settings(profile).device)


def _profile_of(path: Path) -> Profile:
    run = os.environ.get("RUN")
    return Profile(path.parent, Path(run) if run else default_run(path.parent))


def _check_layout(path: Path, overrides: Sequence[str]) -> Iterator[Problem]:
    try:
        check_slurm(path, overrides)
    except UserError as error:
        yield Problem(("parallelism",), str(error))


def _check_surroundings(recipe: Recipe, path: Path) -> Iterator[Problem]:
    """What lies outside of a recipe, but needs no data: the registry of sources, and the recipe that it starts from."""
    mixtures = [
        (("data_stages", number, "mixture", name), name)
        for number, stage in enumerate(recipe.data_stages)
        for name in stage.mixture
    ]
    validation = [(("data", "validation", number), name) for number, name in enumerate(recipe.data.validation)]
    for key, name in [*mixtures, *validation]:
        if (Path(recipe.data.path) / name / "manifest.json").is_file():  # prepared, by whatever means
            continue
        try:
            find_source(name)
        except SourceError as error:
            yield Problem(key, str(error))
    checkpoints = recipe.checkpoints
    if checkpoints.resume_checkpoint_path is not None:
        key = ("checkpoints", "resume_checkpoint_path")
        for other in _recipes_of_run(path.parent, checkpoints.resume_checkpoint_path):
            if other.hash() != recipe.hash():
                found = ", ".join(
                    f"{one.key} ({one.left} there, {one.right} here)"
                    for one in differences(other.identity(), recipe.identity())[:5]
                )
                message = f"The run that this one continues trains other weights; it differs in {found}."
                yield Problem(key, f"{message} Give both the same, or start from its weights with load_weights_path.")
            elif other.last_step >= recipe.last_step:
                message = (
                    f"The run that this one continues ends at step {other.last_step}, this one at {recipe.last_step}."
                )
                yield Problem(key, f"{message} Correct tokens.stop_step of one of them.")
    if checkpoints.load_weights_path is not None:
        for other in _recipes_of_run(path.parent, checkpoints.load_weights_path):
            for name in _SHAPES:
                theirs, ours = (getattr(model, name) for model in (other.architecture, recipe.architecture))
                if theirs != ours:
                    message = f"The weights that this run starts from have {name} {theirs}, its own model {ours}."
                    yield Problem(("model", "model_config", name), f"{message} Give both the same.")


def _check_evaluations(recipe: Recipe, path: Path) -> Iterator[Problem]:
    """Whether there will be the checkpoints that the profile's eval.yaml wants to evaluate while training goes on."""
    evaluation = path.with_name("eval.yaml")
    if path.stem not in ("pretrain", *PRETRAINING) or not evaluation.is_file():
        return
    try:
        section = load_eval_recipe(evaluation).checkpoints
    except UserError:  # reported where it is checked itself
        return
    if section is not None and (problem := _left_out(section.every_steps, recipe, evaluation)):
        yield Problem(("checkpoints", "checkpoint_interval"), problem)


def _left_out(every_steps: int, recipe: Recipe, evaluation: Path) -> str:
    """Why most of the evaluations of a run's checkpoints would be left out; empty if they would not."""
    interval = recipe.checkpoints.checkpoint_interval
    if every_steps > recipe.last_step or every_steps % interval == 0:
        return ""
    return (
        f"{evaluation} evaluates the checkpoints of every {every_steps} steps (checkpoints.every_steps), but a "
        f"checkpoint every {interval} steps leaves most of those out. Make every_steps a multiple of "
        f"checkpoint_interval."
    )


_loaded = functools.cache(load_recipe)


def _recipes_of_run(folder: Path, run_folder: str) -> Iterator[Recipe]:
    """The pretraining recipes of a profile that write this run folder."""
    for path in sorted(folder.glob("*.yaml")):
        if path.stem.startswith(("pretrain", "long_context")):
            try:
                recipe = _loaded(path)
            except UserError:  # reported where it is checked itself
                continue
            if recipe.run_folder == Path(run_folder):
                yield recipe


def _summary(recipe: Recipe) -> str:
    first, last = steps_before(recipe) + 1, recipe.last_step
    ends = [stage.start_training_step - 1 for stage in recipe.data_stages[1:]] + [last]
    parts = [
        f"{stage.name} {(min(end, last) - max(stage.start_training_step, first) + 1) * recipe.tokens_per_step:.4g}"
        for stage, end in zip(recipe.data_stages, ends, strict=True)
        if min(end, last) >= max(stage.start_training_step, first)
    ]
    steps = last - first + 1
    tokens = steps * recipe.tokens_per_step
    flops = step_flops(recipe.architecture, tokens, tokens * recipe.tokens.sequence_length)
    checkpoint_gb = recipe.checkpoint_bytes / 1e9
    layers = recipe.architecture.num_hidden_layers
    rotary = sum(map(recipe.architecture.layer_has_rope, range(layers)))  # an interval above `layers` leaves out none
    return (
        f"ok: {recipe.architecture.num_parameters():,} parameters, rotary in {rotary} of {layers} layers, "
        f"{recipe.parallelism.world_size} processes, "
        f"{recipe.tokens_per_step:,} tokens x {steps:,} steps = {tokens:.4g} ({', '.join(parts)}), {flops:.3g} FLOPs, "
        f"stops at step {last:,}, checkpoints kept: {checkpoints_kept(recipe, steps):,} of {checkpoint_gb:.4g} GB"
    )
