"""What is installed beside this Python, against what the project's lock says."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation.project import is_checkout, project_file

VLLM_LOCK = "constraints-vllm.txt"
_LOCK = "constraints-cuda.txt"  # continues constraints.txt, and is inert where torch is built without CUDA
_PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
_CONTINUES = re.compile(r"^--constraint (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One that the project needs or its lock has; `installed` and `locked` are versions, None where there is none."""

    name: str
    installed: str | None
    locked: str | None

    @property
    def differs(self) -> bool:
        """A local version, such as torch's 2.13.0+cpu, is a build of the version, not another one."""
        return None not in (self.installed, self.locked) and str(self.installed).partition("+")[0] != self.locked


@dataclass(frozen=True)
class Packages:
    lock: str  # where the versions are from
    remedy: str  # what installs them again
    all: tuple[Package, ...]


def look() -> Packages:
    """What the project needs on this machine, directly or not, and what else of its lock is installed; in vLLM's
    environment all of the lock.

    Raises:
        ImportError: if the package `packaging`, which reads requirements, is not there.
        IncompleteInstallationError: if the lock is not there.
    """
    if installed_version("vllm"):
        pins = read_lock(project_file(VLLM_LOCK))
        return Packages(VLLM_LOCK, _anew(".venv-vllm", "vllm"), _held_against(pins, set(pins)))
    pins = read_lock(project_file(_LOCK))
    names = _needed(_requirements_of_the_project()) | {name for name in pins if installed_version(name)}
    return Packages(_LOCK, _anew(".venv"), _held_against(pins, names))


def how_to_get(what: Literal["", "vllm", "flash-attn"] = "") -> str:
    """The command that installs everything, or `what`: in a checkout a target of make, elsewhere what that does."""
    if is_checkout():
        return f"make setup{what and f'-{what}'}"
    if what == "vllm":
        return f"in an environment of its own: pip install --requirement {project_file(VLLM_LOCK)}"
    extra = "--no-build-isolation 'smollm3-pipeline[flash-attn]'" if what else "smollm3-pipeline"
    return f"pip install --constraint {project_file(_LOCK)} {extra}"


def _anew(environment: str, what: Literal["", "vllm"] = "") -> str:
    """The same for what is installed already, which make would leave as it is."""
    return f"{f'rm -f {environment}/.installed; ' if is_checkout() else ''}{how_to_get(what)}"


def read_lock(path: Path) -> dict[str, str]:
    """Versions by normalised name, those of the file that it continues included."""
    text = path.read_text(encoding="utf-8")
    before = (read_lock(path.parent / name) for name in _CONTINUES.findall(text))
    own = {normalised(name): version for name, version in _PIN.findall(text)}
    return {name: version for pins in (*before, own) for name, version in pins.items()}


def normalised(name: str) -> str:
    """The one spelling of a package's name, as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _held_against(pins: dict[str, str], names: set[str]) -> tuple[Package, ...]:
    return tuple(Package(name, installed_version(name), pins.get(name)) for name in sorted(names))


def _requirements_of_the_project() -> list[str]:
    """Without its extras, of pyproject.toml: in a checkout that may be newer than what was installed from it."""
    project = tomllib.loads(project_file("pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies: list[str] = project["dependencies"]
    return dependencies


def _needed(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that the requirements lead to on this machine, through those that are installed."""
    from packaging.requirements import Requirement

    found: dict[str, set[str]] = {}  # by name, with the extras that were followed
    new = [Requirement(line) for line in requirements]
    while new:
        requirement = new.pop()
        name, extras = normalised(requirement.name), requirement.extras | {""}
        if name in found and extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | extras
        if installed_version(name) is None:
            continue
        for one in map(Requirement, importlib.metadata.requires(name) or []):
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
                new.append(one)
    return set(found)
