"""One weighted average of checkpoints: refused before work, computed by mergekit, verified, then moved into place."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foundation.hf_folder import finish_folder, spelled_for_all, write_json
from merge.checkpoint import Checkpoint, MergeError, check_disk_space, check_mergeable
from merge.verify import Verification, verify_average

MANIFEST_NAME = "merge_manifest.json"
_BYTES_PER_ELEMENT = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Average:
    """A planned merge: sum over weights[i] * checkpoints[i]; `parent` gives everything that is not a weight."""

    checkpoints: Sequence[Checkpoint]
    weights: Sequence[float]
    parent: Checkpoint
    dtype: str
    max_shard_bytes: int

    def mergekit_config(self) -> dict[str, Any]:
        """mergekit's YAML as a mapping. Paths are absolute (relative ones look like hub ids to mergekit); base_model
        fixes the donor of the config, which is otherwise random per process."""
        return {
            "merge_method": "linear",
            "base_model": str(self.parent.path),
            "models": [
                {"model": str(checkpoint.path), "parameters": {"weight": weight}}
                for checkpoint, weight in zip(self.checkpoints, self.weights, strict=True)
            ],
            "parameters": {"normalize": False},
            "dtype": "float32",
            "out_dtype": self.dtype,
        }

    def identity(self) -> dict[str, Any]:
        """What decides the result: hashes and weights of the inputs, the parent, the dtype."""
        return {
            # 2: every value of inputs and output was read, and the config is spelled for every release of transformers.
            "format": "merge/2",
            "method": "linear",
            "dtype": self.dtype,
            "parent": str(self.parent.path),
            "inputs": [
                {"path": str(checkpoint.path), "weight": weight, "sha256": checkpoint.sha256s()}
                for checkpoint, weight in zip(self.checkpoints, self.weights, strict=True)
            ],
        }

    def check(self, output: Path) -> None:
        """Refuse, before anything is written, a merge that cannot give a sound model; reads every weight.

        Raises:
            MergeError, ModelFolderError, NotFiniteError: naming the folder and what is wrong with it.
        """
        if abs(sum(self.weights) - 1) > 1e-6:
            raise MergeError(f"The weights sum to {sum(self.weights):g}; they must sum to 1.")
        if len({checkpoint.path for checkpoint in self.checkpoints}) < len(self.checkpoints):
            raise MergeError("A checkpoint is listed twice; give it one entry with the summed weight.")
        if self.parent.path not in {checkpoint.path for checkpoint in self.checkpoints}:
            raise MergeError(f"The parent {self.parent.path} is not among the merged checkpoints.")
        check_mergeable(self.checkpoints, self.parent)
        spelled_for_all(self.parent.config, self.parent.path / "config.json")  # the output's config
        if output.exists() and any(output.iterdir()) and not (output / MANIFEST_NAME).is_file():
            raise MergeError(
                f"The output folder {output} is not empty and holds no merge. Remove it or choose another."
            )
        check_disk_space(self.parent, output, _BYTES_PER_ELEMENT[self.dtype])
        for checkpoint in self.checkpoints:
            checkpoint.check_finite()


def write_average(average: Average, output: Path, stage: str, *, quiet: bool = False) -> dict[str, Any]:
    """Merge into `output` and return the manifest; a finished merge of the same inputs is left as it is.

    The folder appears only once it is complete and verified: a killed run leaves `<output>.partial` behind, which the
    next run replaces.

    Raises:
        MergeError: inputs that cannot be merged, an occupied output folder, or a result that failed verification.
    """
    average.check(output)
    identity = average.identity()
    if (output / MANIFEST_NAME).is_file():
        done: dict[str, Any] = json.loads((output / MANIFEST_NAME).read_text(encoding="utf-8"))
        if all(done.get(key) == value for key, value in identity.items()):
            return done
        raise MergeError(
            f"{output} holds a merge of other inputs or weights, or by an earlier version. Remove it or choose another "
            "output."
        )
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    started = time.monotonic()
    _run_mergekit(average, partial, quiet)
    merge_seconds = time.monotonic() - started
    _replace_side_files(average, partial)
    verification = verify_average(
        Checkpoint(partial), average.checkpoints, average.weights, average.parent, average.dtype
    )
    manifest = _manifest(average, identity, partial, stage, verification, merge_seconds)
    (partial / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        output.rmdir()
    partial.replace(output)
    return manifest


def _run_mergekit(average: Average, folder: Path, quiet: bool) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(
        out_shard_size=average.max_shard_bytes,
        copy_tokenizer=False,
        write_model_card=False,
        quiet=quiet or not sys.stderr.isatty(),
    )
    # It warns that it infers SmolLM3's architecture; the verification says whether that was right.
    logging.disable(logging.WARNING)
    try:
        run_merge(MergeConfiguration.model_validate(average.mergekit_config()), str(folder), options=options)
    finally:
        logging.disable(logging.NOTSET)


def _replace_side_files(average: Average, folder: Path) -> None:
    """Everything that is not a weight comes from the parent, spelled for every release of transformers."""
    for file in folder.iterdir():
        if "safetensors" not in file.name:
            file.unlink()
    for file in average.parent.copied_files():
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", {**average.parent.config, "dtype": average.dtype, "torch_dtype": average.dtype})
    finish_folder(folder)


def _manifest(
    average: Average, identity: dict[str, Any], folder: Path, stage: str, verification: Verification, seconds: float
) -> dict[str, Any]:
    return {
        **identity,
        "stage": stage,
        "mergekit_config": average.mergekit_config(),
        "output_sha256": Checkpoint(folder).sha256s(),
        "verification": asdict(verification),
        "merge_seconds": round(seconds, 2),
        "versions": {name: version(name) for name in ("mergekit", "torch", "safetensors", "transformers")},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
