"""The locks: exact, complete, in agreement with each other, and to be had for every machine that they are for.

constraints.txt holds one set of versions for every Python that pyproject.toml allows, constraints-cuda.txt what the
CUDA build of torch adds to it, constraints-vllm.txt the environment of vLLM.
"""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import hash_lock, sbom

CACHE = Path.home() / ".cache" / "smollm3-tests" / "uv"
BASE, CUDA, VLLM = (Path(f"constraints{part}.txt") for part in ("", "-cuda", "-vllm"))
# Debian 12, Ubuntu 24.04 and Debian 13 have these; of 3.12 and 3.13 the first releases are the strictest test.
PYTHONS = ("3.11.2", "3.12.0", "3.13.0")
INTEL, ARM = "x86_64-manylinux_2_28", "aarch64-manylinux_2_28"
# What the build of flash-attn imports without saying so to pip; `make setup-flash-attn` installs it first.
BUILD_TOOLS = {"ninja", "wheel"}
# Held back by what vLLM 0.32.0 or a package of its own asks for.
HELD_BACK_BY_VLLM = {"transformers", "numpy", "fastapi", "setuptools", "cuda-bindings"}


def named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    return {named(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)}


def locked(lock: Path) -> dict[str, str]:
    """The pins of a lock and of the one that it continues."""
    text = lock.read_text()
    return {**(pins(BASE.read_text()) if f"--constraint {BASE}" in text else {}), **pins(text)}


def direct(*extras: str) -> dict[str, str]:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return pins("\n".join(lines))


@pytest.mark.parametrize("lock", [BASE, CUDA, VLLM], ids=str)
def test_a_lock_holds_exact_versions_and_nothing_twice(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith(("#", "--constraint "))]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+]+", line)] == []
    names = [named(line.partition("==")[0]) for line in lines]
    assert len(names) == len(set(names)) > 15


def test_every_direct_dependency_is_pinned_alike() -> None:
    everywhere, with_gpu = direct("dev", "storage"), direct("flash-attn")
    assert len(everywhere) > 35 and everywhere.items() <= locked(BASE).items()
    assert with_gpu.items() <= locked(CUDA).items()


def test_the_lock_for_gpus_repeats_nothing_and_pins_what_torch_asks_for() -> None:
    assert pins(CUDA.read_text()).keys().isdisjoint(locked(BASE))
    asked = "\n".join(importlib.metadata.requires("torch") or [])
    for name, version in re.findall(r"^(nvidia-[\w-]+|triton)==([\w.]+)", asked, re.MULTILINE):
        assert locked(CUDA)[name] == version
    assert {"triton", "nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= locked(CUDA).keys()


def test_vllms_lock_departs_only_where_vllm_makes_it() -> None:
    ours, theirs = locked(CUDA), locked(VLLM)
    shared = ours.keys() & theirs.keys()
    assert {name for name in shared if ours[name] != theirs[name]} == HELD_BACK_BY_VLLM
    assert len(shared) > 150 and theirs["torch"] == ours["torch"]


def test_vllms_lock_has_what_an_evaluation_imports() -> None:
    packages = importlib.metadata.packages_distributions()
    files = [path for folder in ("eval", "foundation") for path in Path(folder).rglob("*.py")]
    imported = {module for path in files for module in imports(path)}
    distributions = {named(name) for module in imported for name in packages.get(module, [])} - {"smollm3-pipeline"}
    # wandb is imported where a training starts, and an evaluation does not start one.
    assert {"lighteval", "transformers", "nltk", "pydantic"} < distributions
    assert distributions - locked(VLLM).keys() == {"wandb"}


def test_the_page_about_installing_names_the_versions_of_the_locks() -> None:
    page = " ".join(Path("docs/install.md").read_text().split())
    with_gpu, with_vllm = locked(CUDA), locked(VLLM)
    for text in (
        f"torch {with_gpu['torch']} from the package index is built with CUDA {with_gpu['cuda-toolkit'][:4]} ",
        f"vLLM {with_vllm['vllm']} asks for transformers below",
        f"exports with {with_gpu['transformers']},",
        f"but for transformers ({with_vllm['transformers']}),",
    ):
        assert text in page, text


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


@pytest.fixture(scope="module")
def uv() -> Path:
    """A resolver that evaluates markers for a Python that is not the running one, which pip cannot."""
    command = CACHE / "bin" / "uv"
    if not command.exists():
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(CACHE), "uv==0.13.9")
        subprocess.run(install, check=True)
    return command


def resolve(
    uv: Path, python: str, lock: Path, *what: str | Path, platform: str = INTEL
) -> subprocess.CompletedProcess[str]:
    """What would be installed with `lock` on a machine with this Python, with everything that pyproject.toml names."""
    arguments = ("--quiet", "--no-annotate", "--python-version", python, "--python-platform", platform)
    command = [uv, "pip", "compile", *arguments, *(what or ("--all-extras", "--constraint", lock, "pyproject.toml"))]
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def departures(answer: subprocess.CompletedProcess[str], lock: Path) -> dict[str, str]:
    """Packages that would be installed at another version than the lock's, or that it does not have."""
    assert answer.returncode == 0, answer.stderr
    resolved, pinned = pins(answer.stdout), locked(lock)
    assert len(resolved) > 150
    return {name: version for name, version in resolved.items() if pinned.get(name) != version}


@pytest.mark.compat
@pytest.mark.parametrize("platform", [INTEL, ARM])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_for_gpus_is_what_is_installed_and_all_of_it(uv: Path, python: str, platform: str) -> None:
    answer = resolve(uv, python, CUDA, platform=platform)
    assert departures(answer, CUDA) == {}
    assert locked(CUDA).keys() - pins(answer.stdout).keys() == BUILD_TOOLS


@pytest.mark.compat
@pytest.mark.parametrize("python", PYTHONS)
def test_vllms_lock_is_what_is_installed_and_all_of_it(uv: Path, tmp_path: Path, python: str) -> None:
    """Its first paragraph brings the second."""
    wanted = tmp_path / "wanted.in"
    wanted.write_text(VLLM.read_text().partition("\n\n")[0])
    answer = resolve(uv, python, VLLM, "--constraint", VLLM, wanted)
    assert departures(answer, VLLM) == {}
    assert "vllm" in pins(wanted.read_text()) and locked(VLLM).keys() == pins(answer.stdout).keys()


@pytest.mark.compat
def test_a_package_that_nothing_pins_is_found(uv: Path, tmp_path: Path) -> None:
    lock = tmp_path / "constraints-cuda.txt"
    text = CUDA.read_text().replace(f"--constraint {BASE}", f"--constraint {BASE.resolve()}")
    lock.write_text(re.sub(r"nvidia-nvjitlink==\S+\n", "", text))
    answer = resolve(uv, "3.12.0", lock)
    found = {name for name, version in pins(answer.stdout).items() if pins(lock.read_text()).get(name) != version}
    assert found - locked(BASE).keys() == {"nvidia-nvjitlink"}, answer.stderr


@pytest.mark.compat
def test_a_pin_that_needs_a_later_patch_release_is_found(uv: Path, tmp_path: Path) -> None:
    """soupsieve 4.1.2 asks for Python 3.11.5, which Debian 12 does not have."""
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(re.sub(r"soupsieve==\S+", "soupsieve==4.1.2", BASE.read_text()))
    answer = resolve(uv, "3.11.2", constraints)
    assert answer.returncode != 0 and "soupsieve==4.1.2 depends on Python>=3.11.5" in answer.stderr
    assert resolve(uv, "3.12.0", constraints).returncode == 0


@pytest.mark.compat
def test_vllm_and_this_projects_transformers_exclude_each_other(uv: Path, tmp_path: Path) -> None:
    wanted = tmp_path / "both.in"
    wanted.write_text(f"vllm=={locked(VLLM)['vllm']}\ntransformers=={locked(BASE)['transformers']}\n")
    answer = resolve(uv, "3.12.0", VLLM, wanted)
    assert answer.returncode != 0 and "vllm==0.32.0 depends on transformers>=5.16.1,<5.20.0" in answer.stderr


HASHED = {name: Path("locks", f"{name}.txt") for name in ("build", "base", "cuda")}


def test_the_locks_with_hashes_are_those_with_versions() -> None:
    """Every pin once, each with hashes; of flash-attn's, which `make setup` does not install, none."""
    texts = {name: path.read_text() for name, path in HASHED.items()}
    entries = {name: pins(re.sub(r" \\$", "", text, flags=re.MULTILINE)) for name, text in texts.items()}
    assert sum(map(len, entries.values())) == len({pin for part in entries.values() for pin in part.items()})
    of_flash_attn = {"flash-attn", "einops", *BUILD_TOOLS}
    everything = {name: version for name, version in locked(CUDA).items() if name not in of_flash_attn}
    assert {name: version for part in entries.values() for name, version in part.items()} == everything
    assert set(entries["build"]) == {"setuptools"} and "torch" in entries["cuda"]
    assert entries["cuda"].items() <= {**pins(CUDA.read_text()), "torch": everything["torch"]}.items()
    for text in texts.values():
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        hashed = r"( \\\n    --hash=sha256:[0-9a-f]{64})+"
        assert re.fullmatch(rf"([\w.-]+==\S+{hashed}\n)+", "\n".join(lines) + "\n")


def test_the_locks_are_split_as_they_say() -> None:
    entry = "{} \\\n    --hash=sha256:" + "0" * 64 + "\n"
    wanted = {"build": ["setuptools==84.2.1"], "base": ["numpy==2.4.6"], "cuda": ["torch==2.13.0", "triton==3.7.1"]}
    order = ("numpy==2.4.6", "setuptools==84.2.1", "torch==2.13.0", "triton==3.7.1", "ninja==1.13.2")
    compiled = "".join(map(entry.format, order))
    assert hash_lock.split(compiled) == {name: [entry.format(pin) for pin in part] for name, part in wanted.items()}


def test_the_bill_of_materials_has_every_package_of_the_locks(tmp_path: Path) -> None:
    sbom.main(tmp_path / "dist" / "sbom.cdx.json")
    content = json.loads((tmp_path / "dist" / "sbom.cdx.json").read_text())
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    found = {named(part["name"]): part["version"] for part in content["components"]}
    assert found.items() <= locked(CUDA).items() and len(found) == len(content["components"]) > 200
    assert content["metadata"]["component"]["licenses"][0]["expression"].startswith("Apache-2.0")
    for part in content["components"]:
        assert part["hashes"] and all(len(entry["content"]) == 64 for entry in part["hashes"])
    assert {part["bom-ref"] for part in content["components"]} == set(content["dependencies"][0]["dependsOn"])


def test_what_is_accepted_of_vulnerabilities_says_why() -> None:
    lines = [
        line for line in Path("locks/accepted_vulnerabilities").read_text().splitlines() if not line.startswith("#")
    ]
    assert [line for line in lines if not re.fullmatch(r"[A-Z]+-[0-9A-Za-z-]+ .{20,}", line)] == []
