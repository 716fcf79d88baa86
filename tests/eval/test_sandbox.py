"""The sandbox's walls, attacked."""

import json
from pathlib import Path

import pytest

from eval import sandbox
from eval.engine import ModelResponse
from eval.planning import inspect_model, plan_suite
from eval.runner import run_suite
from eval.sandbox import Limits, SandboxError, check_sandbox, run_python
from tests.eval.test_scripted_models import Scripted

QUICK = Limits(wall_seconds=4, cpu_seconds=1)

try:
    check_sandbox()
except SandboxError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "x = bytearray(10 << 30)",
        "import os\nwhile True:\n    os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 80), 2)",
        "import socket; socket.create_connection(('1.1.1.1', 80), 2)",
        "open('/usr/written', 'w')",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.mount(b'none', b'/usr', None, 4128, None) == 0",
        "open('big', 'wb').write(bytes(100 << 20))",
        "import os; os.kill(1, 9); os.kill(os.getppid(), 9); raise SystemExit",
        "assert 1 + 1 == 3",
        "def broken(:",
    ],
)
def test_attacks_and_failures_are_contained(program):
    assert not run_python(program, limits=QUICK).completed


def test_waiting_ends_too():
    assert run_python("import time; time.sleep(60)", limits=Limits(wall_seconds=1)).reason == "stopped after 1 s"


def test_programs_that_finish_are_completed_with_their_output():
    assert run_python("import math, json, re, collections\nprint(int(input()) * 2)", stdin="21\n").output == "42\n"
    threads = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run_python(threads).completed
    assert run_python("if __name__ == '__main__':\n    print('main')").output == "main\n"


def test_attacks_as_answers_score_zero_and_the_evaluation_goes_on(recipe, model_folder, tmp_path, monkeypatch):
    """A fork bomb, a deletion outside, the network, an endless loop, 10 GB; the sixth answer is sound."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    attacks = [
        "import os\nwhile True:\n    os.fork()",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        "import socket\nsocket.create_connection(('127.0.0.1', 80), 2)",
        "while True:\n    pass",
        "x = bytearray(10 << 30)",
    ]
    monkeypatch.setattr(sandbox, "Limits", lambda: QUICK)
    model = inspect_model(model_folder, "attacker")
    (task,) = [task for task in plan_suite(recipe, "answers", model) if task.name == "mbpp_plus"]
    task.task = task.task.model_copy(update={"max_documents": 6})

    class Attacker(Scripted):
        def greedy_until(self, docs):
            sound = super().greedy_until(docs[len(attacks) :])
            texts = [f"{attack}\n{doc.specific['code']}" for attack, doc in zip(attacks, docs, strict=False)]
            return [ModelResponse(input="", text=[text]) for text in texts] + sound

    result = run_suite(recipe, "answers", model, [task], lambda: Attacker("perfect", reasons=False))
    lines = Path(recipe.output, "attacker", "answers", "mbpp_plus.details.jsonl").read_text().splitlines()
    assert [json.loads(line)["scores"]["pass@1"] for line in lines] == [0, 0, 0, 0, 0, 1]
    assert result.tasks[0].main_metric.value == pytest.approx(1 / 6) and precious.read_text() == "kept"


def test_files_outside_are_neither_seen_nor_deleted(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    tmp_path.chmod(0o777)
    run_python(f"import os\nos.remove({str(precious)!r})")
    run_python(f"import shutil\nshutil.rmtree({str(tmp_path)!r})")
    assert precious.read_text() == "kept"
    assert run_python(f"import os\nassert not os.path.exists({str(Path(__file__))!r})").completed
