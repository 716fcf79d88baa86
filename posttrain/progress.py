"""What a run tells while it trains: metrics.jsonl in full precision, wandb, a console line with ETA, its own guards."""

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foundation.hf_folder import finish_folder
from foundation.journal import METRICS_FILE, StepLog, last_row
from foundation.wandb_run import Wandb
from posttrain.recipe import PostTrainingRecipe


class TrainingFailure(RuntimeError):
    """A run that cannot go on; the message says what to change."""


class MetricsWriter(TrainerCallback):
    """One JSON object per step in the run folder and in wandb; after a resume, steps trained again are written again.

    `tokens` counts the tokens that the forward passes saw since step 1, over all processes.
    """

    CONSOLE_SECONDS = 5.0

    def __init__(self, recipe: PostTrainingRecipe, tracking_mode: str = "disabled") -> None:
        """`tracking_mode` is that of wandb."""
        self.recipe, self.tracking_mode = recipe, tracking_mode
        self.log: StepLog | None = None  # on the main process, as the next
        self.wandb: Wandb | None = None
        self.tokens_before_resume = 0
        self.first_step = 0
        self.started = self.last_step_ended = self.last_printed = 0.0
        self.last_tokens = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.first_step = state.global_step
        self.started = self.last_step_ended = time.monotonic()
        if not state.is_world_process_zero:
            return
        file = self.recipe.run_folder / METRICS_FILE
        row = last_row(file, up_to_step=state.global_step) or {"step": 0, "tokens": 0}
        if row["step"] != state.global_step:
            print(
                f"{file} has no row of step {state.global_step}: tokens count on from step {row['step']}.", flush=True
            )
        self.tokens_before_resume = self.last_tokens = row["tokens"]
        self.log = StepLog(file, state.global_step)
        self.wandb = Wandb(self.recipe, self.tracking_mode, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.log is not None:
            self.log.sync()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.log is not None:
            self.log.close()
        if self.wandb is not None:
            self.wandb.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        if self.log is not None and self.wandb is not None:
            self._write(self.log, self.wandb, logs, state)
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):  # on all processes alike
            raise TrainingFailure(
                f"Step {state.global_step}: loss {logs['loss']}, gradient norm {logs['grad_norm']}. "
                "Lower optimizer.learning_rate; the last checkpoint is kept."
            )

    def _write(self, log: StepLog, wandb: Wandb, logs: dict[str, Any], state: TrainerState) -> None:
        now = time.monotonic()
        tokens = self.tokens_before_resume + int(logs["num_tokens"])
        line = {
            "step": state.global_step,
            "epoch": state.epoch,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "tokens": tokens,
            "tokens_per_second": (tokens - self.last_tokens) / (now - self.last_step_ended),
        }
        named = {"num_tokens", "learning_rate", "epoch"}
        line |= {key: value for key, value in logs.items() if key not in line and key not in named}
        log.write(line)
        wandb.log(line)
        self.last_step_ended, self.last_tokens = now, tokens
        if now - self.last_printed >= self.CONSOLE_SECONDS or state.global_step == state.max_steps:
            self.last_printed = now
            self._print(line, state, now)

    def _print(self, line: dict[str, Any], state: TrainerState, now: float) -> None:
        remaining = state.max_steps - state.global_step
        seconds = remaining * (now - self.started) / max(1, state.global_step - self.first_step)
        margin = f"  margin {line['rewards/margins']:.3f}" if "rewards/margins" in line else ""
        print(
            f"step {line['step']}/{state.max_steps}  epoch {line['epoch']:.2f}  loss {line['loss']:.4f}{margin}  "
            f"lr {line['lr']:.2e}  grad norm {line['grad_norm']:.2f}  {line['tokens_per_second']:,.0f} tokens/s  "
            f"ETA {int(seconds // 60)}:{int(seconds % 60):02d}",
            flush=True,
        )


class StartsAtReference(TrainerCallback):
    """apo_zero is exactly 1 while policy and reference are equal; anything else at step 1 is a wrong reference."""

    TOLERANCE = 0.02  # bf16 log-probabilities of long completions, computed in differently padded batches

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and state.global_step == 1 and "loss" in logs and abs(logs["loss"] - 1) > self.TOLERANCE:
            raise TrainingFailure(
                f"The first loss is {logs['loss']:.4f}, not 1: policy and reference differ before any training. "
                "Is model.model_name_or_path a complete model?"
            )


class FinishesCheckpoints(TrainerCallback):
    """A checkpoint is a model folder too: a member of a soup, or what a user looks at before the run is over."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and (folder / "config.json").is_file():  # FSDP's shards have none
            finish_folder(folder)
