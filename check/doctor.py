"""What this machine has of what the project uses, what a training would do with it, and how to get what is missing.

Nothing is changed and nothing is asked of a network. Exit code 1 if something is missing or broken that the project
cannot run without; all else that is missing, another version than the lock's included, is a note.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlparse

from check import packages
from check.packages import DISTRIBUTION, ROOT, VLLM_LOCK, Packages, installed_version

State: TypeAlias = Literal["ok", "note", "broken"]
# NVIDIA, CUDA Compatibility, table 1: the lowest driver branch under which applications of a CUDA major release run.
LOWEST_DRIVER = {12: 525, 13: 580}
PYTHONS = ((3, 11), (3, 14))  # from, and below; as `requires-python` says
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")


@dataclass(frozen=True)
class Finding:
    """One line of the answer."""

    about: str
    name: str
    state: State
    found: str
    advice: str = ""  # how to get what is missing


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m check.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    as_json = parser.parse_args(arguments).json
    findings = examine()
    works = all(finding.state != "broken" for finding in findings)
    if as_json:
        print(json.dumps({"works": works, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        _print_table(findings)
    return 0 if works else 1


def examine() -> list[Finding]:
    """All findings, in the order of the table. What cannot be found out is a finding of its own, never an exception."""
    findings = list(_python())
    in_vllms_environment = False
    try:
        found = packages.look()
        findings += _packages(found)
        in_vllms_environment = found.lock == VLLM_LOCK  # which evaluates and serves models, and trains none
    except ImportError as error:
        findings.append(Finding("packages", str(error.name), "broken", "not installed", "make setup"))
    asked: dict[Callable[[], Iterator[Finding]], str] = {
        _torch: "torch",
        **({} if in_vllms_environment else {_engine: "training", _attention: "training", _compilation: "training"}),
        _vllm: "vLLM",
        _slurm: "cluster",
        **({} if in_vllms_environment else {_wandb: "accounts"}),
        _hub: "accounts",
        _disk: "disk",
    }
    for ask, about in asked.items():
        try:
            findings += ask()
        # Of any package, torn in any way. Only the kind of error is told: its text may hold what a secret file does.
        except Exception as error:
            name = ask.__name__.removeprefix("_")
            findings.append(Finding(about, name, "note", f"could not be found out ({type(error).__name__})"))
    return findings


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    advice = "" if fits else "make setup looks for a Python from 3.11 to 3.13; remove .venv first"
    yield Finding("python", "Python", "ok" if fits else "broken", f"{version}, {sys.executable}", advice)


def _packages(found: Packages) -> Iterator[Finding]:
    missing = [package for package in found.all if package.installed is None]
    differing = [package for package in found.all if package.differs]
    as_locked = len(found.all) - len(missing) - len(differing)
    summary = f"{as_locked} of {len(found.all)} as in {found.lock}"
    yield Finding("packages", "versions", "note" if missing or differing else "ok", summary)
    for package in missing:
        wanted = "not installed" + (f"; the lock has {package.locked}" if package.locked else "")
        yield Finding("packages", package.name, "broken", wanted, found.remedy)
    for package in differing:
        yield Finding("packages", package.name, "note", f"{package.installed}, not {package.locked}", found.remedy)


def _torch() -> Iterator[Finding]:
    driver, gpus = _nvidia_smi()
    try:
        import torch
    except Exception as error:  # an ImportError of a half-installed one, an OSError of a library that does not load
        if installed_version("torch") is not None:  # else it is among the packages that are not installed
            yield Finding("torch", "torch", "broken", f"does not import: {error}", "make setup, in a new .venv")
        return
    cuda = torch.version.cuda
    build = f"CUDA {cuda}" if cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "without CUDA"
    no_use_of_gpu = bool(gpus) and not cuda
    advice = "the GPUs of this machine are not used: docs/install.md, 'A GPU machine'" if no_use_of_gpu else ""
    yield Finding("torch", "build", "note" if no_use_of_gpu else "ok", f"{torch.__version__}, {build}", advice)
    yield _driver(driver, cuda)
    if not gpus:
        yield Finding("torch", "GPUs", "note", "none: everything runs on CPUs", "miniatures need none")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a driver that is too old, which the line above has said
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    state: State = "ok" if usable == len(gpus) else "note"
    advice = "" if state == "ok" else f"torch can use {usable} of them: see driver and build, and CUDA_VISIBLE_DEVICES"
    yield Finding("torch", "GPUs", state, "; ".join(gpus), advice)


def _nvidia_smi() -> tuple[str | None, list[str]]:
    """(version of the driver, one description per GPU), None and nothing where there is no NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, []
    rows = [line.split(", ") for line in answer.splitlines() if line.count(", ") == 2]
    return (rows[0][0] if rows else None), [f"{name}, {memory}" for _, name, memory in rows]


def _driver(version: str | None, cuda: str | None) -> Finding:
    lowest = LOWEST_DRIVER.get(int(cuda.partition(".")[0])) if cuda else None
    if version is None:
        return Finding("torch", "NVIDIA driver", "note", "nvidia-smi names none", "a machine without GPUs needs none")
    if lowest is None or int(version.partition(".")[0]) >= lowest:
        return Finding("torch", "NVIDIA driver", "ok", version)
    advice = f"CUDA {cuda} needs branch {lowest} or later: update it, or install torch built for an older CUDA"
    return Finding("torch", "NVIDIA driver", "note", version, advice)


def _engine() -> Iterator[Finding]:
    if installed_version("nanotron") is None or installed_version("torch") is None:
        return  # named among the packages
    try:
        import nanotron_ext.engine  # noqa: F401
    except Exception as error:
        advice = "make setup; nanotron_ext/engine.py bridges exactly the pinned release"
        yield Finding("training", "engine", "broken", f"nanotron does not import: {error}", advice)
    else:
        yield Finding("training", "engine", "ok", f"nanotron {installed_version('nanotron')}")


def _device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _attention() -> Iterator[Finding]:
    import torch

    from nanotron_ext.model.attention import attention_backend

    device = _device_type()
    backend = attention_backend(device, torch.bfloat16).__name__.lstrip("_").removeprefix("attend_")
    yield Finding("training", "attention", "ok", f"pretraining in bfloat16 on {device} would use {backend}")
    version = installed_version("flash-attn")
    if version is None:
        advice = "for post-training on GPUs: make setup-flash-attn, or model.attn_implementation=sdpa"
        yield Finding("training", "flash-attn", "note", "not installed", advice)
        return
    try:
        import flash_attn  # noqa: F401
    except Exception as error:  # undefined symbols, when it was built against another torch
        advice = "build it anew (make setup-flash-attn), or pip uninstall flash-attn"
        state: State = "broken" if backend == "flash_attn" else "note"
        yield Finding("training", "flash-attn", state, f"{version} does not import: {error}", advice)
    else:
        yield Finding("training", "flash-attn", "ok", version)


def _compilation() -> Iterator[Finding]:
    """What torch.compile needs: Triton and a C compiler with Python's headers on a GPU, a C++ compiler on a CPU."""
    device = _device_type()
    lacking = _lacks_for_gpus() if device == "cuda" else _lacks_for_cpus()
    used = "parallelism.compile: auto compiles" if device == "cuda" else "parallelism.compile: auto does not compile"
    if not lacking:
        yield Finding("training", "compilation", "ok", f"works on this {device}; {used}")
        return
    without = "" if device == "cpu" else "; until then parallelism.compile=false"
    yield Finding(
        "training", "compilation", "note", f"would fail on this {device}: no {' and no '.join(lacking)}; {used}",
        f"on Debian and Ubuntu: apt-get install g++ python3-dev{without}",
    )  # fmt: skip


def _lacks_for_gpus() -> list[str]:
    lacking = [] if installed_version("triton") else ["triton"]
    # Triton builds its launchers with CC, gcc or clang, whichever is there first.
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        lacking.append("C compiler")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return lacking if headers.is_file() else [*lacking, str(headers)]


def _lacks_for_cpus() -> list[str]:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return ["C++ compiler"]
    return []


def _vllm() -> Iterator[Finding]:
    here, beside = installed_version("vllm"), ROOT / ".venv-vllm" / "bin" / "vllm"
    if here:
        yield Finding("vLLM", "vllm", "ok", f"{here}, in this environment")
    elif beside.is_file():
        yield Finding("vLLM", "vllm", "ok", f"in {beside.parents[1]}")
    else:
        advice = "make setup-vllm, for synthetic data, judges and make eval ENGINE=vllm on GPUs"
        yield Finding("vLLM", "vllm", "note", "not installed", advice)


def _slurm() -> Iterator[Finding]:
    missing = [command for command in SLURM_COMMANDS if shutil.which(command) is None]
    if not missing:
        yield Finding("cluster", "Slurm", "ok", shutil.which("sbatch") or "")
        return
    advice = "a login node of a cluster has them; a local Slurm: apt-get install slurm-wlm munge, slurm/dev-cluster up"
    yield Finding("cluster", "Slurm", "note", f"no {', '.join(missing)}", advice)


def _wandb() -> Iterator[Finding]:
    from foundation.journal import wandb_logged_in, wandb_server

    server = urlparse(wandb_server()).hostname  # without a password that the address may hold
    if wandb_logged_in():
        yield Finding("accounts", "wandb", "ok", f"there is a key for {server}")
    else:
        advice = "wandb login; until then runs are written offline, for wandb sync"
        yield Finding("accounts", "wandb", "note", f"nobody is logged in at {server}", advice)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import get_token

    if get_token() is not None:
        yield Finding("accounts", "hub token", "ok", "there is one")
    else:
        advice = "hf auth login, or HF_TOKEN; what is open to everybody needs none"
        yield Finding("accounts", "hub token", "note", "none", advice)


def _disk() -> Iterator[Finding]:
    usage = shutil.disk_usage(".")
    yield Finding("disk", "free here", "ok", f"{usage.free / 1e9:,.0f} of {usage.total / 1e9:,.0f} GB in {Path.cwd()}")


def _print_table(findings: Sequence[Finding]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:  # one of the things that may be missing
        for finding in findings:
            print("  ".join(filter(None, (finding.state, finding.name, finding.found, finding.advice))))
        return
    styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = Text(finding.state, style=styles[finding.state])
        table.add_row(mark, Text(finding.name), Text(finding.found), Text(finding.advice))
    console = Console()
    console.print(table)
    broken = [finding.name for finding in findings if finding.state == "broken"]
    verdict = f"{DISTRIBUTION} cannot run here: {', '.join(broken)}." if broken else f"{DISTRIBUTION} runs here."
    console.print(Text(verdict), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
