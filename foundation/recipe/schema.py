"""The recipe's sections and keys, in nanotron's spelling where nanotron has the key, each with meaning and unit."""

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from foundation.recipe.architecture import ModelConfig
from foundation.recipe.section import Section

# Blocks of a micro-batch that each context-parallel rank holds; model/sharding.py deals them out.
BLOCKS_PER_RANK = 4


class General(Section):
    project: str = Field(description="Name that groups runs, also the wandb project.")
    run: str = Field(description="Name of this run; its folder is <runs_path>/<run>.")
    runs_path: str = Field(description="Folder that holds the runs of one profile.")
    seed: int = Field(42, ge=0, description="Seed of initialisation. Data order has its own: data.seed.")

    @field_validator("run")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        """A folder in runs_path, and a part of wandb's id of the run, which excludes these characters."""
        if name in ("", ".", "..") or set(name) & set("/\\:;,#?'") or not name.isprintable():
            raise ValueError("It names a folder in general.runs_path: give it no / \\ : ; , # ? or '.")
        return name


class Parallelism(Section):
    dp: int = Field(1, ge=1, description="Data-parallel replicas.")
    pp: int = Field(1, ge=1, description="Pipeline stages.")
    tp: int = Field(1, ge=1, description="Tensor-parallel ranks; must divide num_key_value_heads.")
    context_parallel_size: int = Field(1, ge=1, description="Ranks that share the tokens of each sample.")
    pp_engine: Literal["1f1b", "afab"] = Field(
        "1f1b", description="Pipeline schedule: one forward one backward, or all forward all backward."
    )
    tp_mode: Literal["REDUCE_SCATTER", "ALL_REDUCE"] = Field(
        "REDUCE_SCATTER", description="REDUCE_SCATTER shards the sequence between the linear layers."
    )
    tp_linear_async_communication: bool = Field(
        True,
        description="Overlap tensor-parallel communication with the matrix products (REDUCE_SCATTER only).",
    )
    recompute_layer: bool = Field(False, description="Recompute each decoder layer's activations in the backward.")
    recompute_mlp: bool = Field(
        False, description="Recompute those of the MLP only: most of the memory, and none of a long window's attention."
    )
    loss_chunk_tokens: int = Field(2048, gt=0, description="Tokens whose logits exist at a time.")
    compile: Literal["auto"] | bool = Field(
        "auto", description="Compile the elementwise parts of layers and loss into one kernel each; auto: on GPUs."
    )
    hang_timeout_seconds: float = Field(
        18.0,
        gt=0,
        description="End the job, and name the rank, when one is silent or none makes progress for this long; steps "
        "that take longer by themselves get five times their own length, waiting for disks seventeen times this, the "
        "start sixty times.",
    )
    replica_check_interval: int | None = Field(
        100,
        gt=0,
        description="Compare ranks that must hold the same weights, bit for bit, every this many steps and before each "
        "save; null: never.",
    )
    layers_per_stage: list[int] | None = Field(
        None, description="Decoder layers on each pipeline stage; by default balanced by compute."
    )

    @property
    def world_size(self) -> int:
        return self.dp * self.pp * self.tp * self.context_parallel_size

    def __str__(self) -> str:
        cp = f" x cp {self.context_parallel_size}" if self.context_parallel_size > 1 else ""
        return f"dp {self.dp} x pp {self.pp} x tp {self.tp}{cp}"


class InitMethod(Section):
    std: float = Field(0.02, gt=0, description="Standard deviation of the normal initialisation.")


class Model(Section):
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16",
        description="Weights and activations; masters, gradients and Adam state are always float32.",
    )
    init_method: InitMethod = InitMethod()
    model_config_: ModelConfig = Field(alias="model_config", description="Architecture.")


class TrainTokenizer(Section):
    vocab_size: int = Field(gt=256)
    sources: list[str] = Field(min_length=1, description="Registry names of the sources that the BPE is trained on.")


class Tokenizer(Section):
    tokenizer_name_or_path: str = Field(description="Folder with tokenizer.json, or a hub name.")
    tokenizer_revision: str | None = None
    train: TrainTokenizer | None = Field(None, description="Train the tokenizer in data preparation if it is absent.")


class Tokens(Section):
    sequence_length: int = Field(gt=0, description="Tokens per sample.")
    train_steps: int = Field(gt=0, description="Last step of the whole schedule (steps count from 1).")
    stop_step: int | None = Field(None, gt=0, description="Last step of this segment; default train_steps.")
    micro_batch_size: int = Field(gt=0, description="Samples per micro-batch and data-parallel replica.")
    batch_accumulation_per_replica: int = Field(1, gt=0, description="Micro-batches per step and replica.")
    val_check_interval: int | None = Field(None, gt=0, description="Validate every this many steps.")
    limit_val_batches: int = Field(8, gt=0, description="Samples per validation source.")


class LearningRateScheduler(Section):
    """Warm-up, stable, decay; stateless: the learning rate is a function of the step alone."""

    learning_rate: float = Field(gt=0)
    lr_warmup_steps: int = Field(0, ge=0)
    lr_warmup_style: Literal["linear"] = "linear"
    lr_decay_style: Literal["linear", "cosine", "1-sqrt", "constant"]
    lr_decay_starting_step: int | None = Field(
        None, gt=0, description="First step of the decay; default: after warm-up."
    )
    lr_decay_steps: int | None = Field(None, gt=0, description="Length of the decay; default: to the last step.")
    min_decay_lr: float = Field(0.0, ge=0)


class Optimizer(Section):
    zero_stage: Literal[0, 1] = Field(description="1 shards fp32 masters and Adam state over data-parallel ranks.")
    weight_decay: float = Field(ge=0)
    weight_decay_exclude_named_params: list[str] = Field(
        [], description="Regular expressions on parameter names that get no weight decay."
    )
    clip_grad: float | None = Field(gt=0, description="Largest global gradient norm; null switches clipping off.")
    accumulate_grad_in_fp32: Literal[True] = Field(True, description="Gradients are always accumulated in float32.")
    adam_eps: float = Field(1e-8, gt=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    torch_adam_is_fused: bool = Field(True, description="Use torch's fused AdamW kernel.")
    learning_rate_scheduler: LearningRateScheduler

    @property
    def state_kinds(self) -> tuple[str, ...]:
        """What training keeps of every parameter in float32, as checkpoints name it: masters, then AdamW's moments."""
        return ("master", "exp_avg", "exp_avg_sq")

    @property
    def moments(self) -> tuple[str, ...]:
        """The kinds of state that the optimizer itself keeps."""
        return self.state_kinds[1:]

    def has_weight_decay(self, name: str) -> bool:
        """Whether the parameter of that name decays: no exclusion matches any part of it."""
        return not any(re.search(pattern, name) for pattern in self.weight_decay_exclude_named_params)


class Data(Section):
    path: str = Field(description="Folder that holds one folder of token shards per source.")
    seed: int = Field(ge=0, description="Seed of the data order.")
    chunk_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens that shuffling moves as one piece: the longest window in which this run, or a later one "
        "that goes on with its sources, reads them. Default: tokens.sequence_length.",
    )
    continue_from: str | None = Field(
        None,
        description="Run folder (or checkpoint) whose sources this run goes on with, each where that run left it; by "
        "default every source starts at its beginning.",
    )
    validation: list[str] = Field([], description="Held-out sources for bits per byte.")


class DataStage(Section):
    """A mixture and the step at which it takes over. Sources that stay go on where they stopped."""

    name: str
    start_training_step: int = Field(ge=1, description="First step of this mixture (steps count from 1).")
    mixture: dict[str, float] = Field(min_length=1, description="Source name -> share of the samples; sum 1.")
    normalize: bool = Field(False, description="Rescale weights that do not sum to 1, and say so.")

    def shares(self) -> dict[str, Fraction]:
        """Exact shares: the decimals as written, rescaled when `normalize` asks for it."""
        weights = {source: Fraction(repr(weight)) for source, weight in self.mixture.items()}
        total = sum(weights.values())
        return {source: weight / total for source, weight in weights.items()} if self.normalize else weights


class Checkpoints(Section):
    checkpoint_interval: int = Field(gt=0, description="Save every this many steps, and always at the last one.")
    resume_checkpoint_path: str | None = Field(
        None, description="Run folder whose last checkpoint this run continues when it has none of its own."
    )
    resume: Literal["auto", "required", "never"] = Field(
        "auto",
        description="auto: from the newest valid checkpoint, if any; required: there must be one; never: there must "
        "be none.",
    )
    keep_last: int | None = Field(None, ge=1, description="Keep only this many checkpoints; by default all.")
    keep_every_steps: int | None = Field(
        None, gt=0, description="With keep_last: keep those of every n-th step for ever."
    )
    checkpoints_path_is_shared_file_system: bool = Field(
        True, description="false: every machine has a run folder of its own, and holds the files of its own ranks."
    )
    remote_path: str | None = Field(
        None, description="URL for fsspec, s3://bucket/folder: each checkpoint is also uploaded to <remote_path>/<run>."
    )
    keep_local: bool = Field(
        True, description="With remote_path: false deletes uploaded checkpoints here, all but the newest."
    )
    accept_changes: list[str] = Field(
        [],
        description="Keys or sections of the recipe that may differ from the continued checkpoint's although that "
        "changes the result, as the refusal names them (global_batch_size, data_stages); the ledger keeps account.",
    )
    load_weights_path: str | None = Field(
        None, description="Run folder whose last weights this run starts from, at step 1 and with fresh Adam state."
    )


class Spikes(Section):
    """What to do about a loss that jumps up."""

    action: Literal["off", "warn", "stop"] = Field(
        "warn", description="stop: end the run before its next checkpoint; `smollm3 rewind` goes on."
    )
    window_steps: int = Field(100, ge=10, description="Steps before that a loss is compared with.")
    sigmas: float = Field(8.0, gt=0, description="Robust standard deviations above their median that make a spike.")


class Logging(Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    iteration_step_info_interval: int = Field(1, gt=0, description="Print to the console every this many steps.")
    log_samples: bool = Field(
        False, description="Write source and window number of every sample to samples.jsonl, one line per step."
    )


class Wandb(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online when logged in and reachable, else offline; never a prompt."
    )


class Recipe(Section):
    """A resolved pretraining recipe."""

    general: General
    parallelism: Parallelism
    model: Model
    tokenizer: Tokenizer
    tokens: Tokens
    optimizer: Optimizer
    data: Data
    data_stages: list[DataStage] = Field(min_length=1)
    checkpoints: Checkpoints
    spikes: Spikes = Spikes()
    logging: Logging = Logging()
    wandb: Wandb = Wandb()

    @property
    def architecture(self) -> ModelConfig:
        """`model.model_config` (pydantic reserves that very name)."""
        return self.model.model_config_

    @property
    def run_folder(self) -> Path:
        return Path(self.general.runs_path) / self.general.run

    @property
    def last_step(self) -> int:
        """Last step of this segment, 1-based."""
        return self.tokens.stop_step or self.tokens.train_steps

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all data-parallel replicas."""
        return self.tokens.micro_batch_size * self.tokens.batch_accumulation_per_replica * self.parallelism.dp

    @property
    def chunk_tokens(self) -> int:
        """Tokens that shuffling moves as one piece."""
        return self.data.chunk_tokens or self.tokens.sequence_length

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.tokens.sequence_length

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: everything that training keeps of the parameters, in float32."""
        return 4 * len(self.optimizer.state_kinds) * self.architecture.num_parameters()

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML-able mapping of the resolved recipe."""
        return self.model_dump(mode="json", by_alias=True)

    def identity(self) -> dict[str, Any]:
        """Only what shapes the resulting weights: not where files lie, how the work is split, or what is logged."""
        full = self.to_dict()
        return {
            "seed": full["general"]["seed"],
            "model": full["model"],
            "sequence_length": full["tokens"]["sequence_length"],
            "train_steps": full["tokens"]["train_steps"],
            "global_batch_size": self.global_batch_size,
            "optimizer": {
                key: value
                for key, value in full["optimizer"].items()
                if key not in ("zero_stage", "torch_adam_is_fused")
            },
            "data_seed": full["data"]["seed"],
            "chunk_tokens": self.chunk_tokens,
            "data_stages": full["data_stages"],
        }

    def hash(self) -> str:
        """Hex digest of `identity()`: equal for two recipes that train the same weights."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
