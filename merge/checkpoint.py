"""A transformers checkpoint on disk, read without loading weights, and the reasons why several cannot be merged."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.finite import check_files_finite
from foundation.hf_folder import TOKENIZER_FILES, meaning, read_config
from foundation.paths import WEIGHTS, indexed_weight_files
from foundation.tokenizer_json import differing_parts
from foundation.weights import read_header

# Keys of config.json that say nothing about the weights; the merged model takes the parent's.
_FREE_CONFIG_KEYS = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"}
)
_FLOAT_DTYPES = {"BF16": 2, "F32": 4, "F16": 2}


class MergeError(UserError):
    """A merge that is refused, or a result that failed verification. The message is for the user."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: weight file, shape and safetensors dtype name (BF16, F32, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class Checkpoint:
    """One model folder: config.json, safetensors (one file or an index) and tokenizer files.

    Raises:
        MergeError: on construction, if the folder or one of its files is missing or unreadable.
        UnsafeNameError: if its index names files elsewhere.
        AmbiguousWeightsError: if it holds weights that its index leaves out.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_dir():
            raise MergeError(f"There is no checkpoint folder {path}. Train or export it first, or correct the recipe.")
        self._required("config.json")
        self.config = read_config(self.path)
        self.tensors = self._read_tensor_infos()

    def _required(self, name: str) -> Path:
        file = self.path / name
        if not file.is_file():
            raise MergeError(f"{self.path} holds no {name}; it is not a complete transformers checkpoint.")
        return file

    @cached_property
    def weight_files(self) -> list[Path]:
        return [self._required(name) for name in indexed_weight_files(self.path) or [WEIGHTS]]

    def _read_tensor_infos(self) -> dict[str, TensorInfo]:
        infos = {}
        for file in self.weight_files:
            for name, entry in read_header(file).items():
                infos[name] = TensorInfo(file, tuple(entry["shape"]), entry["dtype"])
        return infos

    @cached_property
    def meaning(self) -> dict[str, Any]:
        """All keys of the configuration in one spelling; releases of transformers write different ones."""
        return meaning(self.config, self.path / "config.json")

    @property
    def ties_embeddings(self) -> bool:
        return bool(self.meaning["tie_word_embeddings"])

    def check_finite(self) -> None:
        """Read every weight; raises NotFiniteError for one that is NaN or infinite."""
        check_files_finite(self.weight_files)

    @property
    def tokenizer_file(self) -> Path:
        return self._required("tokenizer.json")

    def copied_files(self) -> list[Path]:
        """What a merged model takes from its parent: everything of tokenizer, template and generation."""
        names = ("generation_config.json", *TOKENIZER_FILES)
        return [self.path / name for name in names if (self.path / name).is_file()]

    def sha256s(self) -> dict[str, str]:
        """File name -> sha256 of everything that defines the model."""
        files = [self.path / "config.json", *self.copied_files(), *self.weight_files]
        return {file.name: file_sha256(file) for file in files}


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_mergeable(checkpoints: Sequence[Checkpoint], parent: Checkpoint) -> None:
    """Refuse inputs that mergekit would reject late, or merge into a broken model without an error.

    mergekit 0.1.5 merges models of different depth with exit code 0 (only the common layers), and an lm_head.weight
    beside tied embeddings yields a model that loads untied.

    Raises:
        MergeError: listing every difference to the parent.
    """
    problems = []
    for checkpoint in checkpoints:
        problems += [f"{checkpoint.path}: {problem}" for problem in _problems_alone(checkpoint)]
        if checkpoint.path != parent.path:
            problems += [f"{checkpoint.path}: {problem}" for problem in _differences(checkpoint, parent)]
    if problems:
        shown = "\n  ".join(problems[:12]) + (f"\n  ... and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise MergeError(f"These checkpoints cannot be merged (parent: {parent.path}):\n  {shown}")


def _problems_alone(checkpoint: Checkpoint) -> list[str]:
    problems = []
    if len(checkpoint.config.get("architectures") or []) != 1:
        problems.append('its config.json names no architecture; add "architectures": ["SmolLM3ForCausalLM"].')
    if checkpoint.ties_embeddings and "lm_head.weight" in checkpoint.tensors:
        problems.append(
            "its config ties the embeddings but the weights hold an lm_head.weight, so the merged model would load "
            "untied. Save it again with transformers: from_pretrained(...).save_pretrained(...)."
        )
    if not checkpoint.ties_embeddings and "lm_head.weight" not in checkpoint.tensors:
        problems.append("its config does not tie the embeddings but there is no lm_head.weight.")
    odd = sorted({info.dtype for info in checkpoint.tensors.values()} - _FLOAT_DTYPES.keys())
    if odd:
        problems.append(f"it holds tensors of dtype {', '.join(odd)}; only BF16, F16 and F32 can be averaged.")
    return problems


def _differences(checkpoint: Checkpoint, parent: Checkpoint) -> list[str]:
    differences = []
    for key in sorted((checkpoint.meaning.keys() | parent.meaning.keys()) - _FREE_CONFIG_KEYS):
        ours, theirs = checkpoint.meaning.get(key), parent.meaning.get(key)
        if ours != theirs:
            differences.append(f"{key} is {ours!r}, the parent's is {theirs!r}.")
    missing = sorted(parent.tensors.keys() - checkpoint.tensors.keys())
    extra = sorted(checkpoint.tensors.keys() - parent.tensors.keys())
    if missing:
        differences.append(f"{len(missing)} tensors of the parent are missing, first {missing[0]}.")
    if extra:
        differences.append(f"{len(extra)} tensors are unknown to the parent, first {extra[0]}.")
    for name in sorted(checkpoint.tensors.keys() & parent.tensors.keys()):
        if checkpoint.tensors[name].shape != parent.tensors[name].shape:
            ours, theirs = list(checkpoint.tensors[name].shape), list(parent.tensors[name].shape)
            differences.append(f"{name} has shape {ours}, the parent's has {theirs}.")
            break
    if parts := differing_parts(checkpoint.tokenizer_file, parent.tokenizer_file):
        differences.append(
            f"its tokenizer.json has other {', '.join(parts)} than the parent's, so some texts are other ids to it."
        )
    return differences


def check_disk_space(parent: Checkpoint, output: Path, bytes_per_element: int) -> None:
    """Raises MergeError if the result would not fit beside what is there."""
    existing = output
    while not existing.exists():
        existing = existing.parent
    needed_bytes = int(1.02 * bytes_per_element * sum(info.num_elements for info in parent.tensors.values()))
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise MergeError(
            f"The merged model needs {needed_bytes / 1e9:.1f} GB in {output}, but only {free_bytes / 1e9:.1f} GB are "
            "free. Make room, or choose another output folder."
        )
