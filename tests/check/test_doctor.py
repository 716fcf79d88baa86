"""What doctor says of environments in which something is missing, different or broken."""

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from check import doctor, packages
from nanotron_ext.model import attention_backends

SECRETS = {"WANDB_API_KEY": "secret-of-wandb", "HF_TOKEN": "hf_secretofthehub"}
SYSTEM_TOOLS = "/usr/bin:/bin"


PROGRAM = """
import sys
from check import doctor
findings = doctor.examine()
print(doctor.to_json(findings)) if sys.argv[1:] else doctor.show(findings)
sys.exit(not doctor.works(findings))
"""


def examine(*arguments: str, python: tuple[str, ...] = (sys.executable,), **environment: str) -> tuple[int, str]:
    """What `smollm3 doctor` does, without the package that reads its command line, which may be missing too."""
    command = [*python, "-c", PROGRAM, *arguments]
    answer = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    return answer.returncode, answer.stdout + answer.stderr


def add_command(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def add_distribution(folder: Path, name: str, version: str) -> None:
    """What an installer leaves beside a package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture(scope="module")
def environment_without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder that lacks dacite and rich, and has another release of humanize."""
    folder = tmp_path_factory.mktemp("site")
    gone = re.compile(r"(dacite|rich|humanize)(-[\d.]+\.dist-info)?$")
    for place in [Path(place) for place in sys.path if Path(place).name == "site-packages"]:
        for entry in place.iterdir():
            if not gone.match(entry.name) and entry.name != "__pycache__" and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    add_distribution(folder, "humanize", "1.2.3")
    return folder


def test_packages_that_are_missing_or_another_version_are_named_with_the_remedy(environment_without: Path) -> None:
    """Without rich there is no table; the lines are there all the same. dacite is what nanotron itself imports."""
    locked = packages.read_lock(Path("constraints.txt"))
    code, text = examine(python=(sys.executable, "-S"), PYTHONPATH=f"{Path.cwd()}:{environment_without}")
    assert code == 1 and "Traceback" not in text, text
    lines = {tuple(line.split("  ")[:2]): line for line in text.splitlines()}
    for name in ("dacite", "rich"):
        line = lines["broken", name]
        assert f"not installed; the lock has {locked[name]}" in line and "make setup" in line
    assert f"1.2.3, not {locked['humanize']}" in lines["note", "humanize"] and "make setup" in lines["note", "humanize"]
    assert "No module named 'dacite'" in lines["broken", "engine"]


def test_a_python_without_any_package_is_told_to_install_them() -> None:
    """Not even `packaging`, which reads requirements, nor torch, nor what reads recipes."""
    code, text = examine(python=(sys.executable, "-S"), PYTHONPATH=str(Path.cwd()))
    assert code == 1 and "Traceback" not in text, text
    assert "broken  packaging  not installed  make setup" in text.splitlines()
    assert {line.split("  ")[1] for line in text.splitlines() if line.startswith("ok")} >= {"Python", "free here"}
    assert text.splitlines()[-1] == "SmolLM3's pipeline cannot run here: packaging."
    code, text = examine("--json", python=(sys.executable, "-S"), PYTHONPATH=str(Path.cwd()))
    assert code == 1 and json.loads(text)["works"] is False


def test_this_environment_runs_and_no_secret_is_printed(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example.org\n  login user\n  password secret-of-netrc\n")
    add_command(tmp_path / "bin", "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    settings = {
        **SECRETS, "NETRC": str(netrc), "WANDB_BASE_URL": "https://user:secret-in-url@wandb.example.org",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    code, text = examine("--json", **settings)
    answer = json.loads(text)
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert code == 0 and answer["works"] is True
    assert "secret" not in text
    assert found["wandb"]["state"] == "ok" and found["hub token"]["state"] == "ok"
    assert importlib.metadata.version("torch") in found["build"]["found"]
    assert found["NVIDIA driver"]["state"] == "note" and found["GPUs"]["found"].startswith("none")
    assert all(finding["advice"] for finding in answer["findings"] if finding["state"] == "broken")


# Asks doctor, then torch itself, whose cache of earlier compilations is empty.
COMPILES = """
import torch
from check.doctor import _compilation
print([finding.state for finding in _compilation()])
try:
    torch.compile(lambda x: x.sin() + x.cos())(torch.ones(4))
    print("compiled")
except Exception as error:
    print("failed", type(error).__name__, error)
"""


@pytest.mark.parametrize("has_compiler", [True, False])
def test_compilation_works_where_doctor_says_so(tmp_path: Path, has_compiler: bool) -> None:
    """12 s of processor time where it works (AMD EPYC, 2026-11): importing torch and its compiler, and a real build."""
    if has_compiler and shutil.which("g++", path=SYSTEM_TOOLS) is None:
        pytest.skip("no g++ here")
    path = SYSTEM_TOOLS if has_compiler else str(tmp_path)
    environment = {**os.environ, "PATH": path, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment = {name: value for name, value in environment.items() if name not in ("CXX", "CC")}
    command = [sys.executable, "-c", COMPILES]
    said, happened = subprocess.check_output(command, env=environment, text=True).splitlines()[:2]
    assert (said, happened == "compiled") == (("['ok']", True) if has_compiler else ("['note']", False)), happened
    assert has_compiler or "InvalidCxxCompiler" in happened


def test_gpus_that_torch_cannot_use_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi answers as it does for --format=csv,noheader; torch here is built without CUDA, or finds no GPU."""
    add_command(
        tmp_path / "bin", "nvidia-smi", "for _ in 1 2; do echo '550.54.14, NVIDIA H100 80GB HBM3, 81559 MiB'; done"
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = {finding.name: finding for finding in doctor._torch()}
    assert found["build"].state == "note" and "docs/install.md" in found["build"].advice
    assert found["GPUs"].found == "; ".join(["NVIDIA H100 80GB HBM3, 81559 MiB"] * 2)
    assert found["NVIDIA driver"].state == "ok"  # no build here asks anything of it
    monkeypatch.setattr("torch.version.cuda", "13.0")
    found = {finding.name: finding for finding in doctor._torch()}
    assert found["NVIDIA driver"].state == "note" and "branch 580 or later" in found["NVIDIA driver"].advice
    assert found["GPUs"].state == "note" and "torch can use 0 of them" in found["GPUs"].advice


@pytest.mark.parametrize(("version", "state"), [("579.99", "note"), ("580.65.06", "ok"), ("610.11", "ok")])
def test_a_driver_is_held_against_the_lowest_for_torchs_cuda(version: str, state: str) -> None:
    assert doctor._driver(version, "13.0").state == state
    assert "580" in Path("constraints-cuda.txt").read_text() and "580" in Path("docs/install.md").read_text()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU whose kernels all work as soon as their module can be imported."""

    def problem_of(module: str, *_: object) -> str | None:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return str(error)
        return None

    monkeypatch.setattr(doctor, "_device_type", lambda: "cuda")
    monkeypatch.setattr(attention_backends, "problem_of", problem_of)
    attention_backends.choose_attention.cache_clear()
    yield
    attention_backends.choose_attention.cache_clear()


@pytest.mark.usefixtures("on_gpu")
def test_the_backend_is_the_one_that_training_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [backend, *_] = doctor._attention()
    assert backend.found == "pretraining in bfloat16 on cuda would use torch_varlen"
    (tmp_path / "flash_attn").mkdir()
    module = tmp_path / "flash_attn" / "__init__.py"
    module.write_text("raise ImportError('undefined symbol: _ZN3c105')\n")
    add_distribution(tmp_path, "flash_attn", "2.8.3")
    monkeypatch.syspath_prepend(str(tmp_path))
    attention_backends.choose_attention.cache_clear()
    backend, package = doctor._attention()
    assert backend.found.endswith("would use torch_varlen")
    assert package.state == "note" and "undefined symbol" in package.found and "setup-flash-attn" in package.advice
    assert "* `flash_attn`:" in str(attention_backends.__doc__)
    assert "* `torch_varlen`:" in str(attention_backends.__doc__)


@pytest.mark.usefixtures("on_gpu")
def test_on_gpus_triton_a_c_compiler_and_pythons_headers_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    [finding] = doctor._compilation()
    assert f"no triton and no C compiler and no {tmp_path}/Python.h" in finding.found
    assert "parallelism.compile=false" in finding.advice
    (tmp_path / "Python.h").touch()
    add_command(tmp_path, "gcc", "true")
    monkeypatch.setattr(doctor, "installed_version", lambda name: "3.7.1")
    [finding] = doctor._compilation()
    assert finding.state == "ok"


def test_vllms_environment_is_held_against_vllms_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_distribution(tmp_path, "vllm", "0.32.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = packages.look()
    by_name = {package.name: package for package in found.all}
    assert found.lock == "constraints-vllm.txt" and len(by_name) > 200
    assert by_name["transformers"].differs and not by_name["vllm"].differs and by_name["torchaudio"].installed is None
    findings = list(doctor._packages(found))
    assert any("make setup-vllm" in finding.advice for finding in findings if finding.name == "torchaudio")


def test_a_local_build_of_a_version_is_that_version() -> None:
    assert not packages.Package("torch", "2.13.0+cpu", "2.13.0").differs
    assert packages.Package("torch", "2.12.1+cpu", "2.13.0").differs
    assert not packages.Package("torch", None, "2.13.0").differs


def test_the_pythons_are_those_of_pyproject() -> None:
    (_, lowest), (_, above) = doctor.PYTHONS
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{lowest},<3.{above}"


def test_make_doctor_says_what_to_do_before_the_first_setup(tmp_path: Path) -> None:
    (tmp_path / "Makefile").symlink_to(Path("Makefile").resolve())
    answer = subprocess.run(["make", "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode != 0 and "run 'make setup'" in answer.stdout
