"""What bfloat16 costs where the model is sure of itself: gradients and losses of confident tokens (`make bench-loss`).

The gradient at a label is weight x (p - 1). Two ways in bfloat16: weight x p is rounded and then the weight is
subtracted, as an earlier release did on GPUs, or as this trainer computes it, compiled and as written. Beside float64,
of each: the root mean square of the relative error over tokens, and the sum over tokens by the exact sum, which shows
a bias. Then the same ways train on one batch again and again, until its labels are predicted with confidence.

    python bench/loss.py --results results
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from step import machine
from stepbench.curves import FUSED, REFERENCE, ROUNDED, ROUNDED_FIRST, curves, label_gradient_from_rounded_numbers
from stepbench.work import Work

from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.elementwise import Elementwise
from nanotron_ext.model.loss import linear_cross_entropy

PROBABILITIES = (0.5, 0.9, 0.99, 0.998, 0.999, 0.9999)
TOKENS, VOCABULARY = 64, 128_256  # of each probability
CURVE_STEPS = 480
WEIGHT = 1 / 2_359_296  # of a token of the 3B run's global batch


def confident_logits() -> tuple[torch.Tensor, torch.Tensor]:
    """bfloat16 logits `[tokens, vocabulary]` whose labels have the probabilities up to rounding; and the labels."""
    generator = torch.Generator().manual_seed(0)
    count = len(PROBABILITIES) * TOKENS
    logits = torch.randn(count, VOCABULARY, generator=generator)
    labels = torch.randint(0, VOCABULARY, (count,), generator=generator)
    wanted = torch.tensor(PROBABILITIES).repeat_interleave(TOKENS)
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    logits.scatter_(1, labels[:, None], (torch.logit(wanted.double()).float() + others)[:, None])
    return logits.bfloat16(), labels


def gradients(logits: torch.Tensor, labels: torch.Tensor, compiled: bool) -> torch.Tensor:
    """Of each token's label, `[tokens]`: with one-hot hidden states the head's rows are the logits."""
    initialize_distributed()
    group = ParallelContext(1, 1, 1).tp_pg
    weight = logits.t().contiguous().requires_grad_()
    one_hot, token_weights = torch.eye(len(labels), dtype=logits.dtype), torch.full((len(labels),), WEIGHT)
    linear_cross_entropy(one_hot, weight, labels, token_weights, group, 2048, Elementwise(compiled)).backward()
    assert weight.grad is not None
    return weight.grad[labels, torch.arange(len(labels))].double()


def cells(found: torch.Tensor, exact: torch.Tensor) -> list[str]:
    percent = 100 * float(((found - exact) / exact).square().mean().sqrt())
    return [f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %", f"{abs(found.sum() / exact.sum()):.4f}"]


def gradient_table() -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each probability's errors, by way."""
    logits, labels = confident_logits()
    label_logits = logits.double().gather(1, labels[:, None]).squeeze(1)
    others = logits.double().scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    exact = -WEIGHT * torch.sigmoid(others - label_logits)
    with label_gradient_from_rounded_numbers():
        before = gradients(logits, labels, compiled=True)
    found = [before, gradients(logits, labels, compiled=True), gradients(logits, labels, compiled=False)]
    rows = []
    for index, probability in enumerate(PROBABILITIES):
        part = slice(index * TOKENS, (index + 1) * TOKENS)
        rows.append([f"{probability:g}", *(cell for way in found for cell in cells(way[part], exact[part]))])
    columns = ["p of the label"]
    for way in ("rounded, then subtracted", "compiled", "as written"):
        columns += [f"{way}: error", "sum / exact sum"]
    return columns, rows


def curve_table() -> tuple[list[str], list[list[str]]]:
    """Columns and rows: losses of every path at some steps on one batch."""
    work = Work("tiny", "bfloat16", 256, 1, 1, loss_chunk_tokens=512, mean_document_tokens=200, distinct_steps=1)
    losses = curves(work, CURVE_STEPS, threads=1)["losses"]
    paths = (REFERENCE, FUSED, ROUNDED, ROUNDED_FIRST)
    rows = [
        [str(step), *(f"{losses[path][step - 1]:.3g}" for path in paths)]
        for step in range(CURVE_STEPS // 8, CURVE_STEPS + 1, CURVE_STEPS // 8)
    ]
    return ["step", *paths], rows


TABLES = {"label_gradients": gradient_table, "low_loss": curve_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="write the tables to files of this folder")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    arguments = parser.parse_args()
    for name in arguments.tables:
        columns, rows = TABLES[name]()
        print("\n".join(" | ".join(row) for row in (columns, *rows)))
        if arguments.results:
            content: dict[str, Any] = {
                "measured": time.strftime("%Y-%m"),
                "machine": machine("cpu"),
                "command": "python bench/loss.py --results results",
                "columns": columns,
                "align": ["right"] * len(columns),
                "rows": rows,
            }
            (arguments.results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
