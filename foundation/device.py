"""What a training runs on: GPUs where they are asked for, CPUs elsewhere, and never the one for the other unnoticed.

A rank of which the driver is gone would train on gloo and a CPU, for ever waiting for ranks on NCCL. So nothing falls
back: where GPUs are asked for, a rank without one ends with what torch and nvidia-smi say.
"""

import os
import subprocess
from pathlib import Path

import torch

from foundation.errors import UserError

_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_SMI_SECONDS = 20  # a GPU that has fallen off the bus makes it wait


class DeviceError(UserError):
    """The GPU of a process cannot be used."""


def device_kind() -> str:
    """`cuda` or `cpu`: what this process can use, and was asked to.

    Raises:
        DeviceError: when GPUs are asked for, see `why_gpus`, and torch finds none.
    """
    why = why_gpus()
    if why == "":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if why is None:
        return "cpu"
    raise DeviceError(
        f"{why}, but torch {torch.__version__} finds no GPU: {_why_torch_finds_none()}. {nvidia_smi()} Repair that, or "
        f"set CUDA_VISIBLE_DEVICES to nothing to train on CPUs."
    )


def why_gpus() -> str | None:
    """Who asked for GPUs: a sentence's beginning; empty if somebody asked for CPUs, None if nobody asked.

    A Slurm job says `cuda` or `cpu` (cluster.yaml's `device`). Else CUDA_VISIBLE_DEVICES names GPUs, or none. Else
    those of the machine are meant, unless torch was built without CUDA, which somebody chose.
    """
    job, visible = os.environ.get("JOB_DEVICE"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if job == "cpu" or visible in ("", "-1"):
        return ""
    if job == "cuda":
        return "The cluster's settings say `device: cuda`"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES is {visible}"
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return f"This machine has {there} NVIDIA GPUs" if there and torch.version.cuda else None


def take_gpu(index: int) -> torch.device:
    """GPU `index` as this process's, after a first use of it.

    Raises:
        DeviceError: when there are fewer, or it does not work.
    """
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"This process, number {index} of its machine, needs a GPU of its own, but torch sees {count}. "
            f"{nvidia_smi()} Leave the machine out until that is repaired, or start {count} processes there."
        )
    device = torch.device("cuda", index)
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except RuntimeError as error:
        raise DeviceError(
            f"GPU {index} does not work: {str(error).splitlines()[0]}. {nvidia_smi()} Leave the machine out until that "
            f"is repaired."
        ) from error
    return device


def nvidia_smi() -> str:
    """What `nvidia-smi -L` shows, or says of its own failure, as a sentence."""
    try:
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except FileNotFoundError:
        return "There is no nvidia-smi on this machine: it has no NVIDIA driver, or the container was not given any."
    except (OSError, subprocess.TimeoutExpired):
        return f"nvidia-smi does not answer within {_SMI_SECONDS} s."
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    return f"nvidia-smi -L shows: {'; '.join(lines) or 'nothing'}."


def driver_versions(device: torch.device) -> dict[str, str]:
    """Of the NVIDIA driver and NCCL; nothing on CPUs."""
    if device.type != "cuda":
        return {}
    words = _DRIVER_VERSION.read_text().split() if _DRIVER_VERSION.is_file() else []
    driver = next((word for word in words if word[0].isdigit() and "." in word), "unknown")
    return {"driver": driver, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


def _why_torch_finds_none() -> str:
    if torch.version.cuda is None:
        return "it was built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return f"built for CUDA {torch.version.cuda}, it counts {torch.cuda.device_count()}"
