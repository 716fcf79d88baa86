"""All ranks go on from the same state, or none starts.

The first rank of every machine looks for checkpoints before it can talk to the others, and a file system may show one
machine an older folder than the rest. Ranks that go on from different steps train different weights without a word:
losses are summed over all of them, so all report the same one. Once they can talk, the newest checkpoint that any
machine has found is the one; each rank opens that very folder's manifest and compares it. What else each has read for
itself must be what the first rank has read, and what computes on it the same: device, packages, driver, attention.
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundation.device import driver_versions
from foundation.errors import UserError
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader, versions
from nanotron_ext.engine import node_name
from nanotron_ext.model.build import attention_backend
from nanotron_ext.train.changes import differences
from nanotron_ext.train.startup import Preflight, StartupError, examine, find_checkpoint

_NAMED_AT_MOST = 4
_PATHS = {  # where files lie may differ between machines; what is in them may not
    "general": ("runs_path",),
    "tokenizer": ("tokenizer_name_or_path",),
    "data": ("path", "continue_from"),
    "checkpoints": ("resume_checkpoint_path", "load_weights_path"),
}


@dataclass(frozen=True)
class _Offer:
    """The newest checkpoint that a rank has found."""

    step: int
    folder: str
    digest: str
    finder: str


def agree(
    recipe: Recipe,
    found: Preflight | UserError | None,
    device: torch.device,
    usable: Collection[Path] | None = None,
) -> Preflight:
    """What a machine's first rank has `found`, or the reason why nothing, when all ranks have compared it.

    Other ranks have found None. `usable` are the checkpoints that all machines have, None where they share a file
    system. To be called on all ranks.

    Raises:
        StartupError: on all ranks, naming those that found something else, or nothing that can be used.
    """
    refuse(str(found) if isinstance(found, UserError) else None)
    assert found is None or isinstance(found, Preflight)
    checkpoint = newest_of_all(found.checkpoint if found else None)
    weights = None if checkpoint else newest_of_all(found.weights if found else None)
    if found is not None and (found.checkpoint is not checkpoint or found.weights is not weights):
        found = None
    return _compared(recipe, _examined(recipe, found, checkpoint, weights, usable), device)


def fall_back(recipe: Recipe, found: Preflight, device: torch.device) -> Preflight | None:
    """To the newest whole checkpoint before the damaged one that was `found`; None if there is none.

    To be called on all ranks.

    Raises:
        StartupError: on all ranks, when it cannot be continued, or not by all.
    """
    assert found.checkpoint is not None
    mine, problem = None, None
    if looks_for_checkpoints():
        try:
            mine = find_checkpoint(recipe, found.usable, before=found.checkpoint.step)
        except UserError as error:
            problem = str(error)
    refuse(problem)
    checkpoint = newest_of_all(mine)
    if checkpoint is None:
        return None
    older = _examined(recipe, None, checkpoint, None, found.usable, is_agreed=True)
    return _compared(recipe, older, device)


def looks_for_checkpoints() -> bool:
    """Whether this rank does for its machine, whose ranks all see the same."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _examined(
    recipe: Recipe,
    found: Preflight | None,
    checkpoint: CheckpointReader | None,
    weights: CheckpointReader | None,
    usable: Collection[Path] | None,
    is_agreed: bool = False,
) -> Preflight:
    """`examine` on the ranks that have not `found` it yet. To be called on all ranks; raises StartupError on all."""
    problem = None
    try:
        found = found or examine(recipe, checkpoint, weights, usable, is_agreed)
    except UserError as error:
        problem = str(error)
    refuse(problem)
    assert found is not None
    return found


def _compared(recipe: Recipe, found: Preflight, device: torch.device) -> Preflight:
    mine = _decided(recipe, found, device)
    first = [mine]
    torch.distributed.broadcast_object_list(first, src=0, device=device)
    if not recipe.checkpoints.checkpoints_path_is_shared_file_system:  # the ledger is on the first machine alone
        found = dataclasses.replace(
            found,
            skipped=first[0]["skipped samples"],
            changes=first[0]["agreed changes"],
            spared=first[0]["steps spared from pruning"],
        )
        mine = _decided(recipe, found, device)
    refuse(_difference(first[0], mine))
    return found


def newest_of_all(mine: CheckpointReader | None) -> CheckpointReader | None:
    """The newest checkpoint that any rank has found, `mine` among them; None where none has one.

    To be called on all ranks.

    Raises:
        StartupError: on all ranks, naming those that cannot open it.
    """
    offer = _Offer(mine.step, str(mine.folder), mine.digest, _name()) if mine else None
    offers = [other for other in _gathered(offer) if other is not None]
    if not offers:
        return None
    newest = max(offers, key=lambda other: other.step)
    problem = None
    if mine is None or (mine.step, mine.digest) != (newest.step, newest.digest):
        mine, problem = _opened(newest)
    refuse(problem)
    return mine


def refuse(problem: str | None) -> None:
    """Raise StartupError on all ranks when any of them has a `problem`. To be called on all ranks."""
    ranks_with: dict[str, list[str]] = defaultdict(list)
    answers = _gathered((problem, _name()) if problem else None)
    for answer in answers:
        if answer is not None:
            ranks_with[answer[0]].append(answer[1])
    if not ranks_with:
        return
    sentences = [
        text if len(names) == len(answers) else f"{_enumerated(names)}: {text}" for text, names in ranks_with.items()
    ]
    raise StartupError("\n".join(sentences[:_NAMED_AT_MOST]))


def _opened(offer: _Offer) -> tuple[CheckpointReader | None, str | None]:
    """Also a rank whose view of the folder is old can open what it has not listed; else what is wrong.

    The finder has compared the sizes of its files.
    """
    try:
        reader = CheckpointReader(Path(offer.folder), compares_sizes=False)
    except CheckpointError as error:
        reason = str(error)
    else:
        if reader.digest == offer.digest:
            return reader, None
        reason = f"here its manifest has digest {reader.digest[:12]}, there {offer.digest[:12]}"
    return None, (
        f"This machine cannot go on from step {offer.step}, {offer.folder}, which {offer.finder} has found: {reason}. "
        f"Its view of the file system may be older than that of the others: start again in a minute, or without it."
    )


def _decided(recipe: Recipe, found: Preflight, device: torch.device) -> dict[str, Any]:
    """All that has to be the same on every rank."""
    without_paths = {
        name: {key: value for key, value in section.items() if key not in _PATHS.get(name, ())}
        if isinstance(section, dict)
        else section
        for name, section in recipe.to_dict().items()
    }
    return {
        "recipe": without_paths,
        "data start": dataclasses.asdict(found.data_start),
        "data": found.data,
        "skipped samples": found.skipped,
        "agreed changes": found.changes,
        "steps spared from pruning": found.spared,
        "device": device.type,
        "versions": versions() | driver_versions(device),
        "attention backend": attention_backend(recipe, device),
    }


def _difference(first: dict[str, Any], mine: dict[str, Any]) -> str | None:
    found = [f"{key} is {here!r} here, {there!r} on the first rank" for key, there, here in differences(first, mine)]
    if not found:
        return None
    more = f", and {len(found) - _NAMED_AT_MOST} more differ" if len(found) > _NAMED_AT_MOST else ""
    return "; ".join(found[:_NAMED_AT_MOST]) + more + ". All ranks have to start with the same."


def _gathered(mine: Any) -> list[Any]:
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, mine)
    return everywhere


def _name() -> str:
    return f"rank {torch.distributed.get_rank()} on {node_name()}"


def _enumerated(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    text = ", ".join(names[:_NAMED_AT_MOST]) + more
    return text[0].upper() + text[1:]
