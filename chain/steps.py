"""The steps of a profile's chain: the make command behind each, what it depends on and what it leaves behind."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import UserError
from foundation.recipe import load_recipe
from foundation.recipe.loading import read_tree
from jobs.profile import Profile
from posttrain.recipe import load_recipe as load_posttraining_recipe

_SOURCE_TABLES = Path("datapipes/sources")
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

    `commands` are arguments of make, run one after the other. `recipes`, `code` (files and folders of the repository;
    what a Python file imports counts too) and the steps in `needs` decide together with them whether a finished step
    still stands.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    recipes: tuple[Path, ...]
    code: tuple[str, ...]
    needs: tuple[str, ...]
    outputs: tuple[Path, ...]  # moved aside before the step runs anew
    expected_seconds: float  # on two cores of an AMD EPYC (2026-11); only the ETA reads it
    kept: tuple[Path, ...] = ()  # results whose command knows itself what of them still stands: they must exist
    runs: tuple["TrainingRun", ...] = ()  # one after the other
    settings: tuple[str, ...] = ()  # that count like a recipe


@dataclass(frozen=True)
class TrainingRun:
    """Where a training's metrics.jsonl grows, and how far: `last_step`, or where that depends on the data `epochs`."""

    folder: Path
    last_step: int | None = None
    epochs: int | None = None


_VERSIONS = "constraints.txt"
_TEMPLATES = ("posttrain/chat_template.jinja", "posttrain/chatml.jinja")
_PRETRAINING_CODE = ("nanotron_ext/train/__main__.py", _VERSIONS)
_POSTTRAINING_CODE = ("posttrain/train.py", *_TEMPLATES, _VERSIONS)
# Task families and generators are imported by name, which no import statement shows.
_EVALUATION_CODE = ("eval/evaluate.py", "eval/tasks", "eval/ruler.py", "eval/facts.py", "eval/helmet.py", _VERSIONS)
# Measured (two cores of an AMD EPYC, 2026-11).
_SECONDS = {
    "data": 11, "plan": 11, "pretrain_stage1": 98, "pretrain_stage2": 55, "pretrain_stage3": 68,
    "long_context_32k": 65, "long_context_64k": 54, "export": 15, "midtrain": 134, "sft": 89, "apo": 36, "merge": 6,
    "eval_long": 41, "eval_base": 32, "capabilities": 33, "merge_sweep": 56, "report": 2,
}  # fmt: skip


def steps_of(profile: Profile) -> list[Step]:
    """All steps that the profile has recipes for, in order.

    Raises:
        UserError: when a recipe is wrong.
    """
    has = set(profile.jobs)
    training = [_pretraining_step(profile, job) for job in profile.pretraining]
    steps = [_data_step(profile), *([_plan_step(profile)] if training else []), *training]
    base_models = [run.folder.name for step in training for run in step.runs]
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
            "report", (("report",),), (), ("report/write.py", "report/page.html.jinja"),
            tuple(step.name for step in steps), (profile.run / "report",), _SECONDS["report"],
        )
    )  # fmt: skip
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
    sources = _sources(profile)
    tables = [str(table) for table in sorted(_SOURCE_TABLES.glob("*.yaml")) if sources & set(read_tree(table))]
    code = ("datapipes/prepare.py", "datapipes/corpus", *tables, "posttrain/tiny_data.py", "eval/data.py")
    return Step(
        "data", tuple(commands), tuple(used), code, (), tuple(outputs), _SECONDS["data"],
        settings=tuple(sorted(sources)),
    )  # fmt: skip


def _sources(profile: Profile) -> set[str]:
    """What the stages and the long-context phases train on, and what is held out."""
    names: set[str] = set()
    for path in (profile.recipes / "pretrain.yaml", *profile.recipes.glob("long_context_*.yaml")):
        recipe = load_recipe(path)
        names |= {name for stage in recipe.data_stages for name in stage.mixture} | set(recipe.data.validation)
    return names


def _plan_step(profile: Profile) -> Step:
    """The three stages, whose layouts differ; it runs first, as people would."""
    recipes = tuple(profile.recipes / f"{job}.yaml" for job in GROUPS["pretrain"] if job in profile.jobs)
    code = ("nanotron_ext/plan/recipes.py",)
    return Step("plan", (("plan",),), recipes, code, (), (profile.run / "plan",), _SECONDS["plan"])


def _pretraining_step(profile: Profile, job: str) -> Step:
    plan = profile.plan(job)
    needs = tuple(dict.fromkeys(("data", profile.predecessor(job) or "data")))
    stage = job.removeprefix("pretrain_stage").removeprefix("long_context_")
    return Step(
        job, (("pretrain", f"STAGE={stage}"),), (plan.recipe,), _PRETRAINING_CODE, needs, (plan.folder,),
        _SECONDS[job], runs=(TrainingRun(plan.folder, last_step=plan.last_step),),
    )  # fmt: skip


def _posttraining_step(profile: Profile, job: str, before: str) -> Step:
    """All recipes of the phase: apo.yaml, apo_seed43.yaml, ..., whose models make the soup."""
    paths = sorted(profile.recipes.glob(f"{job}*.yaml"))
    recipes = [load_posttraining_recipe(path) for path in paths]
    outputs = tuple(folder for recipe in recipes for folder in (recipe.run_folder, recipe.model_folder))
    runs = tuple(TrainingRun(recipe.run_folder, epochs=recipe.optimizer.num_train_epochs) for recipe in recipes)
    return Step(
        job, (("posttrain", f"PHASE={job}"),), tuple(paths), _POSTTRAINING_CODE, ("data", before), outputs,
        _SECONDS[job], runs=runs,
    )  # fmt: skip


def _export_step(profile: Profile, models: Sequence[str], needs: Sequence[str]) -> Step:
    outputs = [profile.run / "hf" / model for model in models]
    # Of this step's own models, which were moved aside where the step runs anew: what is there is its interrupted work.
    exports = [("export", f"FROM={profile.run / model.name}", f"MODEL={model}", "REPLACE=1") for model in outputs]
    commands = (*exports, ("summary",))
    code = ("nanotron_ext/export.py", "eval/pretraining.py", _VERSIONS)
    made = (*outputs, profile.run / "eval" / "pretraining.json")
    return Step("export", commands, (), code, tuple(needs), made, _SECONDS["export"])


def _merge_step(profile: Profile) -> Step:
    plan = profile.plan("merge")
    outputs = tuple(product.parent for product in plan.products)
    code = ("merge/run.py", _VERSIONS)
    return Step("merge", (("merge",),), (plan.recipe,), code, ("midtrain", "apo"), outputs, _SECONDS["merge"])


def _evaluation_steps(profile: Profile, base: Sequence[str], posttrained: Sequence[str], before: str) -> list[Step]:
    """Retrieval over the checkpoints that changed it, the suites on the first and the last model, the taught tasks."""
    hf = profile.run / "hf"
    merged = [hf / name for name in ("soup", "merged") if "merge" in profile.jobs]
    final = merged[-1] if merged else hf / [*base, *posttrained][-1]
    extended = [job for job in profile.pretraining if job.startswith("long_context")]
    retrieval = [hf / name for name in (*base[-1 - len(extended) :], *posttrained[-1:])] + merged
    steps = [
        _evaluation("eval_long", [(retrieval, "long")], profile, before),
        _evaluation("eval_base", [([hf / name for name in base[-1:]], "base"), ([final], "")], profile, before),
    ]
    if posttrained:
        models = " ".join(str(model) for model in [hf / base[-1], *(hf / name for name in posttrained), *merged])
        command = ("capabilities", f"MODELS={models}", "SEEDS=1")
        code, made = ("posttrain/evaluate.py", *_TEMPLATES, _VERSIONS), (profile.run / "eval" / "capabilities.json",)
        steps.append(Step("capabilities", (command,), (), code, ("data", before), made, _SECONDS["capabilities"]))
    if "merge" in profile.jobs:
        recipes, curve = (profile.recipes / "merge.yaml", profile.recipes / "eval.yaml"), profile.run / "merge_sweep"
        steps.append(
            Step(
                "merge_sweep", (("merge-sweep",),), recipes, ("merge/sweep.py", *_EVALUATION_CODE), ("merge",), (),
                _SECONDS["merge_sweep"], kept=(curve / "sweep.json",),
            )
        )  # fmt: skip
    return steps


def _evaluation(name: str, runs: Sequence[tuple[Sequence[Path], str]], profile: Profile, before: str) -> Step:
    """One command per (models, suite); without a suite, all that the models can take."""
    commands = tuple(
        ("eval", f"MODEL={' '.join(map(str, models))}", *([f"SUITE={suite}"] if suite else []))
        for models, suite in runs
        if models
    )
    recipe = profile.recipes / "eval.yaml"
    kept = tuple(profile.run / "eval" / model.name for models, _ in runs for model in models)
    return Step(
        name, commands, (recipe,), _EVALUATION_CODE, ("data", before), (), _SECONDS[name], kept=kept
    )  # fmt: skip
