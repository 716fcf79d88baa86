"""slurm/dev-cluster in a shared /tmp: whoever was there first does not choose where keys and configuration go."""

import os
import subprocess
from pathlib import Path

import pytest

COMMANDS = (("up",), ("down",), ("env",), ("kill", "n1"), ("start", "n1"))


def dev_cluster(*command: str, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    given = {name: str(value) for name, value in environment.items()}
    clean = {name: value for name, value in os.environ.items() if name != "SMOLLM3_DEV_CLUSTER"}
    return subprocess.run(["slurm/dev-cluster", *command], env=clean | given, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("place", ["private folder", "state", "named state"])
def test_a_link_in_its_place_is_refused(place: str, command: tuple[str, ...], tmp_path: Path) -> None:
    elsewhere, private = tmp_path / "elsewhere", tmp_path / f"smollm3-{os.getuid()}"
    elsewhere.mkdir()
    environment: dict[str, str | Path] = {"TMPDIR": tmp_path}
    if place == "private folder":
        private.symlink_to(elsewhere)
    elif place == "state":
        private.mkdir()
        (private / "dev-cluster").symlink_to(elsewhere)
    else:
        (tmp_path / "mine").symlink_to(elsewhere)
        environment["SMOLLM3_DEV_CLUSTER"] = tmp_path / "mine"
    answer = dev_cluster(*command, **environment)
    assert answer.returncode == 1 and "is a link or somebody else's; remove it" in answer.stderr
    assert list(elsewhere.iterdir()) == [] and answer.stdout == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make somebody else's folder")
def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / f"smollm3-{os.getuid()}"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    answer = dev_cluster("env", TMPDIR=tmp_path)
    assert answer.returncode == 1 and "somebody else's" in answer.stderr and answer.stdout == ""


def test_its_configuration_lies_in_a_folder_of_the_users_own(tmp_path: Path) -> None:
    answer = dev_cluster("env", TMPDIR=tmp_path)
    assert answer.stdout == f"export SLURM_CONF={tmp_path}/smollm3-{os.getuid()}/dev-cluster/slurm.conf\n"
