"""Summary of a pretraining run, printed and as JSON.

What each stage did (steps, tokens, loss at start and end), held-out bits per byte of the final model beside two
baselines that know no grammar, and a few lines that the exported model writes.
"""

import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from rich import box
from rich.table import Table

from foundation.errors import UserError
from foundation.journal import METRICS_FILE, read_metrics, rows_from_end, tokens_per_step
from foundation.paths import plain_name
from foundation.pretrained import load_model, load_tokenizer
from foundation.recipe.loading import read_tree
from foundation.terminal import Terminal

PROMPTS = ("The history of", "def read(self, path):\n    ", "La première", "Question: What is 12 + 30?")
SAMPLE_TOKENS = 48
FIRST_AND_LAST_STEPS = 10  # losses are means over so many steps: single steps are noisy


@dataclass(frozen=True)
class StageSummary:
    stage: str
    first_step: int
    last_step: int
    tokens: int
    first_loss: float  # nats per token
    last_loss: float
    tokens_per_second: float
    minutes: float


@dataclass(frozen=True)
class HeldOut:
    source: str
    bytes: int
    model: float  # all three in bits per byte
    unigram: float
    gzip: float


class SummaryError(UserError):
    """A run folder that cannot be summarised."""


def summarise_stage(run_folder: Path) -> StageSummary:
    rows = read_metrics(run_folder)
    if not rows:
        raise SummaryError(
            f"{run_folder / METRICS_FILE} has no row; give the folders of finished stages, such as runs/tiny/stage1."
        )
    tokens = tokens_per_step(rows)
    seconds = sum(count / row["tokens_per_second"] for row, count in zip(rows, tokens, strict=True))
    losses = [row["loss"] for row in rows]
    return StageSummary(
        stage=run_folder.name,
        first_step=rows[0]["step"],
        last_step=rows[-1]["step"],
        tokens=round(sum(tokens)),
        first_loss=float(np.mean(losses[:FIRST_AND_LAST_STEPS])),
        last_loss=float(np.mean(losses[-FIRST_AND_LAST_STEPS:])),
        tokens_per_second=sum(tokens) / seconds,
        minutes=seconds / 60,
    )


def held_out(run_folder: Path, tokenizer: Any) -> list[HeldOut]:
    """The last validation of a run, beside baselines on the same held-out text.

    unigram: tokens drawn independently with the frequencies of the training tokens (add-one smoothed).
    gzip: level 9 over the whole held-out text.
    """
    rows = rows_from_end(run_folder / METRICS_FILE)
    measured = next((row for row in rows if "validation_bits_per_byte" in row), None)
    if measured is None:
        return []
    recipe = read_tree(run_folder / "recipe.yaml")
    data = Path(recipe["data"]["path"])
    sources = {name for stage in recipe["data_stages"] for name in stage["mixture"]}
    counts: Counter[int] = Counter()
    for source in sources:
        ids, occurrences = np.unique(_tokens(data / source), return_counts=True)
        counts.update(dict(zip(ids.tolist(), occurrences.tolist(), strict=True)))
    total = sum(counts.values()) + recipe["model"]["model_config"]["vocab_size"]
    results = []
    for source, bits in measured["validation_bits_per_byte"].items():
        tokens = _tokens(data / source)
        text = tokenizer.decode(tokens, skip_special_tokens=True).encode()
        unigram_bits = -sum(math.log2((counts[token] + 1) / total) for token in tokens.tolist())
        results.append(
            HeldOut(source, len(text), bits, unigram_bits / len(text), 8 * len(gzip.compress(text, 9)) / len(text))
        )
    return results


def _tokens(folder: Path) -> Any:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    dtype = np.dtype(f"<u{manifest['token_bytes']}")
    return np.concatenate([np.fromfile(folder / plain_name(file["name"]), dtype) for file in manifest["files"]])


def samples(model_folder: Path, tokenizer: Any) -> list[str]:
    """Greedy continuations of PROMPTS by the exported model."""
    transformers.logging.disable_progress_bar()
    model: Any = load_model(model_folder)
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(
            **inputs,
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=False,
            repetition_penalty=1.2,
            pad_token_id=model.config.pad_token_id,
        )
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def show(stages: list[StageSummary], results: list[HeldOut], texts: list[str]) -> None:
    console = Terminal()
    table = Table(title="Pretraining", title_justify="left", box=box.SIMPLE)
    for column in ("stage", "steps", "tokens", "loss at start", "loss at end", "tokens/s", "minutes"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages:
        table.add_row(
            stage.stage,
            f"{stage.first_step}-{stage.last_step}",
            f"{stage.tokens:,}",
            f"{stage.first_loss:.3f}",
            f"{stage.last_loss:.3f}",
            f"{stage.tokens_per_second:,.0f}",
            f"{stage.minutes:.1f}",
        )
    console.print(table)
    table = Table(title="Held-out bits per byte (lower is better)", title_justify="left", box=box.SIMPLE)
    for column in ("source", "bytes", "model", "unigram", "gzip"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for row in results:
        table.add_row(row.source, f"{row.bytes:,}", f"{row.model:.3f}", f"{row.unigram:.3f}", f"{row.gzip:.3f}")
    console.print(table)
    for text in texts:
        console.print(f"> {text}\n", highlight=False, markup=False)


def summarise(runs: Sequence[Path], model: Path, out: Path) -> None:
    """Write the summary of the stages `runs`, whose last one was exported as `model`, to `out`, and print it.

    Raises:
        SummaryError: for a run folder that has trained nothing.
    """
    stages = [summarise_stage(run) for run in runs]
    tokenizer = load_tokenizer(model)
    results = held_out(runs[-1], tokenizer)
    texts = samples(model, tokenizer)
    content = {"stages": [asdict(s) for s in stages], "held_out": [asdict(r) for r in results], "samples": texts}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(stages, results, texts)
