"""Local runs are reachable from this machine only, and a stranger's bytes in their store are never unpickled."""

import base64
import contextlib
import fcntl
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from foundation.journal import METRICS_FILE, last_row
from foundation.launch import torchrun_command
from tests.listening import is_loopback, listening, process_tree
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides, prepare

SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of an interface


def outward_interfaces() -> list[str]:
    """Those with an address, without the loopback one."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(256, b"\0"))
                found.append(name)
    return [name for name in found if name != "lo"]


# As a shell may have set it for jobs between machines.
NETWORK = dict([("GLOO_SOCKET_IFNAME", name) for name in outward_interfaces()][:1])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), **NETWORK}


def wait_for(what: str, condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)


def test_a_training_run_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    prepare(tmp_path)
    steps = "{sequence_length: 16, train_steps: 100000, micro_batch_size: 2}"
    values = overrides(tmp_path, tokens=steps, wandb__mode="offline")  # wandb starts a service of its own
    command = [sys.executable, "-m", "smollm3", "train", RECIPE_PATH, *values]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    try:
        wait_for("the first step", lambda: metrics.is_file() and metrics.stat().st_size > 0, process)
        pids = process_tree(process.pid)
        found = listening(pids)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    assert len(pids) >= 3 and len(found) >= 3, (pids, found)  # the store and, for each rank, gloo
    assert all(is_loopback(address) for address, _ in found), found
    outcome = json.loads((tmp_path / "runs" / "run" / "outcome.json").read_text())
    assert outcome["outcome"] == "stopped"


def test_a_group_of_one_listens_on_the_loopback_interface_only() -> None:
    program = (
        "from nanotron_ext.engine import initialize_distributed; from tests.listening import listening; import os;"
        "initialize_distributed(); print(*(address for address, _ in listening([os.getpid()])))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() and all(map(is_loopback, answer.stdout.split())), answer.stdout


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def poison(process: subprocess.Popen, payload: Payload) -> None:
    """What a stranger who reaches the ports can do: put the payload under every key of every store."""
    from torch.distributed import TCPStore

    wait_for("the processes", lambda: len(process_tree(process.pid)) > 1, process)
    value = base64.b64encode(pickle.dumps(payload)).decode()
    for _, port in listening([process.pid]):
        store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5))
        for key in {*store.list_keys(), "torch.rendezvous.none"}:
            store.set(key.lstrip("/"), value)


def test_what_a_stranger_writes_into_the_store_is_not_run(tmp_path: Path) -> None:
    """The same attack on torchrun's own rendezvous shows that it works: that one reads its state every 5 seconds."""
    ours = torchrun_command(1, "--no-python", "sleep", "600")
    theirs = [*(word.replace("foundation.torchrun", "torch.distributed.run") for word in ours)]
    theirs.insert(3, "--standalone")
    runs = {}
    for name, command in {"ours": ours, "theirs": theirs}.items():
        runs[name] = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        for name, process in runs.items():
            poison(process, Payload(tmp_path / name))
        wait_for("the payload to be run", (tmp_path / "theirs").exists, runs["ours"])
        assert not (tmp_path / "ours").exists()
    finally:
        for process in runs.values():
            process.terminate()
            process.wait(60)


def test_restarts_logs_and_exit_codes_are_torchruns(tmp_path: Path) -> None:
    """Two attempts, each with a store of its own; the second fails too."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "dist.barrier()\n"
        "if os.environ['RANK'] == '1':\n"
        "    print('attempt', os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        "    raise SystemExit(7)\n"
        "dist.barrier()\n"
    )
    command = torchrun_command(2, "--max-restarts", "1", str(program))
    answer = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert re.findall(r"attempt (\d)", answer.stdout) == ["0", "1"]
    assert re.search(r"Root Cause .*\n\[0\]:\n.*\n.*\n *rank +: 1 .*\n *exitcode +: 7 ", answer.stderr), answer.stderr
    assert "warn" not in answer.stderr.lower(), answer.stderr


@pytest.mark.parametrize(
    ("number", "recipes"), [("SIGUSR1", [RECIPE_PATH]), ("SIGINT", [RECIPE_PATH]), ("SIGTERM", [RECIPE_PATH] * 2)]
)
def test_a_signal_to_the_command_stops_its_processes_with_a_checkpoint(
    number: str, recipes: list[str], tmp_path: Path
) -> None:
    """To its process alone, as `kill` does it. Of two recipes the first is trained by a child of the command's."""
    prepare(tmp_path)
    steps = "{sequence_length: 16, train_steps: 100000, micro_batch_size: 2}"
    values = overrides(tmp_path, tokens=steps, parallelism="{dp: 1}", checkpoints__checkpoint_interval=100000)
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "smollm3", "train", *recipes, *values]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
    run = tmp_path / "runs" / "run"
    pids: list[int] = []
    try:
        wait_for("the first step", lambda: last_row(run / METRICS_FILE) is not None, process)
        pids = process_tree(process.pid)
        process.send_signal(signal.Signals[number])
        code = process.wait(60)
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    finally:
        for pid in {process.pid, *pids}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    assert code == 75 and "Traceback" not in said, said
    assert not left
    outcome = json.loads((run / "outcome.json").read_text())
    assert outcome["outcome"] == "stopped"
    assert (run / "checkpoints" / str(outcome["step"]) / "checkpoint.json").is_file()


def test_an_ignored_signal_stays_ignored() -> None:
    """slurm/lib.sh ignores SIGUSR1 before it starts torchrun: Slurm sends it to the ranks too, which stop by it."""
    command = torchrun_command(1, "--no-python", sys.executable, "-c", "import time; print('up'); time.sleep(5)")
    ignoring = ["bash", "-c", 'trap "" USR1; exec "$@"', "bash", *command]
    unbuffered = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(ignoring, env=unbuffered, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0


@pytest.mark.parametrize("option", ["--standalone", "--nnodes=2", "--rdzv-backend=c10d"])
def test_another_rendezvous_is_refused(option: str) -> None:
    command = torchrun_command(1, option, "--no-python", "true")
    answer = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2 and "starts processes on this machine only" in answer.stderr


def test_nothing_starts_torchrun_with_its_own_rendezvous() -> None:
    """Jobs on several nodes alone call torchrun itself, with a rendezvous that unpickles nothing."""
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    sources = [Path(file) for file in files if Path(file).suffix in (".py", ".sh", ".md") or file == "Makefile"]
    own = {"foundation/torchrun.py", "tests/foundation/test_torchrun.py", "CHANGELOG.md"}
    callers = {
        str(file)
        for file in sources
        if str(file) not in own and re.search(r"torch\.distributed\.run\b|--standalone", file.read_text())
    }
    assert callers == {"slurm/lib.sh"}
    assert "--rdzv-backend=static" in Path("slurm/lib.sh").read_text()
