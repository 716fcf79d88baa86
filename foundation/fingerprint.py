"""What a result depends on, in one SHA-256 per kind, so that it can be said which of them has changed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fingerprint:
    """`parts`: kind (code, recipe, data, versions, ...) -> SHA-256 of what there is of it."""

    parts: Mapping[str, str]

    @cached_property
    def total(self) -> str:
        """A result made under an equal one still stands."""
        return sha256(dict(self.parts))

    def changes_since(self, parts: Mapping[str, str]) -> str:
        """The kinds in which it differs from the `parts` of another one, in words; empty when it does not."""
        kinds = [*self.parts, *(kind for kind in parts if kind not in self.parts)]
        return ", ".join(kind for kind in kinds if self.parts.get(kind) != parts.get(kind))


def fingerprint(contents: Mapping[str, Any]) -> Fingerprint:
    """Of everything that a result depends on, by kind; each made of what JSON can hold, paths and dataclasses."""
    return Fingerprint({kind: sha256(content) for kind, content in contents.items()})


def sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} has no form in JSON that is the same tomorrow")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The releases of those of the `packages` that are installed."""
    return {package: release for package in packages if (release := _version(package)) is not None}


@cache  # every task of an evaluation asks, and each answer parses the package's metadata
def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
