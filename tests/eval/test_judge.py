"""A judge over HTTP, played by a server of our own on the loopback interface."""

import functools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.engine import Doc
from eval.errors import EvalError
from eval.judge import check_judge, judge_score
from eval.planning import inspect_model, plan_suite
from eval.recipe import Judge
from eval.runner import run_suite
from tests.eval.test_scripted_models import Scripted


class Grader(BaseHTTPRequestHandler):
    """Grades 1.0 if a reference stands in the answer; refuses the first `failures` requests with a server error."""

    failures = 0
    form = "It agrees. [[{}]]"

    def do_GET(self):
        self._reply({"data": [{"id": "grader"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Grader.failures:
            Grader.failures -= 1
            self.send_error(503)
            return
        prompt = body["messages"][0]["content"]
        answer = re.search(r"Answer to grade:\n(.*?)\n\nSay", prompt, re.DOTALL)[1].lower()
        references = re.search(r"Reference answers:\n(.*?)\n\nAnswer", prompt, re.DOTALL)[1].lower().split("\n")
        grade = float(any(reference.removeprefix("- ") in answer for reference in references))
        self._reply({"choices": [{"message": {"content": self.form.format(grade)}}]})

    def _reply(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def judge():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grader)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Judge(url=f"http://127.0.0.1:{server.server_port}/v1", model="grader", timeout_seconds=5)
    server.shutdown()


DOC = Doc(query="q", choices=["Paris"], gold_index=0, specific={"outputs": ["Paris", "City of Light"], "question": "q"})


def test_grades_are_read_from_the_reply(judge, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert judge_score(judge, "It is paris.", DOC) == 1.0 and judge_score(judge, "Rome", DOC) == 0.0
    Grader.failures = 2  # a busy server is asked again
    assert judge_score(judge, "the city of light", DOC) == 1.0
    monkeypatch.setattr(Grader, "form", "no grade {}")
    assert judge_score(judge, "Paris", DOC) == 0.0


def test_a_judge_that_is_not_there_is_named_before_work(judge, recipe, model_folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(EvalError, match="serves grader, not other"):
        check_judge(judge.model_copy(update={"model": "other"}))
    absent = recipe.model_copy(update={"judge": Judge(url="http://127.0.0.1:1/v1", model="grader")})
    with pytest.raises(EvalError, match=r"http://127\.0\.0\.1:1/v1/models does not answer"):
        plan_suite(absent, "chat", inspect_model(model_folder, "m"))


@pytest.mark.parametrize(("knowledge", "score"), [("perfect", 1.0), ("wrong", 0.0), ("endless", 0.0)])
def test_a_judged_task_scores_models_as_it_should(judge, recipe, model_folder, knowledge, score):
    judged = recipe.model_copy(update={"judge": judge})
    model = inspect_model(model_folder, f"judged-{knowledge}")
    planned = [task for task in plan_suite(judged, "chat", model) if task.benchmark.judged]
    result = run_suite(judged, "chat", model, planned, lambda: Scripted(knowledge, reasons=True))
    assert [task.main_metric.name for task in result.tasks] == ["judge_score"] * 2
    assert {task.main_metric.value for task in result.tasks} == {score}
    assert result.tasks[0].metrics[1].name == "reference_in_reply"


@pytest.mark.parametrize(
    "reply",
    [{}, {"error": "busy"}, {"choices": []}, {"choices": [{"message": None}]}, {"choices": {"0": 1}}, [], None, "x"],
    ids=str,
)
def test_a_reply_of_another_form_is_one_sentence(judge, reply, monkeypatch):
    """Not a KeyError from a thread, which says nothing of the judge."""
    said = Grader._reply
    monkeypatch.setattr(Grader, "_reply", lambda self, content: said(self, reply))
    for ask in (lambda: check_judge(judge), lambda: judge_score(judge, "Paris", DOC)):
        with pytest.raises(EvalError, match="does not answer: its reply is none of an OpenAI-compatible server"):
            ask()


def test_a_reply_that_breaks_off_is_asked_for_again(judge, monkeypatch):
    """IncompleteRead is no OSError."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    said, broken = Grader._reply, [True, True]

    def reply(self, content):
        if not broken:
            said(self, content)
            return
        broken.pop()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"{")

    monkeypatch.setattr(Grader, "_reply", reply)
    assert judge_score(judge, "It is paris.", DOC) == 1.0


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"data": ' * 5_000, b"", b"\xff"], ids=len)
def test_an_answer_that_is_no_json_is_one_sentence(content, tmp_path):
    """Deep JSON raised RecursionError."""
    (tmp_path / "models").write_bytes(content)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = Judge(url=f"http://127.0.0.1:{server.server_port}", model="grader", timeout_seconds=5)
    try:
        with pytest.raises(EvalError, match="does not answer"):
            check_judge(asked)
    finally:
        server.shutdown()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "data:,{}", "/etc"])
def test_a_recipe_names_a_server_and_no_file(url):
    with pytest.raises(ValueError, match="should match pattern"):
        Judge(url=url, model="grader")
