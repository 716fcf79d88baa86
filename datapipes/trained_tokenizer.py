"""The tokenizer that a recipe has trained on its own sources, once."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from datapipes.errors import SourceError
from datapipes.inputs import Input, UnreachableInputError, compare, find_input, with_contents
from datapipes.readers import texts_of
from datapipes.registry import Source
from datapipes.tokenizer import save_tokenizer, train_tokenizer
from foundation.recipe import Recipe
from foundation.recipe.schema import TrainTokenizer

RECORD_FILE = "trained_on.json"


class TrainedOn(BaseModel):
    """What lies beside the tokenizer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vocab_size: int
    sources: dict[str, Input | str]  # an earlier release noted revisions alone


def train_tokenizer_once(recipe: Recipe, train: TrainTokenizer, sources: list[Source], console: Console) -> None:
    """Train the recipe's tokenizer on these sources if it is not there yet.

    Raises:
        SourceError: if the folder holds one trained on something else.
    """
    folder = Path(recipe.tokenizer.tokenizer_name_or_path)
    if (folder / "tokenizer.json").is_file():
        if changed := list(_differences(folder / RECORD_FILE, train, sources, console)):
            raise SourceError(
                f"The tokenizer in {folder} was trained on other texts or settings than tokenizer.train now says: "
                f"{'; '.join(changed)}. Models trained with it need it: choose another run folder, or delete {folder} "
                f"to train a new one."
            )
        return
    inputs = {source.name: find_input(source) for source in sources}
    with console.status(f"Training a tokenizer of {train.vocab_size} tokens on {len(sources)} sources"):
        tokenizer = train_tokenizer((text for source in sources for text in texts_of(source)), train.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    trained_on = {"vocab_size": train.vocab_size, "sources": {name: _dumped(found) for name, found in inputs.items()}}
    (folder / RECORD_FILE).write_text(json.dumps(trained_on, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder, recipe.architecture.max_position_embeddings)


def _dumped(found: Input) -> dict[str, object]:
    return with_contents(found).model_dump(mode="json")


def _differences(file: Path, train: TrainTokenizer, sources: list[Source], console: Console) -> Iterator[str]:
    """As `key: old -> new`; a source whose files cannot be looked at now is taken as it was."""
    try:
        then = TrainedOn.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        yield f"{file} does not say on what"
        return
    if then.vocab_size != train.vocab_size:
        yield f"vocab_size: {then.vocab_size} -> {train.vocab_size}"
    names = [source.name for source in sources]
    if then.sources.keys() != set(names):
        yield f"sources: {', '.join(then.sources)} -> {', '.join(names)}"
        return
    for source in sources:
        before = then.sources[source.name]
        try:
            now = find_input(source)
        except UnreachableInputError as error:
            console.print(f"The tokenizer is taken as it is: {error.why}", soft_wrap=True, markup=False)
            continue
        if isinstance(before, str):
            if before != now.revision:
                yield f"{source.name}: revision: {before} -> {now.revision}"
        else:
            yield from (f"{source.name}: {changed}" for changed in compare(before, now, console.print)[0])
