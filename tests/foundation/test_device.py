"""GPUs that are asked for and absent are an error that says what nvidia-smi shows; nothing falls back to CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation import device
from foundation.device import DeviceError, device_kind, nvidia_smi, take_gpu
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides, prepare

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
BROKEN_DRIVER = (
    "echo NVIDIA-SMI has failed because it couldn\\'t communicate with the NVIDIA driver. Make sure that it is "
    "installed and running.; exit 9"
)
SEVEN = "for i in 0 1 2 3 4 5 6; do echo GPU $i: NVIDIA H100; done; echo Unable to determine the device handle for GPU7"


def put_nvidia_smi(folder: Path, script: str) -> str:
    """A PATH with an nvidia-smi that does what `script` says."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("JOB_DEVICE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"JOB_DEVICE": "cpu"}, False),
        ({"JOB_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, False),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, True),
        ({"JOB_DEVICE": "cuda"}, True),
    ],
    ids=str,
)
def test_who_asks_for_gpus(nobody_asks: pytest.MonkeyPatch, environment: dict[str, str], asked: bool) -> None:
    for name, value in environment.items():
        nobody_asks.setenv(name, value)
    if not asked:
        assert device_kind() == "cpu"
        return
    with pytest.raises(DeviceError, match=r"but torch \S+ finds no GPU: .*set CUDA_VISIBLE_DEVICES to nothing"):
        device_kind()


def test_a_machines_own_gpus_are_meant_by_torch_built_for_them(nobody_asks: pytest.MonkeyPatch) -> None:
    nobody_asks.setattr(Path, "glob", lambda path, pattern: iter([path / "nvidia0", path / "nvidia1"]))
    nobody_asks.setattr(torch.version, "cuda", None)
    assert device_kind() == "cpu"
    nobody_asks.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(DeviceError, match=r"This machine has 2 NVIDIA GPUs, but torch \S+ finds no GPU"):
        device_kind()


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (BROKEN_DRIVER, "shows: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
        (SEVEN, "GPU 6: NVIDIA H100; Unable to determine the device handle for GPU7."),
        ("", "nvidia-smi -L shows: nothing."),
        ("sleep 5", "nvidia-smi does not answer within 1 s."),
    ],
)
def test_what_nvidia_smi_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, shown: str) -> None:
    monkeypatch.setenv("PATH", put_nvidia_smi(tmp_path / "bin", script))
    monkeypatch.setattr(device, "_SMI_SECONDS", 1)
    assert shown in nvidia_smi()


def test_a_lost_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", put_nvidia_smi(tmp_path / "bin", SEVEN))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    with pytest.raises(DeviceError, match=r"number 7 of its machine.*torch sees 7\. nvidia-smi -L shows: GPU 0:"):
        take_gpu(7)


POSTTRAINING = """
import sys
from foundation.errors import UserError
from posttrain.training import processes
try:
    processes()
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("kind", ["pretraining", "post-training"])
def test_a_training_that_asks_for_gpus_ends_before_it_begins(kind: str, tmp_path: Path) -> None:
    """As on a node of a Slurm job whose driver is gone."""
    prepare(tmp_path)
    pretraining = ["-m", "nanotron_ext.train", RECIPE_PATH, *overrides(tmp_path, parallelism="{dp: 1}")]
    path = put_nvidia_smi(tmp_path / "bin", BROKEN_DRIVER)
    result = subprocess.run(
        [sys.executable, *(pretraining if kind == "pretraining" else ["-c", POSTTRAINING])],
        env={**os.environ, "JOB_DEVICE": "cuda", "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == (2 if kind == "pretraining" else 1), result.stdout + result.stderr
    assert "error: The cluster's settings say `device: cuda`, but torch" in result.stderr
    assert "couldn't communicate with the NVIDIA driver" in result.stderr
    assert not (tmp_path / "runs" / "run").exists()
