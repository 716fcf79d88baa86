"""The steps of a profile's chain: the make command behind each, what it depends on and what it leaves behind."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanotron_ext.errors import UserError
from posttrain.recipe import load_recipe as load_posttraining_recipe
from slurm.jobs import Profile

# Names for several steps at once, in STAGES.
GROUPS = {
    "pretrain": ("pretrain_stage1", "pretrain_stage2", "pretrain_stage3"),
    "long_context": ("long_context_32k", "long_context_64k"),
    "posttrain": ("midtrain", "sft", "apo"),
    "evaluation": ("eval_long", "eval_base", "capabilities"),
}


class ChainError(UserError):
    """A chain that cannot run as asked; nothing was started."""


@dataclass(frozen=True)
class Step:
    """One entry of the chain.

    `commands` are arguments of make, run one after the other. `recipes`, `code` (files and folders of the repository)
    and the steps in `needs` decide together with them whether a finished step still stands.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    recipes: tuple[Path, ...]
    code: tuple[str, ...]
    needs: tuple[str, ...]
    outputs: tuple[Path, ...]  # moved aside before the step runs anew
    expected_seconds: float  # on two cores of an AMD EPYC (2026-11); only the ETA reads it
    run_folder: Path | None = None  # holds metrics.jsonl while a training step runs
    last_step: int | None = None


_PRETRAINING_CODE = (
    *("nanotron_ext/engine.py", "nanotron_ext/model", "nanotron_ext/data", "nanotron_ext/train"),
    *("nanotron_ext/checkpoint.py", "nanotron_ext/recipe", "constraints.txt"),
)
_POSTTRAINING_CODE = ("posttrain", "nanotron_ext/recipe", "constraints.txt")
_EVALUATION_CODE = ("eval", "nanotron_ext/recipe", "constraints.txt")


def steps_of(profile: Profile) -> list[Step]:
    """All steps that the profile has recipes for, in order.

    Raises:
        UserError: when a recipe is wrong.
    """
    has = set(profile.jobs)
    training = [_pretraining_step(profile, job) for job in profile.pretraining]
    steps = [_data_step(profile), *([_plan_step(profile)] if training else []), *training]
    base_models = [step.run_folder.name for step in training if step.run_folder is not None]
    if training:
        steps.append(_export_step(profile, base_models, [step.name for step in training]))
    for job in ("midtrain", "sft", "apo"):
        if job in has:
            steps.append(_posttraining_step(profile, job, steps[-1].name))
    posttrained = [job for job in ("midtrain", "sft", "apo") if job in has]
    if "merge" in has:
        steps.append(_merge_step(profile))
    if "eval" in has:
        steps += _evaluation_steps(profile, base_models, posttrained, steps[-1].name)
    steps.append(
        Step(
            "report", (("report",),), (), ("report",), tuple(step.name for step in steps), (profile.run / "report",), 5
        )
    )
    return steps


def select(steps: Sequence[Step], names: Iterable[str]) -> list[Step]:
    """The steps called `names`, which may be names of GROUPS, in the order of the chain.

    Raises:
        ChainError: for a name that is neither.
    """
    wanted: set[str] = set()
    known = [step.name for step in steps]
    for name in names:
        members = GROUPS.get(name, (name,))
        if not set(members) & set(known):
            raise ChainError(f"There is no stage {name!r}. Stages: {', '.join([*known, *GROUPS])}.")
        wanted |= set(members)
    return [step for step in steps if step.name in wanted]


def _data_step(profile: Profile) -> Step:
    recipes, run = profile.recipes, profile.run
    commands, used, outputs = [("data",)], [recipes / "pretrain.yaml"], [run / "data", run / "tokenizer"]
    if "midtrain" in profile.jobs:
        commands.append(("posttrain-data",))
        outputs.append(run / "posttrain_data")
    if "eval" in profile.jobs:
        commands.append(("eval-data",))
        used.append(recipes / "eval.yaml")
        outputs.append(run / "eval_data")
    code = ("datapipes", "nanotron_ext/recipe", "posttrain/tiny_data.py", "eval/data.py", "eval/editions.py")
    return Step("data", tuple(commands), tuple(used), code, (), tuple(outputs), 20)


def _plan_step(profile: Profile) -> Step:
    """The three stages, whose layouts differ; it runs first, as people would."""
    recipes = tuple(profile.recipes / f"{job}.yaml" for job in GROUPS["pretrain"] if job in profile.jobs)
    code = ("nanotron_ext/plan", "nanotron_ext/recipe")
    return Step("plan", (("plan",),), recipes, code, (), (profile.run / "plan",), 25)


def _pretraining_step(profile: Profile, job: str) -> Step:
    plan = profile.plan(job)
    needs = tuple(dict.fromkeys(("data", profile.predecessor(job) or "data")))
    stage = job.removeprefix("pretrain_stage").removeprefix("long_context_")
    return Step(
        job, (("pretrain", f"STAGE={stage}"),), (plan.recipe,), _PRETRAINING_CODE, needs, (plan.folder,),
        90, run_folder=plan.folder, last_step=plan.last_step,
    )  # fmt: skip


def _posttraining_step(profile: Profile, job: str, before: str) -> Step:
    """All recipes of the phase: apo.yaml, apo_seed43.yaml, ..., whose models make the soup."""
    plan = profile.plan(job)
    paths = sorted(profile.recipes.glob(f"{job}*.yaml"))
    recipes = [load_posttraining_recipe(path) for path in paths]
    outputs = tuple(folder for recipe in recipes for folder in (recipe.run_folder, recipe.model_folder))
    return Step(
        job, (("posttrain", f"PHASE={job}"),), tuple(paths), _POSTTRAINING_CODE, ("data", before), outputs,
        90, run_folder=plan.folder, last_step=plan.last_step,
    )  # fmt: skip


def _export_step(profile: Profile, models: Sequence[str], needs: Sequence[str]) -> Step:
    outputs = [profile.run / "hf" / model for model in models]
    exports = [("export", f"FROM={profile.run / model.name}", f"MODEL={model}") for model in outputs]
    commands = (*exports, ("summary",))
    code = ("nanotron_ext", "eval/pretraining.py")
    return Step("export", commands, (), code, tuple(needs), tuple(outputs), 12 * len(models))


def _merge_step(profile: Profile) -> Step:
    plan = profile.plan("merge")
    outputs = tuple(product.parent for product in plan.products)
    return Step(
        "merge", (("merge",),), (plan.recipe,), ("merge", "nanotron_ext/recipe"), ("midtrain", "apo"), outputs, 15
    )


def _evaluation_steps(profile: Profile, base: Sequence[str], posttrained: Sequence[str], before: str) -> list[Step]:
    """Retrieval over the checkpoints that changed it, the suites on the first and the last model, the taught tasks."""
    hf, recipe = profile.run / "hf", profile.recipes / "eval.yaml"
    merged = [hf / name for name in ("soup", "merged") if "merge" in profile.jobs]
    final = merged[-1] if merged else hf / [*base, *posttrained][-1]
    extended = [job for job in profile.pretraining if job.startswith("long_context")]
    retrieval = [hf / name for name in (*base[-1 - len(extended) :], *posttrained[-1:])] + merged
    steps = [
        _evaluation("eval_long", [(retrieval, "long")], recipe, before),
        _evaluation("eval_base", [([hf / name for name in base[-1:]], "base"), ([final], "")], recipe, before),
    ]
    if posttrained:
        models = " ".join(str(model) for model in [hf / base[-1], *(hf / name for name in posttrained), *merged])
        code = ("posttrain", "eval/ruler.py")
        steps.append(
            Step("capabilities", (("capabilities", f"MODELS={models}", "SEEDS=1"),), (), code, ("data", before), (), 60)
        )
    if "merge" in profile.jobs:
        sweep_recipes = (profile.recipes / "merge.yaml", recipe)
        steps.append(
            Step("merge_sweep", (("merge-sweep",),), sweep_recipes, ("merge", *_EVALUATION_CODE), ("merge",), (), 30)
        )
    return steps


def _evaluation(name: str, runs: Sequence[tuple[Sequence[Path], str]], recipe: Path, before: str) -> Step:
    """One command per (models, suite); without a suite, all that the models can take."""
    commands = tuple(
        ("eval", f"MODEL={' '.join(map(str, models))}", *([f"SUITE={suite}"] if suite else []))
        for models, suite in runs
        if models
    )
    return Step(name, commands, (recipe,), _EVALUATION_CODE, ("data", before), (), 60 * len(commands))
