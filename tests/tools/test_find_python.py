"""The Python that `make setup` and the Slurm scripts choose, among interpreters that give themselves out as others."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FIND = Path.cwd() / "tools" / "find-python"
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())


def add_python(folder: Path, name: str, version: tuple[int, int, int], lacks: str = "") -> Path:
    """A command that runs what it is given with -c as Python `version` without the module `lacks`."""
    disguise = f"import sys; sys.version_info = {version}; sys.modules[{lacks!r}] = None; exec(sys.argv.pop(1))"
    command = folder / name
    command.write_text(f'#!/bin/bash\nshift\nexec {sys.executable} -c "{disguise}" "$@"\n')
    command.chmod(0o755)
    return command


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A PATH that has the shell's tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "sed", "seq", "dirname"):
        (folder / tool).symlink_to(f"/usr/bin/{tool}")
    return folder


def find(bin_folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([FIND, *arguments], env={"PATH": str(bin_folder)}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"python3.11": (3, 11, 2), "python3": (3, 11, 2)}, "python3.11"),  # Debian 12
        ({"python3.12": (3, 12, 3), "python3": (3, 12, 3)}, "python3.12"),  # Ubuntu 24.04
        ({"python3.13": (3, 13, 5), "python3": (3, 13, 5)}, "python3.13"),  # Debian 13
        ({"python3": (3, 12, 1)}, "python3"),
        ({"python": (3, 13, 0)}, "python"),  # a virtual or conda environment may have only this name
        ({"python3": (3, 9, 18), "python3.13": (3, 13, 0)}, "python3.13"),
        ({"python3": (3, 14, 0), "python3.11": (3, 11, 14)}, "python3.11"),
    ],
)
def test_the_python_of_the_machine_is_found(bin_folder: Path, installed: dict, chosen: str) -> None:
    for name, version in installed.items():
        add_python(bin_folder, name, version)
    assert find(bin_folder, "ensurepip").stdout == f"{bin_folder / chosen}\n"


def test_a_named_python_wins(bin_folder: Path, tmp_path: Path) -> None:
    add_python(bin_folder, "python3.11", (3, 11, 2))
    named = add_python(tmp_path, "mine", (3, 13, 1))
    assert find(bin_folder, "ensurepip", str(named)).stdout == f"{named}\n"


def test_a_shim_without_a_python_and_one_without_venv_are_passed_over(bin_folder: Path) -> None:
    shim = bin_folder / "python3.11"
    shim.write_text("#!/bin/bash\necho 'python3.11: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    add_python(bin_folder, "python3.12", (3, 12, 3), lacks="ensurepip")
    add_python(bin_folder, "python3.13", (3, 13, 5))
    assert find(bin_folder, "ensurepip").stdout == f"{bin_folder / 'python3.13'}\n"


@pytest.mark.parametrize(
    ("installed", "lacks", "sentence"),
    [
        ({}, "", "There is no Python 3.11 to 3.13 here (no python3 at all): install one, on Debian and Ubuntu with"),
        ({"python3": (3, 9, 2)}, "", "There is no Python 3.11 to 3.13 here (python3 is 3.9.2): install one"),
        ({"python3": (3, 14, 0)}, "", "There is no Python 3.11 to 3.13 here (python3 is 3.14.0): install one"),
        ({"python3.12": (3, 12, 3)}, "ensurepip", "'apt-get install python3.12-venv'"),
    ],
)
def test_one_sentence_says_what_is_missing_and_how_to_get_it(
    bin_folder: Path, installed: dict, lacks: str, sentence: str
) -> None:
    for name, version in installed.items():
        add_python(bin_folder, name, version, lacks)
    answer = find(bin_folder, "ensurepip")
    assert answer.returncode == 1 and not answer.stdout
    assert sentence in answer.stderr and answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["old", "nowhere"])
def test_a_named_python_that_will_not_do_is_refused(bin_folder: Path, name: str) -> None:
    add_python(bin_folder, "python3.11", (3, 11, 2))
    add_python(bin_folder, "old", (3, 10, 13))
    answer = find(bin_folder, "ensurepip", name)
    assert answer.returncode == 1 and f"PYTHON={name} will not do" in answer.stderr
    assert ("old is 3.10.13" in answer.stderr) == (name == "old")


def test_make_setup_asks_for_it_and_passes_on_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "tools", *(path.name for path in Path().glob("constraints*.txt"))):
        (tmp_path / name).symlink_to(Path(name).resolve())
    for target, folder in (("setup", ".venv"), ("setup-vllm", ".venv-vllm")):
        answer = subprocess.run(["make", target, "PYTHON=nowhere"], cwd=tmp_path, capture_output=True, text=True)
        assert answer.returncode == 2 and "error: PYTHON=nowhere will not do" in answer.stderr
        assert not (tmp_path / folder).exists()


def test_linters_are_set_to_the_oldest_python_allowed() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=").partition(",")[0]
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")


def test_slurm_says_where_its_python_should_be(bin_folder: Path, tmp_path: Path) -> None:
    """A checkout without .venv, with a Python that has not the packages."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("slurm", "nanotron_ext", "recipes", "tools", "pyproject.toml"):
        (checkout / name).symlink_to(Path(name).resolve())
    add_python(bin_folder, "python3.11", (3, 11, 2), lacks="torch")
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "SMOLLM3_SITE": str(tmp_path / "site.sh")}
    for command in (["slurm/submit", "pretrain_stage1"], ["bash", "-c", "source slurm/lib.sh"]):
        answer = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert answer.returncode == 2, answer
        assert (
            "has no torch: run 'make setup', or name the Python that has it as PYTHON in slurm/site.sh" in answer.stderr
        )


def test_submit_runs_the_python_that_the_site_file_names(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "mine: $*"\n')
    python.chmod(0o755)
    site = tmp_path / "site.sh"
    site.write_text(f"echo loading modules\nLOGIN_PYTHON={python}\n")
    environment = {"PATH": "/usr/bin:/bin", "SMOLLM3_SITE": str(site)}
    answer = subprocess.run(["slurm/submit", "apo", "--time=1"], env=environment, capture_output=True, text=True)
    assert answer.stdout == "mine: -m smollm3 submit apo --time=1\n"
