"""As much of the Hugging Face hub's public API as reading a dataset takes, on this machine.

The paths, fields and headers are those of the hub's API documentation (repository info, tree, file resolution):
`GET /api/datasets/<id>[/revision/<revision>]`, `GET /api/datasets/<id>/tree/<revision>/<folder>`, and
`GET /datasets/<id>/resolve/<revision>/<path>` with ranges.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem

Files = Mapping[str, bytes]
IN_LFS = (".parquet", ".gz", ".zst")  # as a dataset's .gitattributes says


@dataclass
class Hub:
    """Datasets by id, each a history of commits of which the last one is main; and other branches, by id and name."""

    url: str = ""
    datasets: dict[str, list[Files]] = field(default_factory=dict)
    branches: dict[tuple[str, str], Files] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, dataset: str, files: Files) -> str:
        """Move main of the dataset to these files; returns the commit's id."""
        self.datasets.setdefault(dataset, []).append(dict(files))
        return commit_id(files)

    def files_at(self, dataset: str, revision: str) -> tuple[str, Files] | None:
        history = self.datasets.get(dataset, [])
        for files in reversed(history):
            if revision in (commit_id(files), "main"):
                return commit_id(files), files
        for (name, branch), files in self.branches.items():
            if name == dataset and revision in (commit_id(files), branch):
                return commit_id(files), files
        return None


def commit_id(files: Files) -> str:
    """As with git, other files have another id: clients may keep what they know of a commit."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "oid": git_blob_id(content), "size": len(content), "path": path}
    if path.endswith(IN_LFS):
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        entry |= {"oid": git_blob_id(pointer)}
        entry |= {"lfs": {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}}
    return entry


def tree(files: Files, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    entries = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            entries[name] = {"type": "directory", "oid": git_blob_id(name.encode()), "size": 0, "path": name}
        if recursive or len(parts) == 1:
            entries[path] = tree_entry(path, content)
    return list(entries.values())


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub in this process talks to, as HF_ENDPOINT would have it, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path, query = unquote(url.path), parse_qs(url.query)
            hub.requests.append(path)
            if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", path):
                self.info(*found.groups())
            elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)", path):
                self.info(found[1], "main")
            elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
                self.tree(*found.groups(), recursive=query.get("recursive", ["false"])[0].lower() in ("true", "1"))
            elif found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(*found.groups())
            else:
                self.missing("EntryNotFound")

        do_HEAD = do_GET

        def info(self, dataset: str, revision: str) -> None:
            if (at := hub.files_at(dataset, revision)) is None:
                return self.missing("RevisionNotFound" if dataset in hub.datasets else "RepoNotFound")
            siblings = [{"rfilename": name} for name in sorted(at[1])]
            info = {"id": dataset, "sha": at[0], "private": False, "gated": False, "disabled": False}
            info |= {"tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
            return self.send(json.dumps(info).encode())

        def tree(self, dataset: str, revision: str, folder: str, recursive: bool) -> None:
            if (at := hub.files_at(dataset, revision)) is None:
                return self.missing("RevisionNotFound" if dataset in hub.datasets else "RepoNotFound")
            entries = tree(at[1], folder, recursive)
            return self.send(json.dumps(entries).encode()) if entries else self.missing("EntryNotFound")

        def file(self, dataset: str, revision: str, path: str) -> None:
            at = hub.files_at(dataset, revision)
            if at is None or path not in at[1]:
                return self.missing("EntryNotFound")
            content = at[1][path]
            headers = {"ETag": f'"{git_blob_id(content)}"', "X-Repo-Commit": at[0], "Accept-Ranges": "bytes"}
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                return self.send(content[first : last + 1], 206, headers)
            return self.send(content, 200, headers)

        def missing(self, code: str) -> None:
            self.send(b'{"error": "not found"}', 404, {"X-Error-Code": code})

        def send(self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    hub.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    HfFileSystem.clear_instance_cache()
    try:
        yield hub
    finally:
        HfFileSystem.clear_instance_cache()
        http.shutdown()
        thread.join()
        http.server_close()
