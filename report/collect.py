"""Reads what the stages of a chain left in their folders. What is not there is None or empty."""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datapipes.errors import SourceError
from datapipes.registry import find_source
from eval.checkpoint import EVALUATIONS_FILE
from eval.results import SuiteResult, read_suite
from foundation import json_text
from foundation.errors import UserError
from foundation.journal import TIMINGS_FILE, read_metrics, read_rows, tokens_per_step
from foundation.yaml_text import YamlTextError, load
from jobs.plan import typed
from jobs.profile import Profile
from jobs.table import GROUPS, JOBS

SEEDS_FILE = "seeds.json"  # of the folder with a run per seed; see report/seeds.py
_PACKAGES = ("torch", "nanotron", "datatrove", "transformers", "trl", "mergekit", "lighteval")
_VERBS_OF_MANY_JOBS = ("demo", "demo-seeds", "ablations", "cluster-run")


class ReportError(UserError):
    """A run folder that nothing can be reported about."""


@dataclass(frozen=True)
class Training:
    """A training run's resolved recipe, and the rows of its metrics.jsonl, evaluations.jsonl and timings.jsonl."""

    name: str
    recipe: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]] = ()  # of checkpoints, made while it trained
    timings: Sequence[Mapping[str, Any]] = ()  # of its starts and saves
    tokens_before: int = 0  # of the runs whose weights this one started from, step 1

    @property
    def tokens(self) -> int:
        """Trained in this run alone; pretraining counts on from the stage before."""
        first, last = self.rows[0], self.rows[-1]
        return round(last["tokens"] - first["tokens"] + tokens_per_step(self.rows[:2])[0])


@dataclass(frozen=True)
class Source:
    """One source's share of a stage's tokens, in [0, 1]; `consumed` is None when the run did not write it."""

    name: str
    planned: float
    consumed: float | None
    tokens: int | None
    epochs: float | None  # since the start of the run


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    profile: str
    created: str
    machine: str
    versions: Mapping[str, str]
    chain: Mapping[str, Any] | None  # chain.json
    pretraining: Sequence[Training]
    mixtures: Mapping[str, Sequence[Source]]  # by stage
    categories: Mapping[str, str]  # of the sources in the mixtures and of the held-out ones: web, code, math, ...
    summary: Mapping[str, Any] | None  # eval/pretraining.json
    posttraining: Sequence[Training]
    evaluations: Sequence[SuiteResult]
    capabilities: Mapping[str, Any] | None
    sweep: Mapping[str, Any] | None
    plans: Mapping[str, Mapping[str, Any]]  # the planner's predictions, by run folder's name
    ablations: Mapping[str, Any] | None
    seeds: Mapping[str, Any] | None  # effects of the whole chain under several seeds (chain/seeds.py)
    posttraining_seeds: Mapping[str, Any] | None  # shares after post-training under several seeds
    missing: Sequence[str]  # stages of the chain without results
    commands: Mapping[str, str]  # what to type for each job of the profile, or group, or all; empty where it has none

    @property
    def seconds(self) -> float:
        return sum(step["seconds"] for step in self.chain["steps"].values()) if self.chain else 0.0


def collect(profile: Profile) -> Report:
    """Read the profile's run folder.

    Raises:
        ReportError: when it holds nothing to report.
        UserError: when a recipe of the profile is wrong.
    """
    run = profile.run
    pretraining = _one_after_the_other([_training(profile.plan(job).folder) for job in profile.pretraining])
    phases = profile.post_training
    posttraining = [t for job in phases if (t := _training(profile.plan(job).folder))]
    if not pretraining and not posttraining:
        command = typed(profile, [("demo", *profile.option)])
        raise ReportError(f"{run} holds no run of {profile.recipes}. Train something first, for example: {command}")
    done = {training.name for training in (*pretraining, *posttraining)}
    mixtures = _mixtures(pretraining)
    wanted = [profile.plan(job).folder.name for job in (*profile.pretraining, *phases)]
    return Report(
        profile=profile.recipes.name,
        created=time.strftime("%Y-%m-%d %H:%M %Z"),
        machine=f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        versions={name: version(name) for name in _PACKAGES},
        chain=_json(run / "chain.json"),
        pretraining=pretraining,
        mixtures=mixtures,
        categories=_categories(pretraining, mixtures),
        summary=_json(run / "eval" / "pretraining.json"),
        posttraining=posttraining,
        evaluations=[read_suite(file) for file in sorted((run / "eval").glob("*/*.json"))],
        capabilities=_json(run / "eval" / "capabilities.json"),
        sweep=_json(run / "merge_sweep" / "sweep.json"),
        plans=_plans(profile),
        ablations=_json(run / "ablations" / "ablations.json"),
        seeds=_json(run.with_name(f"{run.name}-seeds") / SEEDS_FILE),  # the runs lie beside the profile's own
        posttraining_seeds=_json(run / "eval" / "posttrain_seeds.json"),
        missing=[name for name in wanted if name not in done],
        commands={name: profile.command(name) for name in (*JOBS, *GROUPS)}
        | {verb: typed(profile, [(verb, *profile.option)]) for verb in _VERBS_OF_MANY_JOBS},
    )


def _training(folder: Path) -> Training | None:
    recipe, rows = folder / "recipe.yaml", read_metrics(folder)
    if not rows or not recipe.is_file():
        return None
    try:
        resolved = load(recipe.read_text(encoding="utf-8"))
    except (YamlTextError, UnicodeDecodeError) as error:
        raise ReportError(f"{recipe} is not YAML ({error}). Train the run again.") from None
    evaluations, timings = (list(read_rows(folder / name)) for name in (EVALUATIONS_FILE, TIMINGS_FILE))
    return Training(folder.name, resolved, rows, evaluations, timings)


def _categories(pretraining: Sequence[Training], mixtures: Mapping[str, Sequence[Source]]) -> dict[str, str]:
    """Of the sources that the registry has."""
    names = {source.name for sources in mixtures.values() for source in sources}
    names |= {
        name for training in pretraining for row in training.rows for name in row.get("validation_bits_per_byte", ())
    }
    categories: dict[str, str] = {}
    for name in sorted(names):
        with contextlib.suppress(SourceError):
            categories[name] = find_source(name).category
    return categories


def _one_after_the_other(runs: Sequence[Training | None]) -> list[Training]:
    """The runs that exist; one that counts steps from 1 again stands behind all tokens of those before it."""
    placed: list[Training] = []
    for run in runs:
        if run is not None:
            before = placed[-1].tokens_before if placed else 0
            if placed and run.rows[0]["step"] <= placed[-1].rows[-1]["step"]:
                before += placed[-1].rows[-1]["tokens"]
            placed.append(dataclasses.replace(run, tokens_before=before))
    return placed


def _plans(profile: Profile) -> dict[str, dict[str, Any]]:
    files = {profile.plan(job).folder.name: profile.run / "plan" / f"{job}.json" for job in profile.pretraining}
    return {name: plan for name, file in files.items() if (plan := _json(file))}


def _json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json_text.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{file} is not JSON ({error}). Remove it and run the stage that writes it again.") from None
    return content


def _mixtures(stages: Sequence[Training]) -> dict[str, list[Source]]:
    """Planned shares beside the tokens that the loader has given out in each stage."""
    mixtures = {}
    before: Mapping[str, Any] = {}
    for stage in stages:
        first_step = stage.rows[0]["step"]
        started = [part for part in stage.recipe["data_stages"] if part["start_training_step"] <= first_step]
        planned = started[-1]["mixture"]
        counted = next((row["data"] for row in reversed(stage.rows) if "data" in row), None)
        tokens = _consumed(before, counted or {})
        total = sum(tokens.values())
        mixtures[stage.name] = [
            Source(
                name, share, tokens.get(name, 0) / total if total else None, tokens.get(name) if total else None,
                counted[name]["epochs"] if counted and name in counted else None,
            )
            for name, share in planned.items()
        ]  # fmt: skip
        before = counted or {}
    return mixtures


def _consumed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    """Tokens per source between two counts of one run; a run that starts its count anew has no `before`."""
    started = {name: entry["tokens"] for name, entry in before.items()}
    if any(after.get(name, {"tokens": 0})["tokens"] < tokens for name, tokens in started.items()):
        started = {}
    return {name: entry["tokens"] - started.get(name, 0) for name, entry in after.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
