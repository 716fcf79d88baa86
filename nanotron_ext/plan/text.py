"""The planner's figures as text."""

from typing import Any

from nanotron_ext.plan.estimate import Estimate, Target


def plan_text(name: str, target: Target, plan: Estimate, by_recomputation: dict[str, float]) -> str:
    """One screen: the run, memory and time by part, cost, storage."""
    layout = plan.layout
    lines = [
        f"{name} on {plan.devices} {target.name}: dp {layout['dp']} x pp {layout['pp']} x tp {layout['tp']}"
        f" x cp {layout['context_parallel_size']}, "
        f"{layout['micro_batch_size']} samples x {layout['batch_accumulation_per_replica']} micro-batches, "
        f"ZeRO {layout['zero_stage']}{_recomputation(layout)}",
        f"  {plan.parameters:,} parameters; {plan.flops_per_token / 1e9:.2f} GFLOP per token "
        f"(6 x parameters + 6 x layers x hidden_size x document length)",
        "",
        _two_columns(
            [("memory per device", ""), *_parts(plan.memory.parts(), 1e9, "GB"), _total(plan.memory.total / 1e9, "GB")],
            [("a step", ""), *_parts(vars(plan.step), 1e-3, "ms"), _total(plan.step.total * 1e3, "ms")],
        ),
        "",
        f"  {plan.memory.total / 1e9:.1f} of {plan.memory_available / 1e9:.1f} GB: "
        + (
            "fits"
            if plan.fits
            else "DOES NOT FIT; see the layouts below, or recompute_layer, zero_stage 1, a smaller batch"
        ),
        "  memory by recomputation: "
        + ", ".join(f"{what} {size / 1e9:.1f} GB" for what, size in by_recomputation.items()),
        f"  {plan.tokens_per_second_per_device:,.0f} tokens/s per device"
        + (f", MFU {plan.mfu:.1%}" if plan.mfu is not None else ""),
        f"  {plan.steps:,} steps, {_count(plan.tokens)} tokens: {_duration(plan.days)}, "
        f"{plan.device_hours:,.1f} device-hours" + (f", cost {plan.cost:,.0f}" if plan.cost is not None else ""),
        f"  checkpoints: {_size(plan.checkpoint_bytes)} every {plan.checkpoint_interval_minutes:.1f} minutes, "
        f"{plan.checkpoints:,} kept = {_size(plan.storage_bytes)}; tokens read: {_size(plan.data_bytes)}",
    ]
    return "\n".join(lines)


def _recomputation(layout: dict[str, Any]) -> str:
    if layout["recompute_layer"]:
        return ", recomputation"
    return ", recomputation of the MLP" if layout["recompute_mlp"] else ""


def layouts_table(plans: list[Estimate]) -> str:
    """The fastest layouts that fit, one per line."""
    lines = ["", "  fastest layouts that fit", "     dp  pp  tp  cp  batch      ZeRO  recompute  tokens/s     GB"]
    for plan in plans:
        layout = plan.layout
        batch = f"{layout['micro_batch_size']} x {layout['batch_accumulation_per_replica']}"
        recompute = "layer" if layout["recompute_layer"] else "mlp" if layout["recompute_mlp"] else "no"
        degrees = f"{layout['dp']:>5} {layout['pp']:>3} {layout['tp']:>3} {layout['context_parallel_size']:>3}"
        lines.append(
            f"  {degrees}  {batch:9} {layout['zero_stage']:>5}  "
            f"{recompute:>9} {plan.tokens_per_second_per_device:>9,.0f} {plan.memory.total / 1e9:>6.1f}"
        )
    return "\n".join(lines)


def _parts(parts: dict[str, float], unit: float, name: str) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), f"{value / unit:,.2f} {name}") for key, value in parts.items() if value > 0]


def _total(value: float, name: str) -> tuple[str, str]:
    return "together", f"{value:,.2f} {name}"


def _two_columns(left: list[tuple[str, str]], right: list[tuple[str, str]]) -> str:
    rows = []
    for number in range(max(len(left), len(right))):
        (a, b), (c, d) = (side[number] if number < len(side) else ("", "") for side in (left, right))
        rows.append(f"  {a:20}{b:>12}      {c:20}{d:>14}".rstrip())
    return "\n".join(rows)


def _size(size_bytes: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:,.1f} {name}"
    return f"{size_bytes / 1e3:,.1f} kB"


def _count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{number:,.0f}"


def _duration(days: float) -> str:
    if days >= 1:
        return f"{days:,.1f} days"
    return f"{days * 24:,.1f} hours" if days >= 1 / 24 else f"{days * 1440:,.1f} minutes"
