"""`python -m eval.data RECIPE`: put the data of a recipe's suites on disk, so that evaluating never needs a network.

`--edition small` writes our own items in each set's schema (a few dozen, for tests, demos and miniatures; marked as
such in every table); `--edition full` fetches the real sets from the hub and records the revision of each.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.benchmarks import BENCHMARKS, Benchmark, Dataset
from eval.recipe import EvalRecipe, load_eval_recipe
from nanotron_ext.errors import UserError

MANIFEST_NAME = "dataset.json"
Rows = dict[str, list[dict[str, Any]]]  # split -> rows


class EvalError(UserError):
    """An evaluation that cannot run; the message is for the user."""


@dataclass(frozen=True)
class LocalDataset:
    """One dataset on disk with what its manifest says."""

    rows: Rows
    edition: str
    revision: str
    sha256: str


def write_dataset(folder: Path, dataset: Dataset, rows: Rows, edition: str, revision: str) -> None:
    """Rows as <split>.jsonl and, last, the manifest."""
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
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def read_dataset(data: Path, dataset: Dataset) -> LocalDataset:
    """Rows of the splits that `dataset` names, checked against the manifest's hashes.

    Raises:
        EvalError: if the data is not there, incomplete or changed.
    """
    folder = data / dataset.folder
    file = folder / MANIFEST_NAME
    if not file.is_file():
        raise EvalError(f"There is no data in {folder}. Run: python -m eval.data RECIPE --edition small (or full).")
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


def recipe_datasets(recipe: EvalRecipe) -> list[tuple[Benchmark, str | None]]:
    """One benchmark per distinct dataset, with the revision that the recipe asks for."""
    found: dict[str, tuple[Benchmark, str | None]] = {}
    for suite in recipe.suites.values():
        for name, task in suite.tasks.items():
            benchmark = BENCHMARKS[task.benchmark or name]
            if benchmark.dataset is not None:
                found.setdefault(benchmark.dataset.folder, (benchmark, task.revision))
    return list(found.values())


def write_small_edition(recipe: EvalRecipe) -> int:
    """Our own items for every dataset of the recipe; returns how many datasets there are."""
    from eval.editions import small_rows

    datasets = recipe_datasets(recipe)
    for benchmark, _ in datasets:
        assert benchmark.dataset is not None
        rows = small_rows(benchmark)
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
        write_dataset(Path(recipe.data) / benchmark.dataset.folder, benchmark.dataset, rows, "small", f"ours-{digest}")
    return len(datasets)


def write_full_edition(recipe: EvalRecipe, fetch: Callable[[Dataset, str | None], tuple[Rows, str]]) -> int:
    """The real sets through `fetch`; sets that are there already, in full and at the wanted revision, are kept."""
    datasets = recipe_datasets(recipe)
    for number, (benchmark, revision) in enumerate(datasets, 1):
        dataset = benchmark.dataset
        assert dataset is not None
        folder = Path(recipe.data) / dataset.folder
        try:
            done = read_dataset(Path(recipe.data), dataset)
            kept = done.edition == "full" and revision in (None, done.revision)
        except EvalError:
            kept = False
        if not kept:
            rows, resolved = fetch(dataset, revision)
            write_dataset(folder, dataset, rows, "full", resolved)
        print(
            f"[{number}/{len(datasets)}] {dataset.repo} {dataset.subset}{' (there already)' if kept else ''}",
            flush=True,
        )
    return len(datasets)


def fetch_from_hub(dataset: Dataset, revision: str | None) -> tuple[Rows, str]:
    """Rows and commit of a hub dataset; the tool-calling sets are files of their own layout."""
    from huggingface_hub import HfApi

    repo = BFCL_REPO if dataset.repo == "bfcl" else dataset.repo
    commit = str(HfApi().dataset_info(repo, revision=revision).sha)
    if dataset.repo == "bfcl":
        return {"test": _fetch_bfcl(dataset.subset, commit)}, commit
    import datasets

    subset = None if dataset.subset == "default" else dataset.subset
    rows = {
        split: [dict(row) for row in datasets.load_dataset(repo, subset, split=split, revision=commit)]
        for split in dataset.splits
    }
    return rows, commit


BFCL_REPO = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"


def _fetch_bfcl(subset: str, commit: str) -> list[dict[str, Any]]:
    from huggingface_hub import hf_hub_download

    def lines(name: str) -> list[dict[str, Any]]:
        path = hf_hub_download(BFCL_REPO, name, repo_type="dataset", revision=commit)
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]

    questions = lines(f"BFCL_v3_{subset}.json")
    if subset == "irrelevance":
        return [{**question, "ground_truth": []} for question in questions]
    answers = {row["id"]: row["ground_truth"] for row in lines(f"possible_answer/BFCL_v3_{subset}.json")}
    return [{**question, "ground_truth": answers[question["id"]]} for question in questions]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.data", description=__doc__)
    parser.add_argument("recipe", help="evaluation recipe, for example recipes/tiny/eval.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    parser.add_argument("--edition", choices=["small", "full"], default="small", help="our items, or the real sets")
    parsed = parser.parse_args(arguments)
    try:
        recipe = load_eval_recipe(parsed.recipe, parsed.overrides)
        count = write_small_edition(recipe) if parsed.edition == "small" else write_full_edition(recipe, fetch_from_hub)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"The hub could not be read: {error}\nRun this where there is a network, then copy the folder.",
            file=sys.stderr,
        )
        return 2
    print(f"{count} datasets, edition {parsed.edition}, in {recipe.data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
