"""`python -m posttrain.seeds RECIPES --seeds 42 43 44`: the whole of post-training under several seeds, in one table.

Each seed orders the data of every phase anew and goes from the base model to the aligned one in `${RUN}/seeds/<seed>`;
the base model and all aligned ones are then evaluated on the held-out prompts.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foundation.errors import UserError
from posttrain.evaluate import MODES, Judged, Proportion, evaluate, load_prompts, summarise
from posttrain.generate import ChatModel, Sampling
from posttrain.recipe import load_recipe

PHASES = ("midtrain", "sft", "apo")


def train_chain(recipes: Path, seed: int) -> tuple[Path, float]:
    """All phases under one seed; returns the aligned model and the seconds that they took.

    Raises:
        UserError: a phase failed.
    """
    first = load_recipe(recipes / "midtrain.yaml")
    runs = f"{first.general.runs_path}/seeds/{seed}"
    source = first.model.model_name_or_path
    started = time.monotonic()
    for phase in PHASES:
        overrides = [f"general.runs_path={runs}", f"general.seed={seed}", f"data.seed={seed}", "wandb.mode=disabled"]
        overrides.append(f"model.model_name_or_path={source}")
        command = [sys.executable, "-m", "posttrain.launch", str(recipes / f"{phase}.yaml"), *overrides]
        if subprocess.run(command).returncode:
            raise UserError(f"Phase {phase} under seed {seed} failed; its message is above.")
        source = f"{runs}/hf/{phase}"
    return Path(source), time.monotonic() - started


def print_table(base: Sequence[Judged], chains: Sequence[Sequence[Judged]], console: Console) -> None:
    """Shares of the base model and of all chains together, with 95 % Wilson intervals, and each chain's own share."""
    table = Table("task", "mode", "what", "base", "post-trained", "per seed", title="% with 95 % intervals")
    per_chain = [summarise(judged) for judged in chains]
    before = summarise(base)
    for task, modes in summarise([item for judged in chains for item in judged]).items():
        for mode in MODES:
            for what, share in modes[mode].items():
                if task != "all" and what != "correct":
                    continue
                seeds = " ".join(f"{100 * summary[task][mode][what].value:.0f}" for summary in per_chain)
                table.add_row(task, mode, what, str(before[task][mode][what]), str(share), seeds)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m posttrain.seeds", description=__doc__)
    parser.add_argument("recipes", type=Path, help="folder of recipes, e.g. recipes/tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--prompts", type=Path, required=True, help="heldout.jsonl of posttrain.tiny_data")
    parser.add_argument("--json", type=Path, required=True, help="write the shares to this file")
    options = parser.parse_args(arguments)
    try:
        rows = load_prompts(options.prompts)
        first = load_recipe(options.recipes / "midtrain.yaml")
        base = _judge(first.model.model_name_or_path, rows, first.data.date_string)
        chains, seconds = [], []
        for seed in options.seeds:
            model, taken = train_chain(options.recipes, seed)
            chains.append(_judge(str(model), rows, first.data.date_string))
            seconds.append(taken)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(base, chains, Console())
    print(f"seconds per chain, start to finish: {', '.join(f'{taken:.0f}' for taken in seconds)}")
    content = {"seeds": options.seeds, "seconds": seconds, "base": _shares(base), "chains": [*map(_shares, chains)]}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _judge(model: str, rows: list[dict[str, object]], date: str) -> list[Judged]:
    chat_model = ChatModel.load(model, template_if_none="dual_mode")
    return evaluate(chat_model, rows, seeds=[0], sampling=Sampling(max_new_tokens=80), date=date)


def _shares(judged: Sequence[Judged]) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    def plain(shares: dict[str, Proportion]) -> dict[str, dict[str, object]]:
        return {what: share.to_dict() for what, share in shares.items()}

    return {task: {mode: plain(shares) for mode, shares in modes.items()} for task, modes in summarise(judged).items()}


if __name__ == "__main__":
    sys.exit(main())
