"""A benchmark's rows on disk: one JSON-lines file per split, and a manifest with their hashes."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks import Dataset
from eval.errors import EvalError
from foundation.files import put_in_place

MANIFEST_NAME = "dataset.json"
Row = dict[str, Any]
Rows = dict[str, list[Row]]  # split -> rows


@dataclass(frozen=True)
class LocalDataset:
    """One dataset on disk with what its manifest says."""

    rows: Rows
    edition: str
    revision: str
    sha256: str


def write_dataset(folder: Path, dataset: Dataset, rows: Rows, edition: str, revision: str) -> None:
    """Rows as <split>.jsonl and, last, the manifest; what the folder held before is there until then."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    splits = {}
    for split, split_rows in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in split_rows)
        (partial / f"{split}.jsonl").write_text(text, encoding="utf-8")
        splits[split] = {"rows": len(split_rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    manifest: dict[str, Any] = {
        "format": "eval-data/1",
        "repo": dataset.repo,
        "subset": dataset.subset,
        "edition": edition,
    }
    manifest |= {"revision": revision, "splits": splits}
    (partial / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    put_in_place(partial, folder)


def read_dataset(data: Path, dataset: Dataset) -> LocalDataset:
    """Rows of the splits that `dataset` names, checked against the manifest's hashes.

    Raises:
        EvalError: if the data is not there, incomplete or changed.
    """
    folder = data / dataset.folder
    file = folder / MANIFEST_NAME
    if not file.is_file():
        raise EvalError(f"There is no data in {folder}. Write it: smollm3 eval-data RECIPE --edition small (or full).")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    rows: Rows = {}
    for split in dataset.splits:
        if split not in manifest["splits"]:
            raise EvalError(f"{folder} has no split {split!r}, only {', '.join(manifest['splits'])}. Write it again.")
        content = (folder / f"{split}.jsonl").read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["splits"][split]["sha256"]:
            raise EvalError(f"{folder / split}.jsonl was changed after it was written. Write it again.")
        rows[split] = [json.loads(line) for line in content.splitlines()]
    hashes = "".join(manifest["splits"][split]["sha256"] for split in dataset.splits)
    return LocalDataset(rows, manifest["edition"], manifest["revision"], hashlib.sha256(hashes.encode()).hexdigest())
