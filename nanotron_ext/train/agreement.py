"""All ranks go on from the same state, or none starts.

Every rank looks at the disk by itself before it can talk to the others, and a file system may show one machine an older
folder than the rest. Ranks that go on from different steps train different weights without a word: losses are summed
over all of them, so all report the same one. Once they can talk, the newest checkpoint that any rank has found is the
one; each opens that very folder and compares its manifest. What else each has read for itself must be what the first
rank has read.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundation.errors import UserError
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader
from nanotron_ext.engine import node_name
from nanotron_ext.train.changes import differences
from nanotron_ext.train.startup import Preflight, StartupError, examine

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


def agree(recipe: Recipe, found: Preflight | UserError, device: torch.device) -> Preflight:
    """What `found`, this rank's or the reason why it has none, becomes when all ranks have compared theirs.

    To be called on all ranks.

    Raises:
        StartupError: on all ranks, naming those that found something else, or nothing that can be used.
    """
    refuse(str(found) if isinstance(found, UserError) else None)
    assert isinstance(found, Preflight)
    newest = newest_of_all(found.checkpoints)
    if newest is None:
        found = dataclasses.replace(found, weights=newest_of_all([found.weights] if found.weights else []))
    else:
        older = [checkpoint for checkpoint in found.checkpoints if checkpoint.step < newest.step]
        found, problem = _based_on(recipe, found, [newest, *older])
        refuse(problem)
    mine = _decided(recipe, found)
    first = [mine]
    torch.distributed.broadcast_object_list(first, src=0, device=device)
    if not recipe.checkpoints.checkpoints_path_is_shared_file_system:  # the ledger is on the first machine alone
        found = dataclasses.replace(found, skipped=first[0]["skipped samples"], changes=first[0]["agreed changes"])
        mine = _decided(recipe, found)
    refuse(_difference(first[0], mine))
    return found


def _based_on(recipe: Recipe, found: Preflight, checkpoints: list[CheckpointReader]) -> tuple[Preflight, str | None]:
    """`found`, seen anew when this rank had found another newest checkpoint; and what is wrong with that."""
    if found.checkpoints[:1] == checkpoints[:1]:
        return found, None
    try:
        return examine(recipe, checkpoints, None, found.tracking_mode), None
    except UserError as error:
        return found, str(error)


def newest_of_all(readers: list[CheckpointReader]) -> CheckpointReader | None:
    """The newest checkpoint that any rank has among its `readers`, newest first; None where all have none.

    To be called on all ranks.

    Raises:
        StartupError: on all ranks, naming those that cannot open it.
    """
    mine = readers[0] if readers else None
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
    """Also a rank whose view of the folder is old can open what it has not listed; else what is wrong."""
    try:
        reader = CheckpointReader(Path(offer.folder))
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


def _decided(recipe: Recipe, found: Preflight) -> dict[str, Any]:
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
