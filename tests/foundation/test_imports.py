"""The rules of who may import whom are checked by `make lint`; here, that they would notice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = (
    "foundation", "nanotron_ext", "datapipes", "posttrain", "merge", "eval",
    "jobs", "slurm", "check", "report", "chain", "smollm3",
)  # fmt: skip


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("foundation/errors.py", "import nanotron_ext.flops", "Layers"),  # upward
        ("merge/soup.py", "from eval.results import SuiteResult", "Layers"),  # between working packages
        ("jobs/profile.py", "import slurm.adapter", "Layers"),
        ("chain/view.py", "from report.blocks import Table", "Only the command line imports check and report"),
        ("eval/errors.py", "import eval.data", "No circles"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str, rule: str) -> None:
    for package in PACKAGES:
        shutil.copytree(package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    shutil.copy("pyproject.toml", tmp_path)
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"{line}\n")
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [str(linter), "--no-cache", "--no-logo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    broken = [text for text in result.stdout.splitlines() if text.endswith(" BROKEN")]
    assert result.returncode == 1 and len(broken) == 1, result.stdout + result.stderr
    assert rule in result.stdout.split("Broken contracts")[1]
