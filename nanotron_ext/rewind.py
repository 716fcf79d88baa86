"""Continue a run from an earlier step, leaving out a range of samples: the remedy for a loss spike.

Samples are counted over the whole run, as messages about spikes and failed steps give them; the range grows to whole
global batches. Nothing is trained here: the next start of the run continues from that step. Later checkpoints and the
metrics so far move to <run>/rewound/<n>/, also in object storage, and the ledger keeps account.
"""

import shutil
from pathlib import Path
from typing import Any

from foundation.errors import UserError
from foundation.files import write_atomically
from foundation.journal import METRICS_FILE, SAMPLES_FILE
from foundation.outcome import OUTCOME_FILE
from foundation.recipe import Recipe, load_recipe
from nanotron_ext import ledger
from nanotron_ext.checkpoint import LATEST_FILE, RECIPE_FILE, CheckpointReader, checkpoint_folder, list_checkpoints
from nanotron_ext.data.loader import MixtureLoader
from nanotron_ext.data.start import data_start
from nanotron_ext.storage import RemoteCheckpoints


class RewindError(UserError):
    """A rewind that cannot be made as asked; nothing was changed."""


def rewind(run_folder: Path, to_step: int, samples: tuple[int, int] | None) -> ledger.Samples | None:
    """Go back to `to_step` and leave out `samples`, (first, last); returns the range left out, (first, number).

    Raises:
        RewindError: when there is no such checkpoint, or the samples are not ahead of it in one data stage.
        CheckpointError: when the checkpoint is damaged.
        StorageError: when checkpoints in object storage cannot be set aside.
    """
    recipe_file, checkpoint = run_folder / RECIPE_FILE, checkpoint_folder(run_folder, to_step)
    recipe = load_recipe(recipe_file)
    remote = RemoteCheckpoints(recipe) if recipe.checkpoints.remote_path is not None else None
    if remote is not None and not checkpoint.exists() and to_step in remote.steps():
        remote.fetch(to_step, run_folder)
    existing = list_checkpoints(run_folder)
    if checkpoint not in existing:
        steps = ", ".join(path.name for path in existing) or "none"
        raise RewindError(f"{run_folder} has no checkpoint of step {to_step}; it has: {steps}.")
    reader = CheckpointReader(checkpoint)
    if damaged := reader.damaged_files():
        raise RewindError(f"{'; '.join(damaged)}. Rewind to another step.")
    skipped = None
    if samples is not None:
        already = ledger.skipped_samples(run_folder, reader.manifest.get("skipped_samples", []))
        skipped = _whole_batches(recipe, reader.manifest, samples, already)
    later = [path for path in existing if int(path.name) > to_step]
    number = len(ledger.read(run_folder, "rewind")) + 1
    if remote is not None:
        remote.set_aside(to_step, number)
    ledger.record(run_folder, "rewind", to_step=to_step, skipped_samples=skipped)
    archive = run_folder / "rewound" / str(number)
    (archive / "checkpoints").mkdir(parents=True)
    for path in later:
        path.replace(archive / "checkpoints" / path.name)
    for name in (METRICS_FILE, SAMPLES_FILE, OUTCOME_FILE):
        if (run_folder / name).is_file():
            shutil.copy(run_folder / name, archive / name)
    write_atomically(run_folder / LATEST_FILE, str(to_step))
    (run_folder / OUTCOME_FILE).unlink(missing_ok=True)
    return skipped


def _whole_batches(
    recipe: Recipe, manifest: dict[str, Any], samples: tuple[int, int], already: list[ledger.Samples]
) -> ledger.Samples:
    """The range of whole global batches behind the checkpoint of this manifest that holds `samples`."""
    size, start = recipe.global_batch_size, data_start(recipe, manifest, already)
    first, last = (start.samples + (sample - start.samples) // size * size for sample in samples)
    last += size - 1
    if first > last:
        raise RewindError(f"--skip-samples {samples[0]}-{samples[1]} is empty; the first number is the smaller one.")
    loader = MixtureLoader(recipe, 0, recipe.parallelism.dp, already, start)
    if first < (seen := loader.data_position(manifest["step"])):
        raise RewindError(
            f"Sample {first} lies before step {manifest['step']}, which has seen samples up to {seen - 1}. Rewind "
            f"further back."
        )
    if any(first <= begin + count - 1 and begin <= last for begin, count in already):
        raise RewindError(f"Samples {first} to {last} overlap with a range that is left out already; see the ledger.")
    if first >= (end := loader.data_position(recipe.tokens.train_steps)):
        raise RewindError(f"The run has no sample {first}: its {recipe.tokens.train_steps} steps end at {end - 1}.")
    if (border := loader.stage_end(first)) <= last:
        raise RewindError(
            f"Samples {first} to {last} belong to two data stages, and a range may only lie in one; leave out samples "
            f"up to {border - 1}."
        )
    return first, last - first + 1
