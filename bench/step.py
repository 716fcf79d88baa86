"""Our training step beside transformers' SmolLM3ForCausalLM, on the same batches, weights and threads, in one run.

A step is forward, backward, clipping and AdamW on float32 masters, over samples packed with documents of realistic
lengths and attention within documents. A variant whose losses are not this trainer's did other work, and gets no
figures.

    python bench/step.py                              # this machine's CPU: 30m and 135m, sequence 2048, float32
    python bench/step.py --threads 1                  # in CPU time, which other programs hardly disturb
    python bench/step.py --layouts --micro-batches 2  # tp 2 and dp 2 on two processes, against one with two threads
    python bench/step.py --device cuda                # a GPU: 135m to 3b, sequence 4096, bfloat16 (all: bench/gpu.py)
    python bench/step.py --sizes tiny --curve 200     # losses: compiled bf16 path against float32 as written
    python bench/step.py --sizes tiny --curve 400 --repeat 4   # the same, down to confident tokens
    python bench/step.py --sizes 135m --profile       # where our step's time goes

MFU = (6 x parameters x tokens + 6 x layers x hidden_size x the sum of squared document lengths) / seconds / peak.
The peak is the GPU's data sheet (dense bf16), or on a CPU what a matrix product reaches on the same threads.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from stepbench.compare import compare, peak_flops, report
from stepbench.curves import curve_chart, curves, verdict
from stepbench.plot import bars
from stepbench.profile import profile, table
from stepbench.variants import LAYOUTS, OURS, available
from stepbench.work import SIZES, Work

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"sizes": ["30m", "135m"], "sequence_length": 2048, "dtype": "float32", "loss_chunk_tokens": 512},
    "cuda": {"sizes": ["135m", "360m", "1.7b", "3b"], "sequence_length": 4096, "dtype": "bfloat16"},
}
MICRO_BATCH_SIZES = {"135m": 8, "360m": 4, "1.7b": 2, "3b": 1}  # of 4,096 tokens, for which transformers' logits fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--variants", nargs="+", help="beside this trainer; default: all that run here")
    parser.add_argument("--layouts", action="store_true", help="this trainer alone, in its layouts on two processes")
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--document-tokens", type=int, default=900, help="mean length before samples cut them")
    parser.add_argument("--micro-batch-size", type=int, help="samples")
    parser.add_argument("--micro-batches", type=int, default=1, help="per step")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="of this trainer's recipe")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU; with 1, CPU time is taken")
    parser.add_argument("--json", type=Path, help="write all figures here, and a plot beside them (.svg)")
    parser.add_argument("--profile", action="store_true", help="print where our step's time goes, and nothing else")
    parser.add_argument("--curve", type=int, metavar="STEPS", help="losses of the compiled path and the reference path")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="train on N batches again and again")
    arguments = parser.parse_args()
    print(f"{machine(arguments.device)}, {time.strftime('%Y-%m-%d')}")
    results = {}
    for size in arguments.sizes or DEFAULTS[arguments.device]["sizes"]:
        work = work_of(size, arguments)
        if arguments.profile:
            results[size] = profiled = profile(work, arguments.device, arguments.threads)
            print(f"{size}: a step of {profiled['seconds']:.3f} s, {profiled['busy_seconds']:.3f} s of it busy")
            print(table(profiled))
        elif arguments.curve:
            results[size] = curve_of(work, arguments)
        else:
            results[size] = measure(work, arguments)
    if arguments.json:
        content = {"machine": machine(arguments.device), "date": time.strftime("%Y-%m-%d"), "results": results}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        unfinished = arguments.json.with_suffix(".unfinished")  # where the JSON is, it is whole
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(arguments.json)
        if not arguments.curve and not arguments.profile:
            arguments.json.with_suffix(".svg").write_text(bars(content), encoding="utf-8")


def work_of(size: str, arguments: argparse.Namespace) -> Work:
    defaults = DEFAULTS[arguments.device]
    length = arguments.sequence_length or defaults["sequence_length"]
    fitting = MICRO_BATCH_SIZES.get(size, 1) * 4096 // length if arguments.device == "cuda" else 1
    return Work(
        size=size,
        dtype=defaults["dtype"],
        sequence_length=length,
        micro_batch_size=arguments.micro_batch_size or max(fitting, 1),
        micro_batches=arguments.micro_batches,
        loss_chunk_tokens=defaults.get("loss_chunk_tokens", 2048),
        mean_document_tokens=arguments.document_tokens,
        options=tuple(arguments.set),
        distinct_steps=arguments.repeat,
    )


def measure(work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    variants = list(LAYOUTS) if arguments.layouts else arguments.variants or available(arguments.device)
    variants = [OURS, *(variant for variant in variants if variant != OURS)]
    measured = compare(work, variants, arguments.rounds, arguments.threads, arguments.device)
    peak = peak_flops(arguments.device, work.dtype, arguments.threads)
    report(work, measured, peak)
    return {
        "work": {**vars(work), "tokens": work.tokens},
        "recipe": work.recipe().to_dict(),
        "document_tokens": work.document_tokens(1),
        "peak_flops_per_second": peak,
        "variants": {variant: taken.to_dict(work, peak) for variant, taken in measured.items()},
    }


def curve_of(work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"{work.size}, {work.micro_batch_size} x {work.sequence_length} tokens, {arguments.curve} steps")
    curve = {"work": vars(work), **curves(work, arguments.curve, arguments.threads)}
    print(verdict(curve))
    if arguments.json:
        chart = arguments.json.with_name(f"{arguments.json.stem}-{work.size}.svg")
        chart.write_text(curve_chart(curve), encoding="utf-8")
    return curve


def machine(device: str) -> str:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(
                "error: --device cuda: torch sees no GPU here. Install torch's CUDA wheel on a GPU machine."
            )
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
