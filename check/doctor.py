"""What this machine has of what the project uses, what a training would do with it, and how to get what is missing.

Nothing is changed and nothing is asked of a network. This works where packages are missing, torch and rich among them:
whatever is not of Python's own library is imported where it is asked for.
"""

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
from check.packages import VLLM_LOCK, Packages, how_to_get, installed_version
from foundation.errors import UserError
from foundation.project import ROOT, project_file

State: TypeAlias = Literal["ok", "note", "broken"]
# NVIDIA, CUDA Compatibility, table 1: the lowest driver branch under which applications of a CUDA major release run.
LOWEST_DRIVER = {12: 525, 13: 580}
PYTHONS = ((3, 11), (3, 14))  # from, and below; as `requires-python` says
SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")


@dataclass(frozen=True)
class Finding:
    """One line of the answer. `broken` is what the project cannot run without; all else that is missing, another
    version than the lock's included, is a `note`."""

    about: str
    name: str
    state: State
    found: str
    advice: str = ""  # how to get what is missing


def examine() -> list[Finding]:
    """All findings, in the order of the table. What cannot be found out is a finding of its own, never an exception."""
    findings = [*_python(), _project()]
    in_vllms_environment = False
    try:
        found = packages.look()
        findings += _packages(found)
        in_vllms_environment = found.lock == VLLM_LOCK  # which evaluates and serves models, and trains none
    except ImportError as error:
        findings.append(Finding("packages", str(error.name), "broken", "not installed", how_to_get()))
    except UserError as error:
        findings.append(Finding("packages", "locks", "broken", str(error)))
    trains = not in_vllms_environment and installed_version("torch") is not None
    asked: dict[Callable[[], Iterator[Finding]], str] = {
        _torch: "torch",
        **({_engine: "training", _attention: "training", _compilation: "training"} if trains else {}),
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


def works(findings: Sequence[Finding]) -> bool:
    """Whether the project runs here; the exit code of `smollm3 doctor` is 0 then and 1 otherwise."""
    return all(finding.state != "broken" for finding in findings)


def to_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"works": works(findings), "findings": [asdict(finding) for finding in findings]}, indent=1)


def show(findings: Sequence[Finding]) -> None:
    """Print a table; without rich, which may be what is missing, plain lines."""
    broken = [finding.name for finding in findings if finding.state == "broken"]
    verdict = f"SmolLM3's pipeline cannot run here: {', '.join(broken)}." if broken else "SmolLM3's pipeline runs here."
    try:
        from rich.table import Table
        from rich.text import Text

        from foundation.terminal import Terminal
    except ImportError:
        for finding in findings:
            print("  ".join(filter(None, (finding.state, finding.name, finding.found, finding.advice))))
        print(verdict)
        return
    styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = Text(finding.state, style=styles[finding.state])
        table.add_row(mark, Text(finding.name), Text(finding.found), Text(finding.advice))
    console = Terminal(width=None if sys.stdout.isatty() else 120)  # rich takes 80 for a file
    console.print(table)
    console.print(Text(verdict), soft_wrap=True)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]
    advice = "" if fits else "a new environment of Python 3.11 to 3.13; after 'rm -r .venv', make setup looks for one"
    yield Finding("python", "Python", "ok" if fits else "broken", f"{version}, {sys.executable}", advice)


def _project() -> Finding:
    try:
        return Finding("python", "recipes", "ok", str(project_file("recipes")))
    except UserError as error:
        return Finding("python", "recipes", "broken", str(error), how_to_get())


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
            advice = f"in a new environment: {how_to_get()}"
            yield Finding("torch", "torch", "broken", f"does not import: {error}", advice)
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
    if installed_version("nanotron") is None:
        return  # named among the packages
    try:
        import nanotron_ext.engine  # noqa: F401
    except Exception as error:
        advice = f"{how_to_get()}; nanotron_ext/engine.py bridges exactly the pinned release"
        yield Finding("training", "engine", "broken", f"nanotron does not import: {error}", advice)
    else:
        yield Finding("training", "engine", "ok", f"nanotron {installed_version('nanotron')}")


def _device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _attention() -> Iterator[Finding]:
    import torch

    from nanotron_ext.model.attention_backends import AttentionShape, choose_attention

    device = _device_type()
    backend, _ = choose_attention(device, torch.bfloat16, AttentionShape(heads=16, kv_heads=4, head_dim=128))  # of 3B
    yield Finding("training", "attention", "ok", f"pretraining in bfloat16 on {device} would use {backend}")
    version = installed_version("flash-attn")
    if version is None:
        advice = f"for post-training on GPUs: {how_to_get('flash-attn')}, or model.attn_implementation=sdpa"
        yield Finding("training", "flash-attn", "note", "not installed", advice)
        return
    try:
        import flash_attn  # noqa: F401
    except Exception as error:  # undefined symbols, when it was built against another torch
        advice = f"pip uninstall flash-attn; to build it anew: {how_to_get('flash-attn')}"
        yield Finding("training", "flash-attn", "note", f"{version} does not import: {error}", advice)
    else:
        yield Finding("training", "flash-attn", "ok", version)


def _compilation() -> Iterator[Finding]:
    """What torch.compile needs: Triton and a C compiler with Python's headers on a GPU, a C++ compiler on a CPU."""
    device = _device_type()
    compiler, lacking = _compiler_for_gpus() if device == "cuda" else _compiler_for_cpus()
    used = "parallelism.compile: auto compiles" if device == "cuda" else "parallelism.compile: auto does not compile"
    if not lacking:
        yield Finding("training", "compilation", "ok", f"works on this {device}, with {compiler}; {used}")
        return
    without = "" if device == "cpu" else "; until then parallelism.compile=false"
    yield Finding(
        "training", "compilation", "note", f"would fail on this {device}: no {' and no '.join(lacking)}; {used}",
        f"on Debian and Ubuntu: apt-get install g++ python3-dev{without}",
    )  # fmt: skip


def _compiler_for_gpus() -> tuple[str, list[str]]:
    """(what Triton compiles with: CC, gcc or clang, whichever is there first; what lacks)"""
    found = next(filter(None, map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))), None)
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    needed = {"triton": installed_version("triton"), "C compiler": found, str(headers): headers.is_file()}
    return f"Triton {needed['triton']} and {found}", [name for name, there in needed.items() if not there]


def _compiler_for_cpus() -> tuple[str, list[str]]:
    """(the C++ compiler that torch takes, what lacks)"""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler(), []
    except InvalidCxxCompiler:
        return "", ["C++ compiler"]


def _vllm() -> Iterator[Finding]:
    here, beside = installed_version("vllm"), ROOT / ".venv-vllm" / "bin" / "vllm"
    if here:
        yield Finding("vLLM", "vllm", "ok", f"{here}, in this environment")
    elif beside.is_file():
        yield Finding("vLLM", "vllm", "ok", f"in {beside.parents[1]}")
    else:
        advice = f"for synthetic data, judges and evaluation with backend.engine=vllm on GPUs: {how_to_get('vllm')}"
        yield Finding("vLLM", "vllm", "note", "not installed", advice)


def _slurm() -> Iterator[Finding]:
    missing = [command for command in SLURM_COMMANDS if shutil.which(command) is None]
    if not missing:
        place = shutil.which("sbatch") or ""
        if _answers("squeue", "--me", "--noheader"):
            yield Finding("cluster", "Slurm", "ok", place)
        else:
            advice = "log in to a cluster, or start one on this machine: slurm/dev-cluster up"
            yield Finding("cluster", "Slurm", "note", f"{place}, but no cluster answers", advice)
        return
    advice = "a login node of a cluster has them; a local Slurm: apt-get install slurm-wlm munge, slurm/dev-cluster up"
    yield Finding("cluster", "Slurm", "note", f"no {', '.join(missing)}", advice)


def _answers(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _wandb() -> Iterator[Finding]:
    from foundation.wandb_run import wandb_logged_in, wandb_server

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
