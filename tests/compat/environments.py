"""Environments of foreign software, installed once below ~/.cache/smollm3-tests.

Those with another release of transformers are of about 1 GB each, because 4.x needs other releases of tokenizers and
huggingface_hub; torch is the one that the tests run with, so that logits can be compared. The one with the engines that
render chat templates outside of Python has about 150 MB.
"""

import fcntl
import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path.home() / ".cache" / "smollm3-tests"
TEMPLATE_ENGINES = ("minijinja==3.1.0", "xllamacpp==2026.10.11549", "gguf==0.19.0", "numpy")  # xllamacpp is llama.cpp
JAVASCRIPT_ENGINE = "@huggingface/jinja@0.5.11"


def python_with_transformers(release: str) -> Path:
    """The interpreter of an environment with this release, made if it is not there.

    Raises:
        RuntimeError: with pip's words, when it cannot be made.
    """
    torch = importlib.metadata.version("torch").partition("+")[0]
    packages = (f"transformers=={release}", f"torch=={torch}", "jinja2")
    name = f"transformers-{release}-torch-{torch}-python-{platform.python_version()}"
    return _made_once(name, lambda folder: _install(folder, packages)) / "bin" / "python"


def template_engines() -> Path:
    """The folder of an environment with bin/python for TEMPLATE_ENGINES and node_modules with JAVASCRIPT_ENGINE.

    Raises:
        RuntimeError: with pip's or npm's words, when it cannot be made.
    """

    def make(folder: Path) -> None:
        _install(folder, TEMPLATE_ENGINES)
        _run("npm", "install", "--silent", "--no-save", "--prefix", str(folder), JAVASCRIPT_ENGINE)

    versions = hashlib.sha256(" ".join([*TEMPLATE_ENGINES, JAVASCRIPT_ENGINE]).encode()).hexdigest()[:8]
    return _made_once(f"template-engines-{versions}-python-{platform.python_version()}", make)


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / "complete").touch()
    return folder


def _install(folder: Path, packages: tuple[str, ...]) -> None:
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
