"""`make bench-gpu`, rehearsed on a CPU: every part, the page, going on after an interruption, and what it refuses."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PARTS = {"size-tiny", "curve", "low-loss", "profile", "micro-batch-1", "window-256"}


def gpu(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "bench/gpu.py", *options], capture_output=True, text=True)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute on one free core: each of the five parts is a process of its own, or several, that import torch."""
    folder = tmp_path_factory.mktemp("gpu")
    done = gpu("--rehearse", "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def result(folder: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())["results"]["tiny"]
    return found


def test_every_part_is_measured_and_on_the_page(rehearsal: Path) -> None:
    assert {path.stem for path in rehearsal.glob("*.json")} == set(PARTS)
    page = (rehearsal / "speed.md").read_text()
    assert "A rehearsal on a CPU" in page
    assert "## Failed" not in page
    for picture in ("sizes.svg", "curve-tiny.svg", "low-loss-tiny.svg"):
        assert f"]({picture})" in page
        assert (rehearsal / picture).read_text().startswith("<svg")
    variants = result(rehearsal, "size-tiny")["variants"]
    ours, peer = variants["this trainer"], variants["transformers sdpa"]
    assert ours["losses"] == pytest.approx(peer["losses"], rel=1e-4)
    assert f"| {ours['tokens_per_second']:,.0f} (" in page


def test_the_curve_says_how_far_the_paths_are_apart(rehearsal: Path) -> None:
    curve = result(rehearsal, "curve")
    losses = curve["losses"]
    reference = losses["float32, as written"]
    assert reference[0] == pytest.approx(math.log(128_256), rel=0.02)  # nothing is known yet
    apart = {}
    for name in ("bfloat16, compiled", "bfloat16, as written"):
        relative = torch.tensor(losses[name][1:]).double() / torch.tensor(reference[1:]).double() - 1
        apart[name] = float(relative.square().mean().sqrt())
        assert 0 < apart[name] == pytest.approx(curve["difference_from_float32"][name]["rms"], rel=1e-3)
    ratio = apart["bfloat16, compiled"] / apart["bfloat16, as written"]
    assert curve["times_the_noise"] == pytest.approx(ratio, rel=1e-3)


def test_the_prediction_is_the_measured_step_with_the_plans_messages(rehearsal: Path) -> None:
    """A micro-batch of 3 samples of 4,096 tokens takes two GPUs at least what the measured rate of one says."""
    plan = json.loads((rehearsal / "prediction/pretrain.json").read_text())
    assert plan["devices"] == 384
    tokens = 192 * 3 * 4096
    assert plan["tokens_per_second_per_device"] == pytest.approx(tokens / 384 / plan["step"]["total"])
    page = (rehearsal / "speed.md").read_text()
    assert f"**{plan['tokens_per_second_per_device']:,.0f} tokens/s per GPU" in page


def test_goes_on_where_it_was_interrupted(rehearsal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(rehearsal, folder)
    (folder / "profile.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    done = gpu("--rehearse", "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== profile: part 6 of 6" in done.stdout
    assert (folder / "profile.json").exists()
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before


def test_a_part_that_fails_says_why_and_stops_no_other(rehearsal: Path, tmp_path: Path) -> None:
    folder = tmp_path / "failing"
    shutil.copytree(rehearsal, folder)
    (folder / "profile.json").unlink()
    (folder / "profile.unfinished").mkdir()  # where the part writes its result
    done = gpu("--rehearse", "--out", str(folder))
    assert done.returncode == 1
    assert "failed: profile: " in done.stderr
    assert "Is a directory" in done.stderr
    page = (folder / "speed.md").read_text()
    assert "## Failed\n\n- profile: " in page
    assert "## 384 GPUs from one" in page


def test_does_not_mix_machines(rehearsal: Path, tmp_path: Path) -> None:
    shutil.copytree(rehearsal, tmp_path / "other")
    part = tmp_path / "other/curve.json"
    part.write_text(json.dumps({**json.loads(part.read_text()), "machine": "NVIDIA H200"}))
    done = gpu("--rehearse", "--out", str(tmp_path / "other"))
    assert done.returncode == 2
    assert "holds parts measured on NVIDIA H200" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_refuses_without_a_gpu() -> None:
    done = gpu()
    assert done.returncode == 2
    assert "needs a CUDA GPU" in done.stderr
    assert "make bench-step" in done.stderr
