"""An OpenAI-compatible server that answers as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | dict[str, Any] | tuple[int, str]
"""Text; or fields of the choice and its message; or a status with a body."""


@dataclass
class FakeServer:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    def questions(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


@contextmanager
def serving(respond: Callable[[dict[str, Any], int], Answer]) -> Iterator[FakeServer]:
    """`respond(payload, number of the request from 0)` on a port of its own, until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, json.dumps({"data": []}))

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(payload | {"authorization": self.headers.get("Authorization")})
                server.times.append(time.monotonic())
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            answer = respond(payload, number)
            with lock:
                server.in_flight -= 1
            self.reply(*(answer if isinstance(answer, tuple) else (200, json.dumps(completion(answer)))))

        def reply(self, status: int, body: str) -> None:
            content = body.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = FakeServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def completion(answer: str | dict[str, Any]) -> dict[str, Any]:
    fields = {"content": answer} if isinstance(answer, str) else dict(answer)
    finish_reason = fields.pop("finish_reason", "stop")
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return {"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": finish_reason}], "usage": usage}
