"""Programs that try to pass tests which they fail score 0 with a reason, whatever they do, and the rest goes on."""

import json
from pathlib import Path

import pytest

from eval import sandbox
from eval.benchmarks import BENCHMARKS
from eval.engine import ModelResponse
from eval.planning import inspect_model, plan_suite
from eval.recipe import Task
from eval.runner import run_suite
from eval.sandbox import Limits, SandboxError, check_sandbox
from eval.tasks.code import humaneval, livecodebench, mbpp
from eval.tasks.common import Grade
from tests.eval.test_scripted_models import Scripted

try:
    check_sandbox()
except SandboxError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def half(x):\n    return x / 2\n\n\ndef triple(x):\n    """Three times x."""\n',
    "canonical_solution": "    return x + x + x\n",
    "entry_point": "triple",
    "test": "import numpy as np\n\n"
    # as HumanEval+ compares
    "def assertion(out, exp):\n    exact_match = out == exp\n    if not exact_match:\n"
    "        np.testing.assert_allclose(out, exp)\n    else:\n        assert exact_match\n\n"
    "def check(candidate):\n    for x, wanted in ((2, 6), (5, 15), (1.5, 4.5)):\n"
    "        assertion(candidate(x), wanted)\n        assertion(half(candidate(x)), wanted / 2)\n",
}
MBPP = {
    "prompt": "Three times x.",
    "test_list": ["assert triple(2) == 6"],
    "code": "def triple(x):\n    return 3 * x\n",
    "test": "import numpy as np\nassert triple(2) == 6\nassert [triple(x) for x in (1, 5)] == [3, 15]\n",
}
WRONG = "def triple(x):\n    return 0\n"
ATTACKS = {
    name: f"{program}\n"
    for name, _, program in (
        attack.partition("\n")
        for attack in Path(__file__).with_name("attacks.txt").read_text(encoding="utf-8").split("=== ")[1:]
    )
} | {"a lone surrogate": f"x = '\udc80'\n{WRONG}", "a null byte": f"x = '\0'\n{WRONG}"}
HALF = "def half(x):\n    return x / 2\n"  # as the prompt has it: some tests use what the prompt defines
# Against other forms of tests: what concerns the verdict, the signals, the comparison and the frames.
SOME = ["verdict pipe", "every descriptor", "SIGINT to init", "an equal object", "an equal int", "os._exit", "frames"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sandbox, "Limits", lambda: Limits(wall_seconds=8, cpu_seconds=1))


def grade(builder, row, answer: str) -> Grade:
    plan = builder(BENCHMARKS["humaneval_plus"], Task())
    return plan.metrics[0].sample_level_fn._score(answer, plan.prompt(row, "task"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_passes(attack, quick):
    found = grade(humaneval, HUMANEVAL, HALF + ATTACKS[attack])
    assert found.score == 0.0 and found.reason


@pytest.mark.parametrize("attack", SOME)
def test_no_attack_passes_statements_that_name_the_function(attack, quick):
    found = grade(mbpp, MBPP, ATTACKS[attack])
    assert found.score == 0.0 and found.reason


def test_the_tests_that_attacks_fail_are_passed_by_right_answers():
    right = WRONG.replace("return 0", "return 3 * x")
    assert grade(humaneval, HUMANEVAL, HUMANEVAL["canonical_solution"]) == Grade(1.0)
    for program in (right, f"print('hello')\n{right}", f"{right}if __name__ == '__main__':\n    print(triple(2))\n"):
        assert grade(humaneval, HUMANEVAL, program) == grade(mbpp, MBPP, program) == Grade(1.0)


CONTEST = {"public_test_cases": "[]", "metadata": '{"func_name": "triple"}', "starter_code": "", "question_content": ""}


@pytest.mark.parametrize("attack", SOME)
def test_no_attack_passes_in_contests(attack, quick):
    method = ATTACKS[attack] + "class Solution:\n    def triple(self, x):\n        return triple(x)\n"
    program = ATTACKS[attack] + "print(6 if False else '')\n"
    for code, kind, given in ((method, "functional", "2"), (program, "stdin", "2\n")):
        row = CONTEST | {"private_test_cases": json.dumps([{"input": given, "output": "6", "testtype": kind}])}
        found = grade(livecodebench, row, code)
        assert found.score == 0.0 and found.reason.startswith("test 1: ")


def test_a_sandbox_that_breaks_costs_a_point_and_a_word_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox.time, "sleep", lambda seconds: None)
    found = grade(humaneval, HUMANEVAL, HUMANEVAL["canonical_solution"])
    assert found.score == 0.0 and "unshare" in found.reason and "unshare" in capsys.readouterr().err


def test_attacks_as_answers_score_zero_and_the_evaluation_goes_on(recipe, model_folder, tmp_path, quick):
    """A fork bomb, a deletion outside, the network, an endless loop, 10 GB, two forged verdicts; the last is sound."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    attacks = [
        "import os\nwhile True:\n    os.fork()",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        "import socket\nsocket.create_connection(('127.0.0.1', 80), 2)",
        "while True:\n    pass",
        "x = bytearray(10 << 30)",
        "import os\nos.write(4, b'1')\nraise SystemExit",
        "import os\nos.kill(1, 2)\nraise SystemExit",
    ]
    model = inspect_model(model_folder, "attacker")
    (task,) = [task for task in plan_suite(recipe, "answers", model) if task.name == "mbpp_plus"]
    task.task = task.task.model_copy(update={"max_documents": len(attacks) + 1})

    class Attacker(Scripted):
        def greedy_until(self, docs):
            sound = super().greedy_until(docs[len(attacks) :])
            texts = [f"{attack}\n{doc.specific['code']}" for attack, doc in zip(attacks, docs, strict=False)]
            return [ModelResponse(input="", text=[text]) for text in texts] + sound

    result = run_suite(recipe, "answers", model, [task], lambda: Attacker("perfect", reasons=False))
    lines = Path(recipe.output, "attacker", "answers", "mbpp_plus.details.jsonl").read_text().splitlines()
    details = [json.loads(line) for line in lines]
    assert [line["scores"]["pass@1"] for line in details] == [0] * len(attacks) + [1]
    assert all(line["reasons"][0] for line in details[:-1]) and "reasons" not in details[-1]
    assert result.tasks[0].main_metric.value == pytest.approx(1 / 8) and precious.read_text() == "kept"
