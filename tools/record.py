"""Takes a finished run of the demo over into results/: `make record RUN=runs/tiny`.

Writes results/demo.json, and results/demo_seeds.json where the run's chains under several seeds were measured
(`smollm3 demo-seeds`). `make figures` then writes the pages.
"""

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from foundation.errors import UserError
from foundation.files import write_atomically
from tools.figures import ROOT

# README quotes the first held-out prompt of these tasks in these modes, whatever the reply.
_QUOTED = (("chain", "think"), ("chain", "no_think"), ("tool_call", "no_think"))


def record(run: Path, machine: str, measured: str) -> dict[str, Any]:
    """What the pages quote of the run.

    Raises:
        UserError: when the run is not finished.
    """
    summary, asked = _read(run / "eval/pretraining.json"), _read(run / "eval/capabilities.json")["models"]
    models = {Path(folder).name: model for folder, model in asked.items()}
    return {
        "format": "demo-figures/2",
        "machine": machine,
        "measured": measured,
        "seconds": {name: round(step["seconds"], 1) for name, step in _read(run / "chain.json")["steps"].items()},
        "bytes": sum(file.stat().st_size for file in run.rglob("*") if file.is_file() and not file.is_symlink()),
        "data_tokens": sum(_tokens(file) for file in sorted(run.glob("data/*/manifest.json"))),
        "stages": summary["stages"],
        "held_out": summary["held_out"],
        "validations": list(_validations(run, [stage["stage"] for stage in summary["stages"]])),
        "capabilities": {name: model["summary"] for name, model in models.items()},
        "replies": [_first(models["merged"]["replies"], task, mode) for task, mode in _QUOTED],
    }


def _validations(run: Path, stages: Sequence[str]) -> Iterator[dict[str, Any]]:
    for stage in stages:
        for row in map(json.loads, (run / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
            if bits := row.get("validation_bits_per_byte"):
                yield {"stage": stage, "step": row["step"], "bits_per_byte": bits}


def _tokens(manifest: Path) -> int:
    found: int = _read(manifest)["tokens"]
    return found


def _first(replies: Sequence[Mapping[str, Any]], task: str, mode: str) -> dict[str, str]:
    found = next(reply for reply in replies if reply["task"] == task and reply["mode"] == mode)
    return {key: found[key] for key in ("task", "mode", "question", "text")}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}). Finish the run first: smollm3 demo.") from None


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--machine", help="On which it ran; default: this one.")
def main(run: Path, machine: str | None) -> None:
    """Take the finished demo in RUN, and what its seeds gave, over into results/."""
    machine, measured = machine or platform.processor() or platform.machine(), time.strftime("%Y-%m")
    try:
        found = {"demo": record(run, machine, measured)}
    except UserError as error:
        raise click.ClickException(str(error)) from None
    seeds = run.with_name(f"{run.name}-seeds") / "seeds.json"
    if seeds.exists():
        found["demo_seeds"] = {**_read(seeds), "machine": machine, "measured": measured}
    for name, document in found.items():
        file = ROOT / "results" / f"{name}.json"
        write_atomically(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
