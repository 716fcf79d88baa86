"""What happened, claim by claim: the numbers of this run, their intervals, and a verdict that follows from these."""

from collections.abc import Mapping, Sequence

from foundation.intervals import Estimate, t_interval
from report.blocks import Block, Details, Finding, Table
from report.collect import Report
from report.effects import Claim, Effect, measure, multi_step_tasks, over_posttraining_seeds

_Values = Mapping[tuple[str, str], Sequence[float]]  # (claim, effect) -> its value under each seed


def findings(report: Report) -> list[Finding]:
    """One finding per claim."""
    values = _values_over_seeds(report)
    return [_finding(claim, values, report.commands["demo-seeds"]) for claim in measure(report)]


def _values_over_seeds(report: Report) -> dict[tuple[str, str], list[float]]:
    """From seeds of post-training alone, and in their place from seeds of the whole chain where those are there."""
    values: dict[tuple[str, str], list[float]] = {}
    if report.posttraining_seeds:
        by_claim = over_posttraining_seeds(report.posttraining_seeds, multi_step_tasks(report))
        for claim, seeds in by_claim.items():
            for effects in seeds:
                for effect in effects:
                    values.setdefault((claim, effect.name), []).append(effect.value)
    if report.seeds:
        for entry in report.seeds["effects"]:
            values[entry["claim"], entry["effect"]] = entry["values"]
    return values


def _finding(claim: Claim, values: _Values, over_seeds_command: str) -> Finding:
    if not claim.effects:
        if claim.absent:
            return Finding("not measured", claim.text, [claim.absent])
        return Finding("not measured", claim.text, [], claim.command)
    over_seeds = [_over_seeds(claim, effect, values) for effect in claim.effects]
    intervals = [
        _deciding(effect, estimate) for effect, (estimate, _) in zip(claim.effects, over_seeds, strict=True)
    ]  # fmt: skip
    lines = [
        f"{effect.name}: {effect.detail}; {_own(effect)}{words}"
        for effect, (_, words) in zip(claim.effects, over_seeds, strict=True)
    ]
    if any(low is None for low in intervals):
        return Finding("not measured", claim.text, [*lines, "One run gives no interval."], over_seeds_command)
    shown = all(low > effect.null for low, effect in zip(intervals, claim.effects, strict=True) if low is not None)
    return Finding("shown" if shown else "not shown at this size", claim.text, lines)


def _over_seeds(claim: Claim, effect: Effect, values: _Values) -> tuple[Estimate | None, str]:
    found = values.get((claim.key, effect.name), ())
    if len(found) < 2:
        return None, ""
    estimate = t_interval(found)
    low, high = _number(estimate.low, effect), _number(estimate.high, effect)
    return estimate, f". Over {len(found)} seeds {_number(estimate.value, effect)} [{low}, {high}]"


def _deciding(effect: Effect, over_seeds: Estimate | None) -> float | None:
    """The lower end of the interval that decides: over seeds if there is one of some width, else within the run."""
    if over_seeds is not None and over_seeds.high > over_seeds.low:
        return over_seeds.low
    return effect.low


def _own(effect: Effect) -> str:
    interval = ""
    if effect.low is not None and effect.high is not None:
        interval = f" [{_number(effect.low, effect)}, {_number(effect.high, effect)}]"
    return f"{_number(effect.value, effect)}{interval} {effect.unit}"


def _number(value: float, effect: Effect) -> str:
    sign = "+" if effect.null == 0 else ""
    digits = 3 if effect.unit == "bits per byte" else 1
    return f"{value:{sign}.{digits}f}"


def introduction(found: Sequence[Finding]) -> str:
    """How many claims hold, and how to read the lines below."""
    shown = sum(finding.verdict == "shown" for finding in found)
    return (
        f"What the recipe of SmolLM3 is meant to do, and what it did here. Shown: {shown} of {len(found)} claims. "
        "Shown means that the 95 % interval of every number excludes no effect (positive numbers speak for the claim). "
        "A small model and few questions give wide intervals: what is not shown may still be true."
    )


def seed_by_seed(report: Report) -> list[Block]:
    """What the chain gave under each seed, where it ran under several."""
    if not report.seeds:
        return []
    rows = []
    for effect in report.seeds["effects"]:
        numbers = [*effect["values"], effect["mean"]]
        interval = f"[{effect['low']:.2f}, {effect['high']:.2f}]"
        rows.append([effect["claim"], effect["effect"], effect["unit"], *(f"{x:.2f}" for x in numbers), interval])
    header = ["claim", "effect", "unit", *(f"seed {seed}" for seed in report.seeds["seeds"]), "mean", "95 % interval"]
    return [Details("Seed by seed", [Table(header, rows, text_columns=3)])]
