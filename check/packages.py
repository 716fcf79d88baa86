"""What is installed beside this Python, against what the project's lock says."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "smollm3-pipeline"
VLLM_LOCK = "constraints-vllm.txt"
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
    """
    if installed_version("vllm") and (ROOT / VLLM_LOCK).is_file():
        pins = read_lock(ROOT / VLLM_LOCK)
        return Packages(VLLM_LOCK, "rm .venv-vllm/.installed; make setup-vllm", _held_against(pins, set(pins)))
    requirements = _requirements_of_the_project()
    lock = ROOT / "constraints-cuda.txt"
    if lock.is_file():
        pins, source, remedy = read_lock(lock), lock.name, "rm .venv/.installed; make setup"
    else:  # installed from a wheel
        pins, source = _pins("\n".join(requirements)), f"what {DISTRIBUTION} asks for"
        remedy = f"install {DISTRIBUTION} again with pip"
    names = _needed(requirements) | {name for name in pins if installed_version(name)}
    return Packages(source, remedy, _held_against(pins, names))


def read_lock(path: Path) -> dict[str, str]:
    """Versions by normalised name, those of the file that it continues included."""
    text = path.read_text(encoding="utf-8")
    before = (read_lock(path.parent / name) for name in _CONTINUES.findall(text))
    return {name: version for pins in (*before, _pins(text)) for name, version in pins.items()}


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


def _pins(text: str) -> dict[str, str]:
    return {normalised(name): version for name, version in _PIN.findall(text)}


def _requirements_of_the_project() -> list[str]:
    """Without its extras; in a checkout those of pyproject.toml, which may be newer than what was installed from it."""
    file = ROOT / "pyproject.toml"
    if file.is_file():
        dependencies: list[str] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
        return dependencies
    return [line for line in importlib.metadata.requires(DISTRIBUTION) or [] if "extra ==" not in line]


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
