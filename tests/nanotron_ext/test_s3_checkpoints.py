"""Checkpoints in an S3 service that fails in the middle of an upload (`make test-storage` installs the service)."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from foundation.journal import read_metrics
from foundation.outcome import Outcome
from nanotron_ext.checkpoint import CheckpointReader
from nanotron_ext.storage import RemoteCheckpoints
from nanotron_ext.train.run import run
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.test_storage import remote_recipe, run_and_listen, steps
from tests.nanotron_ext.tiny_run import prepare

moto_server = pytest.importorskip("moto.server", reason="moto is not installed; `make test-storage` runs these tests")


class FailingEndpoint:
    """A way to the service that breaks after so many bytes, in the middle of whatever it carries, for good."""

    def __init__(self, host: str, port: int, breaks_after_bytes: int) -> None:
        self._target, self._bytes_left = (host, port), breaks_after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (data := source.recv(4096)) and self._bytes_left > 0:
                self._bytes_left -= len(data)
                sink.sendall(data)
        if self._bytes_left <= 0:
            self._listener.close()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, int]]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def root(service: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    connect(monkeypatch, "http://{}:{}".format(*service))
    fsspec.filesystem("s3").mkdir("bucket")
    prepare(tmp_path)
    return tmp_path


def connect(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    fsspec.filesystem("s3").clear_instance_cache()


def run_at(url: str, *arguments: object) -> object:
    """In a rank, which has the environment of the process that forks it and not the test's."""
    import os

    variables, recipe = arguments
    os.environ.update(variables, AWS_ENDPOINT_URL=url)  # type: ignore[call-overload]
    return run_and_listen(recipe)  # type: ignore[arg-type]


def test_an_endpoint_that_fails_in_the_middle_of_an_upload(
    root: Path, service: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {name: "testing" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")} | {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(root / "none"),
    }
    straight = remote_recipe(root, "straight", remote_path="null")
    run_ranks(run, 1, straight)
    size = sum(path.stat().st_size for path in (straight.run_folder / "checkpoints" / "2").iterdir())
    # Each byte goes there and, to be verified, back: this is in the middle of the second checkpoint.
    endpoint = FailingEndpoint(*service, breaks_after_bytes=size * 3)
    recipe = remote_recipe(root, "run", 6, remote_path="s3://bucket", keep_last=1, keep_local=False)
    [(outcome, log)] = run_ranks(run_at, 1, endpoint.url, variables, recipe, timeout_seconds=300)
    assert outcome == Outcome("finished", 6)
    assert "Uploaded " in log and "Upload failed, trying again" in log and "2 checkpoints are not in s3://" in log
    assert steps(recipe.run_folder) == [4, 6]  # 2 is safe; these are not
    assert RemoteCheckpoints(recipe).steps() == [2]

    # The service is back: what is missing is uploaded. Then this machine is lost.
    good = "http://{}:{}".format(*service)
    [(outcome, _)] = run_ranks(run_at, 1, good, variables, remote_recipe(root, "run", 7, remote_path="s3://bucket"))
    assert outcome == Outcome("finished", 7)
    assert RemoteCheckpoints(recipe).steps() == [2, 4, 6, 7]
    shutil.rmtree(recipe.run_folder)
    whole = remote_recipe(root, "run", remote_path="s3://bucket")
    [(outcome, log)] = run_ranks(run_at, 1, good, variables, whole)
    assert outcome == Outcome("finished", 8) and "Fetching checkpoint 7 from s3://bucket/run" in log
    losses = [row["loss"] for row in read_metrics(straight.run_folder)]
    assert [row["loss"] for row in read_metrics(whole.run_folder)] == losses[7:]
    fetched = RemoteCheckpoints(whole).fetch(4, root / "elsewhere")
    assert CheckpointReader(fetched).damaged_files() == []
