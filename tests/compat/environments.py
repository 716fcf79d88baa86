"""Environments with another release of transformers, installed once below ~/.cache/smollm3-tests.

Each is a virtual environment of its own, about 1 GB, because 4.x needs other releases of tokenizers and
huggingface_hub; torch is the one that the tests run with, so that logits can be compared.
"""

import fcntl
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "smollm3-tests"


def python_with_transformers(release: str) -> Path:
    """The interpreter of an environment with this release, made if it is not there.

    Raises:
        RuntimeError: with pip's words, when it cannot be made.
    """
    torch = importlib.metadata.version("torch").partition("+")[0]
    folder = CACHE / f"transformers-{release}-torch-{torch}-python-{platform.python_version()}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(folder))
            packages = (f"transformers=={release}", f"torch=={torch}", "jinja2")
            _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages)
            (folder / "complete").touch()
    return folder / "bin" / "python"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
