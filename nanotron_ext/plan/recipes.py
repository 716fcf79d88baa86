"""The plan of a recipe: parameters, FLOPs, memory per device by part, the time of a step by part, days, cost, storage.

Printed for the recipe's own layout, then the fastest other layouts that fit; this machine's kernels are timed, each
shape once for all recipes. How good the figures are: docs/planning.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.recipe import Recipe, load_recipe
from foundation.recipe.phases import phase_of
from nanotron_ext.plan import devices
from nanotron_ext.plan.calibration import calibrated
from nanotron_ext.plan.estimate import Estimate, Target, estimate, memory_by_recomputation
from nanotron_ext.plan.kernels import GpuKernels, GpuLinks
from nanotron_ext.plan.layout import BYTES_PER_ELEMENT
from nanotron_ext.plan.memory import Trainer
from nanotron_ext.plan.search import layouts, with_layout
from nanotron_ext.plan.speed import Machine
from nanotron_ext.plan.text import layouts_table, plan_text


def gpu_target(recipe: Recipe, name: str, measured: Path | None = None) -> Target:
    """`measured` is a result of bench/step.py on this GPU, which replaces the calibrated overhead.

    Raises:
        UserError: for a GPU without figures, or a file without a step of this model.
    """
    gpu = devices.find_gpu(name)
    kernels = GpuKernels(gpu, BYTES_PER_ELEMENT[recipe.model.dtype])
    machine = Machine(kernels, GpuLinks(gpu), gpu.devices_per_node, devices.RUN_OVERHEAD)
    if measured is not None:
        machine = calibrated(machine, measured, recipe)
    return Target(gpu.name, machine, gpu.peak_flops_per_second, gpu.memory_bytes, devices.RUNTIME_BYTES)


def cpu_target(recipe: Recipe) -> Target:
    """This machine; its kernels are timed."""
    from nanotron_ext.plan.cpu import machine_memory_bytes, measure_machine  # imports torch

    machine, runtime = measure_machine(recipe)
    return Target("cpu", machine, None, machine_memory_bytes(), runtime, on_cpu=True)


def on_nodes(recipe: Recipe, nodes: int, devices_per_node: int) -> Recipe:
    """The recipe on so many nodes: the same global batch over more or fewer replicas.

    Raises:
        UserError: when it does not split.
    """
    parallelism, world = recipe.parallelism, nodes * devices_per_node
    replicas, left = divmod(world, parallelism.world_size // parallelism.dp)
    samples = recipe.tokens.micro_batch_size * replicas
    if left or recipe.global_batch_size % max(samples, 1):
        raise UserError(
            f"--nodes {nodes}: {world} devices do not carry {parallelism} with another dp and a global "
            f"batch of {recipe.global_batch_size} samples in micro-batches of {recipe.tokens.micro_batch_size}. Take "
            f"another number of nodes, or other values of parallelism and tokens.micro_batch_size."
        )
    return with_layout(recipe, dp=replicas, batch_accumulation_per_replica=recipe.global_batch_size // samples)


def best_layouts(
    recipe: Recipe, target: Target, count: int, trainer: Trainer, document_tokens: int | None
) -> list[Estimate]:
    """The fastest that fit."""
    candidates = layouts(recipe, recipe.parallelism.world_size, target.machine.devices_per_node)
    estimates = (estimate(candidate, target, document_tokens, None, trainer) for candidate in candidates)
    return sorted((one for one in estimates if one.fits), key=lambda one: one.step.total)[:count]


def load_recipes(paths: Sequence[Path], overrides: Sequence[str]) -> list[Recipe]:
    """Recipes of pretraining and of long context; `overrides` replace values in all of them.

    Raises:
        UserError: for a wrong recipe, or one of another phase.
    """
    for path in paths:
        if phase_of(path) not in ("pretrain", "long_context"):
            raise UserError(f"{path}: only pretraining and long-context recipes can be planned.")
    return [load_recipe(path, overrides) for path in paths]


@dataclass(frozen=True)
class Options:
    """What is planned for: `gpu` is a name of plan/devices.py, or cpu, which is this machine."""

    gpu: str
    measured: Path | None  # a step of bench/step.py on this GPU
    nodes: int | None  # of 8 GPUs; None: what the recipe's layout needs
    price: float | None  # of a device-hour
    document_tokens: int | None  # mean length, weighted by tokens; None: the whole window
    trainer: Trainer  # whose memory
    layouts: int  # how many other layouts to list
    as_json: bool
    out: Path | None  # folder that gets <recipe>.json


def plan_recipes(paths: Sequence[Path], overrides: Sequence[str], options: Options) -> None:
    """Print the plan of every recipe, as JSON an object or of several a list, and write it where `options` say so.

    Raises:
        UserError: before any figure is printed.
    """
    if options.out and len({path.stem for path in paths}) < len(paths):
        raise UserError("Two recipes of one name would write one file of --out. Plan them one at a time.")
    if options.measured is not None and options.gpu == "cpu":
        raise UserError("--measured is a step on a GPU: give that one with --gpu. --gpu cpu measures this machine.")
    recipes = load_recipes(paths, overrides)
    # All of them before the first estimate: that times kernels, after which memory is not that of a fresh process.
    targets = [
        cpu_target(recipe) if options.gpu == "cpu" else gpu_target(recipe, options.gpu, options.measured)
        for recipe in recipes
    ]
    if options.nodes:
        recipes = [
            on_nodes(recipe, options.nodes, target.machine.devices_per_node)
            for recipe, target in zip(recipes, targets, strict=True)
        ]
    plans = [plan_recipe(*one, options) for one in zip(paths, recipes, targets, strict=True)]
    if options.as_json:
        print(json.dumps(plans if len(plans) > 1 else plans[0], indent=1))


def plan_recipe(path: Path, recipe: Recipe, target: Target, options: Options) -> dict[str, Any]:
    """Print the plan of a recipe unless `options` ask for JSON, write it where they say so, and return it."""
    trainer = options.trainer
    plan = estimate(recipe, target, options.document_tokens, options.price, trainer)
    count = 0 if options.gpu == "cpu" else options.layouts  # the search would time kernels of every shape
    others = best_layouts(recipe, target, count, trainer, options.document_tokens) if count else []
    by_recomputation = memory_by_recomputation(recipe, target, trainer)
    content = {
        "device": target.name,
        **plan.to_dict(),
        "memory_by_recomputation": by_recomputation,
        "layouts": [one.to_dict() for one in others],
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{path.stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if not options.as_json:
        text = plan_text(str(path), target, plan, by_recomputation) + ("\n" + layouts_table(others) if others else "")
        print(text, flush=True)
    return content
