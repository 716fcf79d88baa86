"""The whole of post-training under several seeds, in one table.

Each seed orders the data of every phase anew and goes from the base model to the aligned one in `${RUN}/seeds/<seed>`;
the base model and all aligned ones are then evaluated on the held-out prompts.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foundation.errors import UserError
from foundation.files import write_atomically
from foundation.terminal import Terminal
from posttrain.evaluate import MODES, Judged, Proportion, evaluate, load_prompts, summarise
from posttrain.generate import ChatModel, Sampling
from posttrain.launch import training_command
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
        command, environment = training_command([recipes / f"{phase}.yaml"], overrides)
        if subprocess.run(command, env=environment).returncode:
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


def run_seeds(recipes: Path, seeds: Sequence[int], prompts: Path, out: Path) -> None:
    """Train under every seed, evaluate on `prompts`, print the shares and write them to `out`.

    Raises:
        UserError: a wrong recipe or prompt file, before anything is trained; or a phase that failed.
    """
    rows = load_prompts(prompts)
    first = load_recipe(recipes / "midtrain.yaml")
    base = _judge(first.model.model_name_or_path, rows, first.data.date_string)
    chains, seconds = [], []
    for number, seed in enumerate(seeds, 1):
        print(f"== [{number}/{len(seeds)}] seed {seed}", flush=True)
        model, taken = train_chain(recipes, seed)
        chains.append(_judge(str(model), rows, first.data.date_string))
        seconds.append(taken)
    print_table(base, chains, Terminal())
    print(f"seconds per chain, start to finish: {', '.join(f'{taken:.0f}' for taken in seconds)}")
    content = {"seeds": list(seeds), "seconds": seconds, "base": _shares(base), "chains": [*map(_shares, chains)]}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(content, indent=1) + "\n")


def _judge(model: str, rows: list[dict[str, object]], date: str) -> list[Judged]:
    chat_model = ChatModel.load(model, template_if_none="dual_mode")
    return evaluate(chat_model, rows, seeds=[0], sampling=Sampling(max_new_tokens=80), date=date)


def _shares(judged: Sequence[Judged]) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    def plain(shares: dict[str, Proportion]) -> dict[str, dict[str, object]]:
        return {what: share.to_dict() for what, share in shares.items()}

    return {task: {mode: plain(shares) for mode, shares in modes.items()} for task, modes in summarise(judged).items()}
