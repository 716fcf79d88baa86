"""The page of `make bench-gpu`: every figure of its parts, each beside the command's own output."""

import json
from pathlib import Path
from typing import Any

from stepbench.curves import verdict
from stepbench.profile import table
from stepbench.variants import OURS

FORMULA = (
    "MFU = (6 x parameters x tokens + 6 x layers x hidden_size x the sum of squared document lengths) / seconds / "
    "peak. Tokens/s: of the median step, and the range of all timed steps. Memory: the most that torch had allocated "
    "(on a CPU: the peak of the process beyond its imports)."
)
PREDICTION = Path("prediction/pretrain.json")  # the plan, in the parts' folder
Parts = dict[str, Any]  # what bench/step.py wrote as JSON, by the part's name


def page(folder: Path, parts: Parts, failures: dict[str, str], is_rehearsal: bool) -> str:
    """Markdown, for the folder that holds the parts' files."""
    machine, dates = next(iter(parts.values()), {}).get("machine", "?"), sorted({one["date"] for one in parts.values()})
    rehearsal = ["**A rehearsal on a CPU at toy size: it shows that every part runs. No figure here is a speed.**"]
    sections = [
        [f"# Speed on {machine}", ", ".join(dates), *(rehearsal if is_rehearsal else []), FORMULA],
        steps("By size, beside the peers", "size-", parts, ["![tokens/s and memory](sizes.svg)"]),
        steps("By micro-batch size", "micro-batch-", parts),
        steps("Long windows", "window-", parts),
        curve("Loss on the compiled path and on the reference path", "curve", parts),
        curve("The same on one batch again and again, down to confident tokens", "low-loss", parts),
        profiled(parts),
        prediction(folder),
        ["## Failed", "\n".join(f"- {name}: {reason}" for name, reason in failures.items())] if failures else [],
    ]
    return "\n\n".join("\n\n".join(section) for section in sections if section) + "\n"


def steps(title: str, prefix: str, parts: Parts, more: list[str] | None = None) -> list[str]:
    """A row per variant of the parts: median and range of tokens/s, MFU, peak memory, and what the planner expects."""
    head = "| model | samples x tokens | | tokens/s | MFU | memory, GB | planned, GB | this trainer is |"
    rows = [head, "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |"]
    for result in (
        result for name, part in parts.items() if name.startswith(prefix) for result in part["results"].values()
    ):
        work = result["work"]
        shape = f"{work['micro_batch_size'] * work['micro_batches']} x {work['sequence_length']:,}"
        rows += [
            f"| {work['size']} | {shape} | {variant} | {cells(variant, figures, result)} |"
            for variant, figures in result["variants"].items()
        ]
    if len(rows) == 2:
        return []
    return [f"## {title}", "\n".join(rows), *(more or [])]


def cells(variant: str, figures: dict[str, Any], result: dict[str, Any]) -> str:
    """The last five columns."""
    if figures.get("error"):
        return f"{figures['error'][:120].replace('|', '/')} | | | | "
    tokens, seconds = result["work"]["tokens"], figures["seconds"]
    planned, ratio = "", ""
    ours = result["variants"][OURS]
    if variant == OURS:
        planned = f"{planned_bytes(result['recipe']) / 1e9:.1f}"
    elif not ours.get("error"):
        ratio = f"{ours['tokens_per_second'] / figures['tokens_per_second']:.2f} x as "
        ratio += f"fast, {ours['peak_megabytes'] / figures['peak_megabytes']:.2f} of the memory"
    speed = f"{figures['tokens_per_second']:,.0f} ({tokens / max(seconds):,.0f} to {tokens / min(seconds):,.0f})"
    return f"{speed} | {figures['mfu']:.1%} | {figures['peak_megabytes'] * 2**20 / 1e9:.1f} | {planned} | {ratio}"


def planned_bytes(recipe: dict[str, Any]) -> float:
    """What the planner says that the step allocates: without CUDA's own context."""
    from foundation.recipe import Recipe
    from nanotron_ext.plan.memory import peak_memory

    return peak_memory(Recipe.model_validate(recipe), runtime_bytes=0.0).total


def curve(title: str, name: str, parts: Parts) -> list[str]:
    if name not in parts:
        return []
    section = [f"## {title}"]
    for size, result in parts[name]["results"].items():
        count = len(next(iter(result["losses"].values())))
        section += [f"{size}, {count} steps. {verdict(result)}", f"![losses]({name}-{size}.svg)"]
    return section


def profiled(parts: Parts) -> list[str]:
    if "profile" not in parts:
        return []
    section = ["## Where the time goes"]
    for size, result in parts["profile"]["results"].items():
        idle = max(0.0, 1 - result["busy_seconds"] / result["seconds"])
        section += [
            f"{size}: a step of {result['seconds']:.3f} s, the sum of its operations {result['busy_seconds']:.3f} s: "
            f"at least {idle:.1%} of the step nothing ran (more where operations overlap).",
            table(result),
        ]
    return section


def prediction(folder: Path) -> list[str]:
    path = folder / PREDICTION
    if not path.exists():
        return []
    plan = json.loads(path.read_text(encoding="utf-8"))
    layout = ", ".join(f"{key} {value}" for key, value in plan["layout"].items())
    times = ", ".join(f"{key} {value:.3f}" for key, value in plan["step"].items())
    return [
        f"## {plan['devices']} GPUs from one",
        f"**{plan['tokens_per_second_per_device']:,.0f} tokens/s per GPU, MFU {plan['mfu']:.1%}**, "
        f"{plan['days']:.1f} days for the whole run ({plan['device']}; {layout}).",
        f"Seconds of a step: {times}.",
        "Assumptions: the measured step over the sum of the kernels that the planner expects of it is one factor, and "
        "it stretches messages too; the reduction of gradients counts as exposed although it overlaps the backward "
        "pass; links reach their usual shares of the data sheet; no stragglers, checkpoints or waiting for data; "
        "documents as long as in the measured step.",
    ]
