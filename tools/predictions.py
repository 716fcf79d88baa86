"""What training costs on machines that nobody has measured here, as the planner predicts: `make predictions`.

Writes results/predictions.json; the rows are what `smollm3 plan` says. docs/planning.md says how good that is.
"""

import json
from dataclasses import dataclass
from typing import Any

import click

from foundation.files import write_atomically
from nanotron_ext.plan.estimate import estimate
from nanotron_ext.plan.recipes import gpu_target, load_recipes, on_nodes
from tools.figures import ROOT

GPU = "h100"


@dataclass(frozen=True)
class Run:
    machine: str
    what: str
    recipe: str
    nodes: int | None = None
    overrides: tuple[str, ...] = ()


RUNS = (
    Run("one GPU", "135M model, 3.1 B tokens", "smollm3-135m/pretrain.yaml"),
    Run("one GPU", "360M model, 6.3 B tokens", "smollm3-360m/pretrain.yaml"),
    Run("one node of 8", "360M model, 6.3 B tokens", "smollm3-360m/pretrain.yaml", 1),
    Run("one node of 8", "3B model, an ablation on 100 B tokens", "smollm3-3b/pretrain_ablation.yaml", 1),
    Run("48 nodes of 8", "3B model, all 11.1 T tokens", "smollm3-3b/pretrain.yaml"),
    Run(
        "48 nodes of 8",
        "the same with ZeRO 0, as it was published",
        "smollm3-3b/pretrain.yaml",
        overrides=("optimizer.zero_stage=0",),
    ),
)  # fmt: skip


def predictions() -> dict[str, Any]:
    rows = []
    for run in RUNS:
        [recipe] = load_recipes([ROOT / "recipes" / run.recipe], run.overrides)
        target = gpu_target(recipe, GPU)
        if run.nodes:
            recipe = on_nodes(recipe, run.nodes, target.machine.devices_per_node)
        plan = estimate(recipe, target)
        assert plan.fits, run
        options = [f"--gpu {GPU}", *([f"--nodes {run.nodes}"] if run.nodes else []), *run.overrides]
        rows.append({
            "machine": run.machine,
            "what": run.what,
            "command": " ".join(["smollm3 plan", f"recipes/{run.recipe}", *options]),
            "days": round(plan.days, 4),
            "device_hours": round(plan.device_hours, 1),
            "memory_bytes": round(plan.memory.total),
            "tokens": plan.tokens,
        })  # fmt: skip
    return {"format": "predictions/1", "machine": "H100, predicted, not measured", "rows": rows}


@click.command()
def main() -> None:
    """Write results/predictions.json: what `smollm3 plan` says for one GPU, one node of 8, and 48 nodes."""
    file = ROOT / "results" / "predictions.json"
    write_atomically(file, json.dumps(predictions(), indent=1) + "\n")
    print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
