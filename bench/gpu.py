"""Everything that is measured on a GPU, by one command: `make bench-gpu`.

Tokens/s, MFU and memory by size beside the peers; the largest model at every micro-batch size; steps over long windows;
200 losses on the compiled bfloat16 path beside the float32 reference; the profile of a step; and from the largest
model's fastest step the planner's prediction for 384 GPUs. One folder takes it all: a JSON file per part, plots, and
`speed.md`, a page with every figure.

Each part is a command of its own, printed as it starts. A part that fails says why and stops no other. Started again,
the command goes on where it was: a part whose JSON file is there is kept (delete it to measure it again).

    python bench/gpu.py                    # on a machine with one GPU
    python bench/gpu.py --rehearse         # every part at toy size on a CPU: shows that it works, nothing about speed
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step import machine
from stepbench.page import PREDICTION, page
from stepbench.plot import bars
from stepbench.variants import OURS
from stepbench.work import SIZES

RECIPE = "recipes/smollm3-3b/pretrain.yaml"  # for 384 GPUs


@dataclass(frozen=True)
class Campaign:
    """What is measured, and at which sizes; by default on a GPU."""

    device: str = "cuda"
    sizes: tuple[str, ...] = ("135m", "360m", "1.7b", "3b")
    variants: tuple[str, ...] = ()  # beside this trainer; none: all that run there
    micro_batch_sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    windows: tuple[int, ...] = (32_768, 65_536)
    curve_steps: int = 200
    common: tuple[str, ...] = ()  # options of every part
    environment: dict[str, str] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[str, list[str]]]:
        """Name and options of bench/step.py, the cheapest of each kind first."""
        largest = ["--sizes", self.sizes[-1]]
        alone = [*largest, "--variants", OURS]
        for size in self.sizes:
            yield f"size-{size}", ["--sizes", size, *(["--variants", *self.variants] if self.variants else [])]
        yield "curve", ["--sizes", self.sizes[0], "--curve", str(self.curve_steps)]
        yield "low-loss", ["--sizes", self.sizes[0], "--curve", str(2 * self.curve_steps), "--repeat", "1"]
        yield "profile", [*largest, "--profile"]
        for count in self.micro_batch_sizes:
            yield f"micro-batch-{count}", [*alone, "--micro-batch-size", str(count)]
        for tokens in self.windows:
            window = ["--sequence-length", str(tokens), "--document-tokens", str(tokens * 9 // 10)]
            yield f"window-{tokens}", [*alone, *window, "--set", "parallelism.recompute_layer=true"]


REHEARSAL = Campaign(
    device="cpu",
    sizes=("tiny",),
    variants=("transformers sdpa",),
    micro_batch_sizes=(1,),
    windows=(256,),
    curve_steps=4,
    common=("--sequence-length", "128", "--rounds", "1", "--threads", "1"),
    environment={"TORCHDYNAMO_DISABLE": "1"},  # torch.compile then runs functions as they are written
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder; default runs/bench-gpu, or runs/bench-gpu-rehearsal")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at toy size")
    arguments = parser.parse_args()
    campaign = REHEARSAL if arguments.rehearse else Campaign()
    folder = arguments.out or Path("runs/bench-gpu-rehearsal" if arguments.rehearse else "runs/bench-gpu")
    if not arguments.rehearse and not sees_gpu():
        print(
            "error: this needs a CUDA GPU and torch's CUDA wheel, and torch sees no GPU here; `make bench-step` "
            "measures on a CPU, and `python bench/gpu.py --rehearse` goes through all parts at toy size.",
            file=sys.stderr,
        )
        return 2
    here = machine(campaign.device)
    if others := {found["machine"] for found in results(campaign, folder).values()} - {here}:
        print(
            f"error: {folder} holds parts measured on {others.pop()}; this is {here}: give another --out.",
            file=sys.stderr,
        )
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    failures = measure(campaign, folder)
    found = results(campaign, folder)
    if reason := predict(campaign, folder, found):
        failures["prediction"] = reason
    sizes = {
        size: result
        for name, part in found.items()
        if name.startswith("size-")
        for size, result in part["results"].items()
    }
    if sizes:
        chart = bars({"machine": here, "date": time.strftime("%Y-%m-%d"), "results": sizes})
        (folder / "sizes.svg").write_text(chart, encoding="utf-8")
    (folder / "speed.md").write_text(page(folder, found, failures, arguments.rehearse), encoding="utf-8")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"{folder}/speed.md: every figure, {len(found)} parts")
    return 1 if failures else 0


def sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(campaign: Campaign, folder: Path) -> dict[str, str]:
    """Runs the parts that the folder lacks; the reasons of those that fail, by name."""
    parts = dict(campaign.parts())
    missing = [name for name in parts if not (folder / f"{name}.json").exists()]
    failures, started = {}, time.monotonic()
    for done, name in enumerate(missing):
        elapsed = time.monotonic() - started
        left = f", about {elapsed / done * (len(missing) - done) / 60:.0f} min left" if done else ""
        print(f"== {name}: part {len(parts) - len(missing) + done + 1} of {len(parts)}{left}", flush=True)
        options = ["--device", campaign.device, *campaign.common, *parts[name], "--json", f"{folder / name}.json"]
        if reason := run(["bench/step.py", *options], campaign.environment, folder / f"{name}.log"):
            failures[name] = reason
            print(f"   failed: {reason}", flush=True)
    return failures


def run(command: list[str], environment: dict[str, str], log: Path) -> str:
    """Runs a Python command, its output also in `log`; "" or, when it fails, the last error that it printed.

    Not its last line: torch warns of process groups after the error that ends a process.
    """
    print(f"   python {' '.join(repr(word) if ' ' in word else word for word in command)}", flush=True)
    reason = ""
    with (
        log.open("w", encoding="utf-8") as copy,
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(f"   {line}", end="", flush=True)
            copy.write(line)
            reason = line.strip() if "rror: " in line else reason
    return "" if process.returncode == 0 else reason or f"ended with exit code {process.returncode}, see {log}"


def results(campaign: Campaign, folder: Path) -> dict[str, Any]:
    """The parts measured so far, by name."""
    paths = {name: folder / f"{name}.json" for name, _ in campaign.parts()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def predict(campaign: Campaign, folder: Path, found: dict[str, Any]) -> str:
    """The planner's tokens/s at 384 GPUs from the largest model's fastest step; "" or why there is none."""
    from nanotron_ext.plan.devices import GPUS

    (folder / PREDICTION).unlink(missing_ok=True)
    size = campaign.sizes[-1]
    speeds = {
        name: part["results"][size]["variants"][OURS]["tokens_per_second"]
        for name, part in found.items()
        if name.startswith("micro-batch-") and not part["results"][size]["variants"][OURS].get("error")
    }
    if not speeds:
        return f"no step of {size} was measured."
    best = max(speeds, key=lambda name: speeds[name])
    named = found[best]["machine"].lower()
    gpu = "h100" if campaign.device == "cpu" else next((key for key in GPUS if key in named), named)
    documents = found[best]["results"][size]["document_tokens"]
    options = ["--gpu", gpu, "--measured", f"{folder / best}.json", "--document-tokens", str(documents)]
    command = ["-m", "smollm3", "plan", RECIPE, *architecture(size), *options, "--layouts", "0"]
    print(f"== prediction, from {best}", flush=True)
    return run([*command, "--out", str((folder / PREDICTION).parent)], {}, folder / "prediction.log")


def architecture(size: str) -> list[str]:
    """Overrides that give the recipe the measured model; none for the model that it has."""
    if size == "3b":
        return []
    heads, kv_heads = SIZES[size]["heads"]  # type: ignore[misc]
    shape = {**SIZES[size], "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    del shape["heads"]
    return [f"model.model_config.{key}={value}" for key, value in shape.items()]


if __name__ == "__main__":
    sys.exit(main())
