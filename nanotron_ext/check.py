"""Preflight without a GPU: `python -m nanotron_ext.check RECIPE... [--data]`.

Validates recipes of every phase: keys and what must hold between them, sources against the registry, the recipe that a
run starts from, the Slurm script's nodes and GPUs against the layout. With --data also what a pretraining run finds on
disk: shards, tokenizer, checkpoint to start from, run folder and space.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanotron_ext.errors import UserError
from nanotron_ext.flops import step_flops
from nanotron_ext.plan.estimate import STATE_BYTES_PER_PARAMETER, checkpoints_kept, steps_before
from nanotron_ext.recipe import Problem, Recipe, load_as, load_recipe
from nanotron_ext.recipe.checks import check_recipe
from nanotron_ext.recipe.compare import differences

_TRAINING = ("pretrain", "long_context", "midtrain", "sft", "apo")  # phases that torchrun starts on all nodes
_SHAPES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)  # of the architecture: what a checkpoint's tensors must agree in


def loader_for(path: Path) -> Callable[..., Any]:
    """The function that reads a recipe of this file's phase, told by the file's name.

    Raises:
        UserError: for a name that belongs to no phase.
    """
    name = path.stem
    # Each room reads its own recipes; imported here, because this command alone knows all rooms.
    if name.startswith(("pretrain", "long_context")) or name == "recipe":  # the resolved one of a run folder
        return load_recipe
    if name.startswith(("midtrain", "sft", "apo")):
        from posttrain.recipe import load_recipe as load_posttraining_recipe

        return load_posttraining_recipe
    if name.startswith("merge"):
        from merge.recipe import load_merge_recipe

        return load_merge_recipe
    if name.startswith("eval"):
        from eval.recipe import load_eval_recipe

        return load_eval_recipe
    if name.startswith("synthetic"):
        from datapipes.synthetic.recipe import load_recipe as load_synthetic_recipe

        return load_synthetic_recipe
    phases = "pretrain, long_context, midtrain, sft, apo, synthetic, merge, eval"
    raise UserError(f"{path}: the name of a recipe starts with its phase, one of {phases}. Rename the file.")


def check(path: Path, with_data: bool = False, overrides: Sequence[str] = ()) -> str:
    """One line on what the recipe says.

    Raises:
        UserError: when it cannot be used.
    """
    load = loader_for(path)
    if load is not load_recipe:
        load(path, overrides)
        check_slurm(path, overrides)
        return "ok"

    def problems(recipe: Recipe) -> list[Problem]:
        return check_recipe(recipe) or [*_check_surroundings(recipe, path), *_check_layout(path, overrides)]

    recipe = load_as(Recipe, path, overrides, problems)
    if not with_data:
        return _summary(recipe)
    from nanotron_ext.train.startup import free_disk_bytes, preflight  # imports torch

    preflight(recipe, recipe.parallelism.world_size)
    return f"{_summary(recipe)}, {free_disk_bytes(recipe) / 1e9:,.0f} GB free for them"


def check_slurm(path: Path, overrides: Sequence[str] = ()) -> None:
    """Raises UserError when the job that runs this recipe asks for other nodes and GPUs than its layout needs."""
    from slurm.checks import processes_per_node
    from slurm.cluster import load_cluster_settings, requested_resources
    from slurm.jobs import KINDS, Profile

    name = path.stem
    if name not in KINDS or not name.startswith(_TRAINING):
        return
    profile = Profile(path.parent, Path(os.environ.get("RUN", f"runs/{path.parent.name}")))
    settings = load_cluster_settings(profile)
    resources = requested_resources(name, settings.options(name))
    processes_per_node(profile.plan(name, overrides), resources, settings.device)


def _check_layout(path: Path, overrides: Sequence[str]) -> Iterator[Problem]:
    try:
        check_slurm(path, overrides)
    except UserError as error:
        yield Problem(("parallelism",), str(error))


def _check_surroundings(recipe: Recipe, path: Path) -> Iterator[Problem]:
    """What lies outside of a recipe, but needs no data: the registry of sources, and the recipe that it starts from."""
    from datapipes.errors import DataError
    from datapipes.registry import find_source

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
        except DataError as error:
            yield Problem(key, str(error))
    checkpoints = recipe.checkpoints
    if checkpoints.resume_checkpoint_path is not None:
        key = ("checkpoints", "resume_checkpoint_path")
        for other in _recipes_of_run(path.parent, checkpoints.resume_checkpoint_path):
            if other.hash() != recipe.hash():
                found = ", ".join(one.key for one in differences(other.identity(), recipe.identity())[:5])
                yield Problem(key, f"The run that this one continues trains other weights; it differs in {found}.")
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
    checkpoint_gb = STATE_BYTES_PER_PARAMETER * recipe.architecture.num_parameters() / 1e9
    return (
        f"ok: {recipe.architecture.num_parameters():,} parameters, {recipe.parallelism.world_size} processes, "
        f"{recipe.tokens_per_step:,} tokens x {steps:,} steps = {tokens:.4g} ({', '.join(parts)}), {flops:.3g} FLOPs, "
        f"stops at step {last:,}, keeps {checkpoints_kept(recipe, steps):,} checkpoints of {checkpoint_gb:.4g} GB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nanotron_ext.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    parser.add_argument("--data", action="store_true", help="also look at data, checkpoints and disk space")
    arguments = parser.parse_args()
    failures = 0
    for path in arguments.recipes:
        try:
            print(f"{path}: {check(path, arguments.data)}")
        except UserError as error:
            failures += 1
            print(error, file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
