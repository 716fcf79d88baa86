"""Writes the files that stages leave in a run folder, with numbers that tests choose."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.results import DatasetInfo, Metric, ModelInfo, SuiteResult, TaskResult, write_json

WINDOW = 256


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_stage(
    folder: Path,
    first: int,
    last: int,
    mixture: Mapping[str, float],
    consumed: Mapping[str, int],
    held_out: Mapping[int, Mapping[str, float]] | None = None,
) -> None:
    """`held_out`: bits per byte by step and source."""
    rows: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        rows.append({"step": step, "loss": 8.0 - step / 100, "lr": 1e-3, "grad_norm": 1.0, "tokens": 100 * step,
                     "tokens_per_second": 50.0})  # fmt: skip
        if held_out and step in held_out:
            rows[-1]["validation_bits_per_byte"] = held_out[step]
    rows[-1]["data"] = {name: {"tokens": tokens, "epochs": 0.5} for name, tokens in consumed.items()}
    if held_out is None:
        rows[-1]["validation_bits_per_byte"] = {"held": 3.0 - last / 100}
    recipe = {
        "model": {"model_config": {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 64}},
        "parallelism": {"dp": 2, "tp": 1, "pp": 1},
        "tokens": {"sequence_length": WINDOW},
        "data_stages": [{"start_training_step": first, "mixture": dict(mixture)}],
    }
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def write_retrieval(run: Path, model: str, right: int, documents: int, length: int, too_long: int = 0) -> None:
    """The result of one needle task at one length."""
    task = TaskResult(
        task=f"ruler_niah_single_{length}", benchmark="ruler_niah_single", mode="plain",
        metrics=[Metric(name="string_match", value=right / documents, stderr=0.0, main=True)], chance=None,
        num_documents=documents, num_samples=1, num_unclosed_reasoning=0, num_over_length=too_long, seconds=1.0,
        dataset=DatasetInfo(repo="generated", subset="s", split="test", revision="1", edition="generated", sha256="0"),
        settings={"context_tokens": length}, fingerprint="f",
    )  # fmt: skip
    info = ModelInfo(
        name=model, path=model, weights_sha256="0", tokenizer_sha256="0", chat_template_sha256=None, num_parameters=1
    )
    result = SuiteResult(suite="long", model=info, tasks=[task], seconds=1, versions={}, command="", created="")
    write_json(result, run / "eval" / model / "long.json")


def share(successes: int, trials: int) -> dict[str, float]:
    """As capabilities.json has it; the interval does not matter to what reads successes and trials."""
    return {"successes": successes, "trials": trials, "value": successes / trials, "low": 0.25, "high": 0.75}


def summary(correct: Mapping[str, tuple[int, int]], followed: tuple[int, int], trials: int) -> dict[str, Any]:
    """`correct`: task -> successes (with thinking, without); `followed` likewise, over all tasks."""
    shares: dict[str, Any] = {}
    for task, successes in correct.items():
        shares[task] = {
            mode: {
                "correct": share(right, trials),
                "followed_mode": share(kept, trials),
                "ended": share(trials, trials),
            }
            for mode, right, kept in zip(("think", "no_think"), successes, followed, strict=True)
        }
    return shares


def write_capabilities(
    run: Path, models: Mapping[str, Mapping[str, Any]], replies: Sequence[Mapping[str, Any]] = ()
) -> None:
    content = {name: {"summary": shares, "replies": list(replies)} for name, shares in models.items()}
    write(run / "eval" / "capabilities.json", {"seeds": 1, "multi_step_tasks": ["chain"], "models": content})
