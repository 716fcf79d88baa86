"""Does the long-context recipe lengthen a context? `python bench/long_context.py --seeds 3` (make bench-long-context).

A model of 0.2 M parameters learns, in windows of 256 tokens, to say which facts a document held. Then it is lengthened
as SmolLM3 was: two phases of further training from the weights of the one before, with fresh Adam state, a tenth of the
learning rate and a cosine to 0, on longer windows at a larger rotary theta (1,024 tokens at theta x 30, then 2,048 at
x 100: the steps of recipes/tiny/long_context_*.yaml); and YaRN with factor 2 beyond, without training. Each phase has
102,400 tokens. The control spends the same tokens with the same two schedules on windows of 256 at the old theta.

A document is filling (16 words, over and over) with facts hidden in it, and ends with a question for each: the fact's
kind, to be answered with the fact, one of 16 of that kind. So knowing everything but the document scores 1/16 = 6.25 %.
*passkey*: a document with one fact. *multi-needle*: with eight, of different kinds. Two ablations go through all of it:
rotary in every layer (no NoPE), and attention across the documents of a window (no document mask).
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foundation.recipe import Recipe
from nanotron_ext.data.loader import MicroBatch, StepBatch
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.export import stretched
from nanotron_ext.model.documents import Documents
from nanotron_ext.train.step import TrainState

KINDS, FACTS_PER_KIND, FILLING_WORDS = 8, 16, 16
FIRST_QUESTION = 8
FIRST_FACT = FIRST_QUESTION + KINDS
FIRST_WORD = FIRST_FACT + KINDS * FACTS_PER_KIND
VOCABULARY = FIRST_WORD + FILLING_WORDS

ARMS: dict[str, dict[str, Any]] = {
    "as SmolLM3": {},
    "rotary in every layer": {"no_rope_layer_interval": 0},
    "no document mask": {"document_mask": False},
}
WINDOW, THETA = 256, 10_000.0
# name: windows, window, theta, steps, peak learning rate, document lengths
PRETRAINING = (4, WINDOW, THETA, 600, 3e-3, (32, 32, 64, 128, 256))
PHASES = {
    "1,024 at theta x 30": (1, 1024, 30 * THETA, 100, 3e-4, (64, 256, 512, 1024)),
    "2,048 at theta x 100": (1, 2048, 100 * THETA, 50, 3e-4, (64, 512, 1024, 2048)),
}
CONTROLS = ((4, WINDOW, THETA, 100, 3e-4, (32, 32, 64, 128, 256)),) * 2
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
PASSKEY_DOCUMENTS, NEEDLE_DOCUMENTS = 16, 3

Run = tuple[int, int, float, int, float, tuple[int, ...]]
Weights = dict[str, torch.Tensor]


def document(rng: random.Random, tokens: int, facts: int) -> list[int]:
    """`tokens` tokens; the last 2 x `facts` are questions, each followed by its answer."""
    kinds = rng.sample(range(KINDS), facts)
    held = {kind: FIRST_FACT + kind * FACTS_PER_KIND + rng.randrange(FACTS_PER_KIND) for kind in kinds}
    first_word = rng.randrange(FILLING_WORDS)
    text = [FIRST_WORD + (first_word + i) % FILLING_WORDS for i in range(tokens - 3 * facts)]
    for kind in kinds:
        text.insert(rng.randint(0, len(text)), held[kind])
    for kind in rng.sample(kinds, facts):
        text += [FIRST_QUESTION + kind, held[kind]]
    return text


def is_question(ids: torch.Tensor) -> torch.Tensor:
    return (ids >= FIRST_QUESTION) & (ids < FIRST_FACT)


def batches(run: Run, document_mask: bool, seed: int) -> Iterator[StepBatch]:
    """Windows packed with documents; only answers are trained."""
    windows, window, _, steps, _, lengths = run
    rng = random.Random(f"{window}/{seed}")
    for step in range(1, steps + 1):
        text: list[int] = []
        pieces: list[int] = []
        for _ in range(windows):
            left = window
            while left:
                pieces.append(min(left, rng.choice(lengths)))
                left -= pieces[-1]
                text += document(rng, pieces[-1], rng.choice((1, 4, 8)))
        ids = torch.tensor(text, dtype=torch.int32)
        asked = is_question(ids)
        samples = torch.cat([ids.view(windows, window), torch.zeros(windows, 1, dtype=torch.int32)], dim=1)
        borders = pieces if document_mask else [window] * windows
        micro_batch = MicroBatch(samples, (~asked).nonzero().flatten(), borders)
        yield StepBatch(step, 0, [micro_batch], int(asked.sum()))


def recipe_for(run: Run, architecture: dict[str, Any], seed: int) -> Recipe:
    windows, window, theta, steps, learning_rate, _ = run
    is_pretraining = run is PRETRAINING
    return Recipe.model_validate(
        {
            "general": {"project": "bench", "run": "bench", "runs_path": "unused", "seed": seed},
            "parallelism": {},
            "model": {
                "dtype": "float32",
                "init_method": {"std": 0.05},
                "model_config": {
                    "vocab_size": VOCABULARY,
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": window,
                    "rope_theta": theta,
                    "eos_token_id": 1,
                    **architecture,
                },
            },
            "tokenizer": {"tokenizer_name_or_path": "unused"},
            "tokens": {"sequence_length": window, "train_steps": steps, "micro_batch_size": windows},
            "optimizer": {
                "zero_stage": 0,
                "weight_decay": 0.1,
                "weight_decay_exclude_named_params": [r"token_embedding\.weight$"],
                "clip_grad": 1.0,
                "learning_rate_scheduler": {
                    "learning_rate": learning_rate,
                    "lr_warmup_steps": 20 if is_pretraining else 4,
                    "lr_decay_style": "linear" if is_pretraining else "cosine",
                    "lr_decay_starting_step": steps * 2 // 3 if is_pretraining else None,
                },
            },
            "data": {"path": "unused", "seed": 0},
            "data_stages": [{"name": "only", "start_training_step": 1, "mixture": {"source": 1.0}}],
            "checkpoints": {"checkpoint_interval": steps},
        }
    )


def build(recipe: Recipe, weights: Weights | None) -> TrainState:
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 1), device)
    if weights is not None:
        for slot, start, master in state.optimizer.state("master"):
            master.copy_(weights[slot.entry.name][start : start + len(master)])
        state.optimizer.masters_to_model()
    return state


def trained(recipe: Recipe, run: Run, weights: Weights | None) -> Weights:
    """Weights after the run, flat, by name."""
    state = build(recipe, weights)
    for batch in batches(run, recipe.architecture.document_mask, recipe.general.seed):
        state.train_step(batch)
    return {slot.entry.name: master.clone() for slot, _, master in state.optimizer.state("master")}


@torch.no_grad()
def accuracies(recipe: Recipe, weights: Weights) -> dict[str, dict[str, float]]:
    """Task -> length -> percent of questions answered right, on the same documents for every model."""
    model = build(recipe, weights).model
    found: dict[str, dict[str, float]] = {}
    for task, facts, count in (("passkey", 1, PASSKEY_DOCUMENTS), ("multi-needle", KINDS, NEEDLE_DOCUMENTS)):
        for length in LENGTHS:
            rng = random.Random(f"{task}/{length}/{recipe.general.seed}")
            right = []
            for _ in range(count):
                ids = torch.tensor(document(rng, length, facts))
                answers = model.logits(ids, Documents.from_lengths([length])).argmax(dim=1)
                asked = is_question(ids).nonzero().flatten()
                right += (answers[asked] == ids[asked + 1]).tolist()
            found.setdefault(task, {})[str(length)] = 100 * sum(right) / len(right)
    return found


def go_through(architecture: dict[str, Any], seed: int) -> dict[str, Any]:
    """Accuracies after every part of the recipe, and of the control."""
    recipe = recipe_for(PRETRAINING, architecture, seed)
    pretrained = trained(recipe, PRETRAINING, None)
    found = {"256 (pretrained)": accuracies(recipe, pretrained)}
    control = pretrained
    for run in CONTROLS:
        control = trained(recipe_for(run, architecture, seed), run, control)
    found["control: 256 again"] = accuracies(recipe, control)
    weights = pretrained
    for name, run in PHASES.items():
        recipe = recipe_for(run, architecture, seed)
        weights = trained(recipe, run, weights)
        found[name] = accuracies(recipe, weights)
    longer = recipe.model.model_copy(update={"model_config_": stretched(recipe.architecture, 2.0)})
    found["the same with YaRN x 2"] = accuracies(recipe.model_copy(update={"model": longer}), weights)
    return found


def table(results: dict[str, Any], arm: str, task: str) -> list[str]:
    """Mean over seeds, and the range in brackets where they differ."""
    lines = [f"| {task} | {' | '.join(f'{length:,}' for length in LENGTHS)} |", "| --- " * (len(LENGTHS) + 1) + "|"]
    seeds = list(results[arm].values())
    for part in seeds[0]:
        cells = []
        for length in LENGTHS:
            values = [seed[part][task][str(length)] for seed in seeds]
            spread = f" ({min(values):.0f}-{max(values):.0f})" if max(values) > min(values) else ""
            cells.append(f"{statistics.mean(values):.0f}{spread}")
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/long_context.json"), help="what is there is kept")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            if str(seed) in results.setdefault(arm, {}):
                continue
            started = time.perf_counter()
            results[arm][str(seed)] = go_through(ARMS[arm], seed)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{arm}, seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for arm in arguments.arms:
        print(f"\n### {arm}\n")
        for task in ("passkey", "multi-needle"):
            print("\n".join(table(results, arm, task)) + "\n")
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
