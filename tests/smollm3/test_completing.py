"""Completion in a real bash: the script that `smollm3 completion bash` prints, run as bash runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.project import ROOT

if shutil.which("bash") is None:
    pytest.skip("bash is not installed", allow_module_level=True)

SCRIPT = """
eval "$(smollm3 completion bash)"
compopt() { COMPREPLY+=("$*"); }  # works inside a real completion only
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"$(complete -p smollm3 | grep -oP '(?<=-F )\\S+')" smollm3 "${COMP_WORDS[COMP_CWORD]}"
echo "${COMPREPLY[*]}"
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with `smollm3`, as an installation puts it on the path."""
    file = tmp_path / "bin" / "smollm3"
    file.parent.mkdir()
    file.write_text(f'#!/bin/bash\nexec {sys.executable} -m smollm3 "$@"\n')
    file.chmod(0o755)
    return file.parent


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pos", "posttrain-data posttrain posttrain-seeds"),
        ("checkpoints ver", "verify"),
        ("check --profile a", "-o dirnames"),
        ("check --profile smollm3-3", "smollm3-360m smollm3-3b"),
        ("train pretrain_stage", "pretrain_stage1 pretrain_stage2 pretrain_stage3"),
        ("check --profile smollm3-135m s", "-o default"),
        ("train recipes/", "-o default"),
        ("demo ex", "export"),
        ("submit long", "long_context_32k long_context_64k"),
        ("submit export", ""),
    ],
)
def test_what_bash_offers(program: Path, words: str, offered: str) -> None:
    environment = {"PATH": f"{program}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", SCRIPT, "bash", "smollm3", *words.split()]
    done = subprocess.run(command, env=environment, cwd=program, capture_output=True, text=True, timeout=60)
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(offered.split()), "")
