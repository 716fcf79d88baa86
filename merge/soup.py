"""Which checkpoints go into the soup, and with which weights (model soups: arXiv 2203.05482)."""

import re
from collections.abc import Callable, Sequence
from glob import glob
from pathlib import Path

from merge.checkpoint import Checkpoint, MergeError
from merge.recipe import Soup

Score = Callable[[Path], float]
WriteSoup = Callable[[Sequence[Checkpoint]], Path]


def find_checkpoints(soup: Soup) -> tuple[list[Checkpoint], list[float]]:
    """The ingredients in recipe order (patterns in numeric order) and their weights.

    Raises:
        MergeError: a folder is missing, a pattern matches nothing, or a weighted pattern matches several.
    """
    checkpoints: list[Checkpoint] = []
    weights: list[float] = []
    for ingredient in soup.checkpoints:
        paths = _expand(ingredient.path)
        if ingredient.weight is not None and len(paths) > 1:
            raise MergeError(f"{ingredient.path} matches {len(paths)} folders; a weighted soup lists them one by one.")
        checkpoints += [Checkpoint(path) for path in paths]
        weights += [ingredient.weight or 0.0] * len(paths)
    if soup.method != "weighted":
        weights = [1 / len(checkpoints)] * len(checkpoints)
    return checkpoints, weights


def _expand(pattern: str) -> list[str]:
    if not any(character in pattern for character in "*?["):
        return [pattern]
    # glob, not Path.glob: the pattern may be absolute.
    folders = [path for path in glob(pattern) if Path(path, "config.json").is_file()]  # noqa: PTH207
    if not folders:
        raise MergeError(f"No checkpoint matches {pattern}. Train first, or correct soup.checkpoints.")
    return sorted(
        folders, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
    )


def choose_parent(path: str | None, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint at `path`, by default the last one."""
    if path is None:
        return checkpoints[-1]
    for checkpoint in checkpoints:
        if checkpoint.path == Path(path).resolve():
            return checkpoint
    raise MergeError(f"soup.parent is {path}, which is not one of the soup's checkpoints.")


def greedy_selection(
    checkpoints: Sequence[Checkpoint], score: Score, write_soup: WriteSoup
) -> tuple[list[Checkpoint], list[dict[str, object]]]:
    """Greedy soup: from the best checkpoint on, keep each next one if the uniform soup with it scores no less.

    Returns the chosen checkpoints and a log of every trial. `write_soup` writes the uniform soup of its argument and
    returns the folder; it is called for soups of two and more.
    """
    scores = [score(checkpoint.path) for checkpoint in checkpoints]
    log: list[dict[str, object]] = [
        {"checkpoints": [str(checkpoint.path)], "score": value, "kept": False}
        for checkpoint, value in zip(checkpoints, scores, strict=True)
    ]
    order = sorted(range(len(checkpoints)), key=lambda index: -scores[index])
    chosen, best = [checkpoints[order[0]]], scores[order[0]]
    log[order[0]]["kept"] = True
    for index in order[1:]:
        trial = [*chosen, checkpoints[index]]
        value = score(write_soup(trial))
        kept = value >= best
        log.append({"checkpoints": [str(checkpoint.path) for checkpoint in trial], "score": value, "kept": kept})
        if kept:
            chosen, best = trial, value
    return chosen, log
