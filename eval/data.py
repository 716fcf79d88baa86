"""The data of a recipe's suites on disk, so that evaluating never needs a network.

The small edition is our own items in each set's schema (a few dozen, for tests, demos and miniatures; marked as such in
every table); the full one is the real sets from the hub, with the revision of each. A real set that is there is never
replaced by our items or by another revision unasked.
"""

import difflib
import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from eval.benchmarks import BENCHMARKS, Benchmark, Dataset
from eval.editions import small_rows
from eval.errors import EvalError
from eval.hub import Hub
from eval.local_data import MANIFEST_NAME, Rows, read_dataset, write_dataset
from eval.recipe import EvalRecipe
from foundation.files import restore


def recipe_datasets(recipe: EvalRecipe, suites: Sequence[str] | None = None) -> list[tuple[Benchmark, str | None]]:
    """One benchmark per distinct dataset of the suites (default: all), with the revision that the recipe asks for.

    Raises:
        EvalError: if the recipe has no suite of that name.
    """
    found: dict[str, tuple[Benchmark, str | None]] = {}
    for suite_name in chosen_suites(recipe, suites):
        for name, task in recipe.suites[suite_name].tasks.items():
            benchmark = BENCHMARKS[task.benchmark or name]
            if benchmark.dataset is not None:
                found.setdefault(benchmark.dataset.folder, (benchmark, task.revision))
    return list(found.values())


def chosen_suites(recipe: EvalRecipe, suites: Sequence[str] | None) -> list[str]:
    """`suites`, or all of the recipe.

    Raises:
        EvalError: if the recipe has no suite of that name.
    """
    unknown = [suite for suite in suites or () if suite not in recipe.suites]
    if unknown:
        close = difflib.get_close_matches(unknown[0], recipe.suites, 1)
        hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(recipe.suites)}."
        raise EvalError(f"There is no suite {unknown[0]!r} in this recipe. {hint}")
    return list(suites or recipe.suites)


def check_replaceable(recipe: EvalRecipe, edition: str, suites: Sequence[str] | None = None) -> None:
    """Raises EvalError if writing this edition would replace a real set, or a folder that is no set at all."""
    kept = []
    for benchmark, revision in recipe_datasets(recipe, suites):
        assert benchmark.dataset is not None
        folder = Path(recipe.data) / benchmark.dataset.folder
        restore(folder)
        if not folder.is_dir() or not any(folder.iterdir()):
            continue
        try:
            there = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
            held, is_real = f"{there['edition']}, revision {there['revision']}", there["edition"] == "full"
        except (OSError, ValueError, KeyError, TypeError):
            held, is_real = f"no readable {MANIFEST_NAME}", True
        if is_real and not (edition == "full" and _is_kept(Path(recipe.data), benchmark.dataset, revision)):
            kept.append(f"{folder} ({held})")
    if kept:
        more = f" and {len(kept) - 5} more" if len(kept) > 5 else ""
        raise EvalError(
            f"The {edition} edition would replace {', '.join(kept[:5])}{more}. Nothing was written. Give --replace to "
            f"have them replaced, or data=FOLDER to write elsewhere."
        )


def _is_kept(data: Path, dataset: Dataset, revision: str | None) -> bool:
    """Whether the real set is there already, in full and at the wanted revision."""
    try:
        done = read_dataset(data, dataset)
    except EvalError:
        return False
    return done.edition == "full" and revision in (None, done.revision)


def write_small_edition(recipe: EvalRecipe, suites: Sequence[str] | None = None) -> None:
    """Our own items for every dataset of the suites (default: all), in place of what is there."""
    for benchmark, _ in recipe_datasets(recipe, suites):
        assert benchmark.dataset is not None
        rows = small_rows(benchmark)
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
        write_dataset(Path(recipe.data) / benchmark.dataset.folder, benchmark.dataset, rows, "small", f"ours-{digest}")


def write_full_edition(
    recipe: EvalRecipe,
    fetch: Callable[[Dataset, str | None], tuple[Rows, str]],
    suites: Sequence[str] | None = None,
) -> None:
    """The real sets through `fetch`; sets that are there already, in full and at the wanted revision, are kept.

    Raises:
        EvalError: in the end, naming all that could not be had; the others are there.
    """
    datasets = recipe_datasets(recipe, suites)
    failures = []
    for number, (benchmark, revision) in enumerate(datasets, 1):
        dataset = benchmark.dataset
        assert dataset is not None
        folder = Path(recipe.data) / dataset.folder
        kept = _is_kept(Path(recipe.data), dataset, revision)
        outcome = " (there already)" if kept else ""
        if not kept:
            try:
                rows, resolved = fetch(dataset, revision)
                write_dataset(folder, dataset, rows, "full", resolved)
            except EvalError as error:
                failures.append(str(error))
                outcome = " FAILED"
        print(f"[{number}/{len(datasets)}] {dataset.repo} {dataset.subset}{outcome}", flush=True)
    if failures:
        raise EvalError(
            f"{len(failures)} of {len(datasets)} sets could not be had; the others are in {recipe.data}, and the same "
            "command goes on with these:\n" + "\n".join(f"  {failure}" for failure in failures)
        )


def pack(recipe: EvalRecipe, datasets: Sequence[tuple[Benchmark, str | None]], file: Path) -> None:
    """All folders of `datasets` as one tar file, laid out as under `recipe.data`: unpack it there on the other machine.

    Raises:
        EvalError: if one of them is missing or was changed.
    """
    partial = file.with_name(file.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(partial, "w") as archive:
        for benchmark, _ in datasets:
            assert benchmark.dataset is not None
            read_dataset(Path(recipe.data), benchmark.dataset)
            archive.add(Path(recipe.data) / benchmark.dataset.folder, arcname=benchmark.dataset.folder)
    partial.replace(file)


def write_edition(
    recipe: EvalRecipe,
    edition: Literal["small", "full"],
    suites: Sequence[str] | None = None,
    *,
    mirror: Path | None = None,
    replace: bool = False,
    pack_into: Path | None = None,
) -> int:
    """Write the data of the suites (default: all) and, with `pack_into`, one tar file of it; returns how many sets.

    `mirror` is a folder with copies of the hub's repositories, <owner>/<name>, to read in the hub's place.

    Raises:
        EvalError: an unknown suite; a real set would be replaced, which `replace` does not allow; or one cannot be had.
    """
    datasets = recipe_datasets(recipe, suites)
    if not replace:
        check_replaceable(recipe, edition, suites)
    if edition == "small":
        write_small_edition(recipe, suites)
    else:
        write_full_edition(recipe, Hub(mirror).fetch, suites)
    if pack_into:
        pack(recipe, datasets, pack_into)
    return len(datasets)
