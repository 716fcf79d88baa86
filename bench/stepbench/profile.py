"""Where the time of this trainer's step goes, operation by operation (on a GPU: kernel by kernel)."""

from time import perf_counter
from typing import Any

from stepbench.variants import our_step
from stepbench.work import Work

ROWS = 25


def profile(work: Work, device: str, threads: int) -> dict[str, Any]:
    """Seconds of one step, how many of them the device was busy, and the operations that took the most.

    The step is timed without the profiler and then taken again under it, so that the profiler's own cost is not in it.
    """
    import torch

    torch.set_num_threads(threads)
    take_step = our_step(work)
    for step in (1, 2):
        take_step(step)
    started = perf_counter()
    take_step(3)  # returns the loss: it has waited for the device
    seconds = perf_counter() - started
    kind = torch.autograd.DeviceType.CUDA if device == "cuda" else torch.autograd.DeviceType.CPU
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as profiler:
        take_step(3)
    taken = []
    for event in profiler.key_averages():
        if event.device_type == kind and not event.is_user_annotation:
            microseconds = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            taken.append({"name": event.key, "seconds": microseconds / 1e6, "calls": event.count})
    taken.sort(key=lambda operation: -operation["seconds"])
    busy = sum(operation["seconds"] for operation in taken)
    return {"work": vars(work), "seconds": seconds, "busy_seconds": busy, "operations": taken[:ROWS]}


def table(profiled: dict[str, Any], name: str = "operation") -> str:
    """The operations as a Markdown table, with their shares of the busy time."""
    rows = [f"| {name} | ms | share | calls |", "| --- | ---: | ---: | ---: |"]
    for operation in profiled["operations"]:
        share = operation["seconds"] / profiled["busy_seconds"]
        label = operation["name"][:80].replace("|", "/")
        rows.append(f"| `{label}` | {operation['seconds'] * 1e3:.2f} | {share:.1%} | {operation['calls']} |")
    return "\n".join(rows)
