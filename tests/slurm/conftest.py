"""A Slurm of four nodes on this machine for the tests that need one."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundation.launch import torchrun_command
from tests.slurm.small_profile import write_profile

_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=_PATH) is None]


class Cluster:
    """Slurm's commands against the test cluster, from the repository's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        site = self.site(root, "NODE_CHECK=()", "NODE_CHECK_SECONDS=20")
        self.environment = os.environ | {
            "SMOLLM3_DEV_CLUSTER": str(root / "cluster"),
            "SLURM_CONF": str(root / "cluster" / "slurm.conf"),
            "SMOLLM3_SITE": str(site),
            "LOGIN_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path.cwd()),
            "PROFILE": "tiny",
            "SBATCH_OUTPUT": f"{root}/%j.out",
        }

    @staticmethod
    def site(folder: Path, *lines: str) -> Path:
        """A site file in the folder with this Python and further settings; a job takes it as SMOLLM3_SITE."""
        file = folder / "site.sh"
        file.write_text("\n".join((f"PYTHON={sys.executable}", *lines, "")))
        return file

    def run(self, *command: str | Path, check: bool = True, **environment: str | Path) -> subprocess.CompletedProcess:
        environment = {name: str(value) for name, value in environment.items()}
        answer = subprocess.run(
            [str(part) for part in command], env=self.environment | environment, capture_output=True, text=True
        )
        assert not check or answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer

    def sbatch(self, *arguments: str | Path, **environment: str | Path) -> int:
        return int(self.run("sbatch", "--parsable", *arguments, **environment).stdout)

    def output(self, job_id: int) -> str:
        """What the batch script printed, over all attempts."""
        return (self.root / f"{job_id}.out").read_text()

    def field(self, job_id: int, name: str) -> str:
        """Of `scontrol show job`: JobState, NodeList, Restarts, ExitCode, ..."""
        fields = self.run("scontrol", "show", "job", str(job_id), "--oneliner").stdout.split()
        return next(field.partition("=")[2] for field in fields if field.startswith(f"{name}="))

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} seconds for {what}"
            time.sleep(0.5)

    def wait_for_end(self, *job_ids: int, seconds: float = 240) -> None:
        ended = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
        for job_id in job_ids:
            self.wait_for(f"job {job_id}", lambda job_id=job_id: self.field(job_id, "JobState") in ended, seconds)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if MISSING:
        pytest.skip(f"not run on a real Slurm: {', '.join(MISSING)} not found (apt-get install slurm-wlm munge)")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.run("slurm/dev-cluster", "up", "--nodes", "4")
    yield cluster
    cluster.run("slurm/dev-cluster", "down")


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `small_profile`."""
    root = tmp_path_factory.mktemp("profile")
    write_profile(root)
    return root


@pytest.fixture(scope="session")
def straight(cluster: Cluster, profile: Path) -> Path:
    """The run folder of all twelve steps in one go, by torchrun on this machine."""
    recipe = str(profile / "recipes" / "pretrain.yaml")
    cluster.run(*torchrun_command(2, "-m", "nanotron_ext.train", recipe, "general.run=straight"))
    return profile / "runs" / "straight"
