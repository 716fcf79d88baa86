"""Recipes of the post-training phases: the same files, overrides and error messages as the pretraining recipes."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from huggingface_hub import constants
from pydantic import Field

from foundation.errors import UserError
from foundation.recipe import Problem, Section, load_as
from foundation.recipe.schema import General, Wandb

TemplateName: TypeAlias = Literal["dual_mode", "chatml"]
_NOT_IDENTITY = {"general": ("project", "run", "runs_path"), "optimizer": ("micro_batch_size",), "data": ("num_proc",)}


class MissingInputError(UserError):
    """A model folder or a local data set that a recipe names and that is not there."""


class Model(Section):
    model_name_or_path: str = Field(description="Transformers folder or hub name of the model to start from.")
    model_revision: str | None = None
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "sdpa", description="flash_attention_2 or _3 for long packed sequences; sdpa builds a dense mask of length^2."
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Type of the matrix products (autocast). Weights and Adam state are always float32."
    )


class DataSet(Section):
    """One member of the mixture: a hub dataset, or a local file or folder of the same schema."""

    path: str = Field(description="Hub name, or a .jsonl/.parquet file, or a folder holding <split>.jsonl/.parquet.")
    name: str | None = Field(None, description="Configuration of a hub dataset.")
    split: str = "train"
    revision: str | None = Field(None, description="Commit of a hub dataset.")
    weight: float = Field(1.0, gt=0, le=1, description="Fraction of the set that is used.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Template arguments of every row; a row's own chat_template_kwargs win."
    )

    def local_file(self) -> Path | None:
        """The file that holds the set; None when `path` is the name of a hub dataset.

        Raises:
            MissingInputError: it is a path, and nothing is there.
        """
        path = Path(self.path)
        if not (path.exists() or path.is_absolute() or path.suffix or self.path.count("/") > 1):
            return None
        candidates = [path] if path.suffix else [path / f"{self.split}{suffix}" for suffix in (".jsonl", ".parquet")]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise MissingInputError(
            f"There is no {' or '.join(map(str, candidates))}. Correct data.datasets.path, or write the file "
            "(`smollm3 posttrain-data` writes the sets of the tiny profile)."
        )

    @property
    def label(self) -> str:
        """Short name for reports."""
        return self.split if self.name else f"{Path(self.path).stem}"

    @property
    def source(self) -> str:
        """Where its rows are: the file, or hub name, configuration and split."""
        file = self.local_file()
        return str(file) if file else f"{self.path} {self.name or ''} {self.split}"


class Data(Section):
    datasets: list[DataSet] = Field(min_length=1)
    seed: int = Field(ge=0, description="Seed of subsampling and order.")
    chat_template: TemplateName = Field("dual_mode", description="dual_mode, or chatml for mid-training.")
    date_string: str = Field(description="The date printed in every training sample; a constant of the run.")
    max_length: int = Field(gt=0, description="Tokens per packed sequence, or per prompt and completion in apo.")
    packing_strategy: Literal["bfd", "wrapped"] | None = Field(
        None, description="bfd keeps samples whole (SFT), wrapped lets them run on (mid-training), null pads."
    )
    assistant_only_loss: bool = Field(True, description="Loss on assistant turns only; false trains every token.")
    max_lost_fraction: float = Field(
        0.02, ge=0, lt=1, description="Largest fraction of a set that may be dropped or cut before the run refuses."
    )
    num_proc: int = Field(1, gt=0, description="Processes that render and tokenize.")


class Optimizer(Section):
    learning_rate: float = Field(gt=0, description="Peak; cosine to learning_rate x min_lr_rate after the warm-up.")
    min_lr_rate: float = Field(0.1, ge=0, le=1)
    warmup_ratio: float = Field(ge=0, lt=1, description="Warm-up as a fraction of all steps.")
    num_train_epochs: int = Field(gt=0)
    global_batch_size: int = Field(gt=0, description="Packed sequences (or pairs) per step over all processes.")
    micro_batch_size: int = Field(1, gt=0, description="Packed sequences (or pairs) per process and forward pass.")
    max_grad_norm: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    activation_checkpointing: bool = False


class Parallelism(Section):
    fsdp: bool = Field(
        False,
        description="With several processes: shard float32 weights, gradients and Adam state over them (FSDP2).",
    )


class Apo(Section):
    beta: float = Field(0.05, gt=0, description="Scale of the log-ratios between policy and reference.")


class Checkpoints(Section):
    checkpoint_interval: int = Field(gt=0, description="Save every this many steps, and always at the last one.")
    keep_last: int | None = Field(None, gt=0, description="Keep only so many; null keeps all, for a later soup.")


class PostTrainingRecipe(Section):
    """A resolved recipe of one phase."""

    phase: Literal["midtrain", "sft", "apo"]
    general: General
    model: Model
    data: Data
    optimizer: Optimizer
    parallelism: Parallelism = Parallelism()
    apo: Apo | None = Field(None, description="Only for phase apo.")
    checkpoints: Checkpoints
    wandb: Wandb = Wandb()

    @property
    def run_folder(self) -> Path:
        """Checkpoints, metrics and reports."""
        return Path(self.general.runs_path) / self.general.run

    @property
    def model_folder(self) -> Path:
        """The trained model in transformers format."""
        return Path(self.general.runs_path) / "hf" / self.general.run

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML-able mapping of the resolved recipe."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """Dotted keys and values that shape the resulting weights."""
        tree = self.model_dump(mode="json", exclude={"wandb", "checkpoints"})
        flat = {"phase": tree.pop("phase")}
        for section, values in tree.items():
            for key, value in (values or {}).items():
                if key not in _NOT_IDENTITY.get(section, ()):
                    flat[f"{section}.{key}"] = value
        return flat

    def hash(self) -> str:
        """Hex digest of `identity()`."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def check_inputs(recipe: PostTrainingRecipe) -> list[str]:
    """Look for what the recipe starts from; costs nothing, and leaves names of the hub to the hub: it returns those
    that lie in no cache of this machine.

    Raises:
        MissingInputError: naming what is absent or empty and what makes it; without a connection, names of the hub too.
    """
    source = recipe.model.model_name_or_path
    is_path = source.count("/") > 1 or source.startswith((".", "/"))
    if is_path and not (Path(source) / "config.json").is_file():
        raise MissingInputError(
            f"There is no model at {source} (no config.json). Run the phase that writes it first, or set "
            "model.model_name_or_path to a transformers folder."
        )
    names = [] if is_path or Path(source).is_dir() else [("models", source)]
    for dataset in recipe.data.datasets:
        file = dataset.local_file()
        if file is None:
            names.append(("datasets", dataset.path))
        elif not file.stat().st_size:
            raise MissingInputError(f"{file} is empty. Write the set again, or remove it from data.datasets.")
    missing = list(dict.fromkeys(name for kind, name in names if not _is_cached(kind, name)))
    if missing and constants.HF_HUB_OFFLINE:
        raise MissingInputError(
            f"HF_HUB_OFFLINE is set, and {constants.HF_HOME} holds no {', no '.join(missing)}. Fetch them on a machine "
            "with a connection (`hf download NAME`, with `--repo-type dataset` for sets), or name local files."
        )
    return missing


def _is_cached(kind: str, name: str) -> bool:
    """Whether the hub's cache, or the one of prepared sets beside it, has anything under this name."""
    downloaded = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return any(downloaded.glob("snapshots/*/*")) or (
        kind == "datasets" and (prepared / name.replace("/", "___")).is_dir()
    )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> PostTrainingRecipe:
    """Read, resolve and validate a post-training recipe; see `foundation.recipe.load_as`.

    Raises:
        RecipeError: naming every wrong key with file, line and fix.
    """
    return load_as(PostTrainingRecipe, path, overrides, _check)


def _check(recipe: PostTrainingRecipe) -> list[Problem]:
    """What must hold between fields."""
    problems = []
    if (recipe.phase == "apo") != (recipe.apo is not None):
        message = (
            "Phase apo needs this section (apo: {beta: 0.05})." if recipe.apo is None else "Only phase apo has it."
        )
        problems.append(Problem(("apo",), message))
    if recipe.phase == "apo" and recipe.data.packing_strategy is not None:
        problems.append(Problem(("data", "packing_strategy"), "Preference pairs are not packed. Remove the key."))
    if recipe.phase == "sft" and recipe.data.packing_strategy == "wrapped":
        message = "Wrapped packing cuts conversations and lets samples see each other. Use bfd for sft."
        problems.append(Problem(("data", "packing_strategy"), message))
    for number, dataset in enumerate(recipe.data.datasets):
        if not isinstance(given := dataset.chat_template_kwargs.get("enable_thinking", True), bool):
            key = ("data", "datasets", str(number), "chat_template_kwargs", "enable_thinking")
            problems.append(Problem(key, f"{given!r} is no boolean. Write true or false, or remove the key."))
    if recipe.optimizer.global_batch_size % recipe.optimizer.micro_batch_size:
        message = (
            f"{recipe.optimizer.global_batch_size} is no multiple of micro_batch_size "
            f"{recipe.optimizer.micro_batch_size}. Change one of them."
        )
        problems.append(Problem(("optimizer", "global_batch_size"), message))
    return problems
