"""Write the locks with hashes, locks/*.txt, from the locks with versions: `make lock`, after a version has changed.

The hashes are those that the package index gives of every file of a version, for all machines that the locks are for.
build.txt holds what builds packages that have no wheel, cuda.txt torch as the index has it with what it brings, and
base.txt everything else.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

UV = "uv==0.13.9"  # asks the index that pip is configured for; pip itself writes no hashes
BUILD_TOOLS = {"setuptools"}
OF_FLASH_ATTN = {"flash-attn", "einops", "ninja", "wheel"}  # which `make setup` does not install
LOCKS = Path("locks")
BASE, CUDA = Path("constraints.txt"), Path("constraints-cuda.txt")
_HEADS = {
    "build": "What builds the packages of base.txt that have no wheel; installed first.",
    "base": "Everything but torch, the libraries of its CUDA build, and build.txt.",
    "cuda": "torch as the package index has it, built with CUDA, and what it brings.",
}


def pins(text: str) -> list[str]:
    """The lines name==version of a lock."""
    return re.findall(r"^[\w.-]+==[^\s;]+$", text, re.MULTILINE)


def part_of(pin: str) -> str:
    """Which of the locks with hashes a pin belongs to."""
    name = pin.partition("==")[0]
    of_cuda = name == "torch" or pin in pins(CUDA.read_text(encoding="utf-8"))
    return "build" if name in BUILD_TOOLS else "cuda" if of_cuda else "base"


def split(compiled: str) -> dict[str, list[str]]:
    """Part -> entries, each a pin with the hashes below it, in the order of the compiled lock."""
    parts: dict[str, list[str]] = {name: [] for name in _HEADS}
    for entry in re.findall(r"^\S+==.*\n(?: +--hash=.*\n)+", compiled, re.MULTILINE):
        if (pin := entry.split()[0]).partition("==")[0] not in OF_FLASH_ATTN:
            parts[part_of(pin)].append(entry)
    return parts


def write(compiled: str, folder: Path = LOCKS) -> None:
    folder.mkdir(exist_ok=True)
    for name, entries in split(compiled).items():
        head = f"# {_HEADS[name]} Written by `make lock`.\n"
        (folder / f"{name}.txt").write_text(head + "".join(entries), encoding="utf-8")


def compiled() -> str:
    """The versions of both locks with the hashes of all their files, as the index gives them."""
    with tempfile.TemporaryDirectory() as scratch:
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--target", f"{scratch}/uv", UV)
        subprocess.run(install, check=True)
        wanted = Path(scratch, "wanted.in")
        wanted.write_text("\n".join(pin for lock in (BASE, CUDA) for pin in pins(lock.read_text(encoding="utf-8"))))
        options = ("--quiet", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header")
        command = (f"{scratch}/uv/bin/uv", "pip", "compile", *options, "--python-version", "3.11", str(wanted))
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write(compiled())
