"""The recipe of a synthetic set."""

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from datapipes.registry import Files, Hub
from foundation.recipe import Problem, Section, load_as

_KEY_VARIABLE = re.compile(r"([A-Za-z][A-Za-z0-9_]*_)?TEACHER_KEY")


class Teacher(Section):
    """A model behind an OpenAI-compatible server (vLLM, `transformers serve`, a hosted endpoint)."""

    url: str = Field(pattern=r"^https?://", description="Of the server, without /v1.")
    model: str = Field(description="Name under which the server knows the model.")
    thinking: bool = Field(True, description="Whether the model reasons, and answers without a think block are lost.")
    request: dict[str, Any] = Field(
        description="Fields of every request as the server spells them: max_tokens, temperature, top_p, top_k, ..."
    )
    api_key_variable: str | None = Field(
        None, description="Environment variable that holds the server's API key; its name ends in TEACHER_KEY."
    )
    max_concurrent_requests: int = Field(64, gt=0, description="Conversations in flight; bounds the memory too.")
    requests_per_minute: int | None = Field(None, gt=0, description="Pace; null is as fast as the server answers.")
    request_timeout_seconds: float = Field(1800.0, gt=0, description="For a whole answer: it comes in one piece.")
    ready_seconds: int = Field(60, gt=0, description="How long the server may take to come up.")
    retries: int = Field(5, ge=0, description="After no answer, an overloaded server or one that is not understood.")
    retry_delay_seconds: float = Field(2.0, gt=0, description="Before the first retry; doubled with each.")


class SyntheticRecipe(Section):
    """A resolved recipe: with `rejected` it makes preference pairs, without it conversations for SFT."""

    output: str = Field(description="Folder: answers/ as they came, train.jsonl with the training rows, report.json.")
    prompts: list[Annotated[Files | Hub, Field(discriminator="kind")]] = Field(
        min_length=1, description="Sets of conversations; their assistant turns are answered anew."
    )
    teacher: Teacher
    rejected: Teacher | None = Field(
        None, description="A weaker model: its answer is what the teacher's is chosen over."
    )
    max_lost_fraction: float = Field(0.5, ge=0, lt=1, description="More lost conversations than this are an error.")
    benchmarks: str | None = Field(
        None, description="Folder of evaluation sets (<benchmark>.jsonl); conversations with their passages are lost."
    )

    @property
    def output_folder(self) -> Path:
        return Path(self.output)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> SyntheticRecipe:
    """Read, resolve and validate a recipe; see `foundation.recipe.load_as`.

    Raises:
        RecipeError: naming every wrong key with file, line and fix.
    """
    return load_as(SyntheticRecipe, path, overrides, _check)


def _check(recipe: SyntheticRecipe) -> list[Problem]:
    return [*_check_modes(recipe), *_check_keys("teacher", recipe.teacher), *_check_keys("rejected", recipe.rejected)]


def _check_modes(recipe: SyntheticRecipe) -> Iterator[Problem]:
    if recipe.rejected is not None and recipe.rejected.thinking != recipe.teacher.thinking:
        message = "Chosen and rejected answers must be in the same mode: set it as in teacher.thinking."
        yield Problem(("rejected", "thinking"), message)


def _check_keys(section: str, teacher: Teacher | None) -> Iterator[Problem]:
    """A recipe, which may be somebody else's, chooses which variable goes to which address: only one that was made for
    a teacher, and only where nobody can listen."""
    if teacher is None or teacher.api_key_variable is None:
        return
    if not _KEY_VARIABLE.fullmatch(teacher.api_key_variable):
        message = (
            f"{teacher.api_key_variable!r} is not the name of a teacher's key. Export the key of this server in a "
            f"variable of its own whose name ends in TEACHER_KEY, such as MY_TEACHER_KEY."
        )
        yield Problem((section, "api_key_variable"), message)
    if not _is_private(teacher.url):
        message = f"The key would be sent unencrypted to {teacher.url}. Use https://, or a server on this machine."
        yield Problem((section, "url"), message)


def _is_private(url: str) -> bool:
    address = urlsplit(url)
    if address.scheme == "https" or address.hostname == "localhost":
        return True
    try:
        return ip_address(address.hostname or "").is_loopback
    except ValueError:  # a name
        return False
