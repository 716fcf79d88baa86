"""Right answers pass whatever stands around them, as on the platforms; wrong ones do not."""

import json
import time

import pytest

from eval.benchmarks import BENCHMARKS
from eval.recipe import Task
from eval.sandbox import SandboxError, check_sandbox
from eval.tasks.code import humaneval, livecodebench, mbpp
from eval.tasks.common import Grade
from eval.tasks.programs import extract_code, parsable, same_output

try:
    check_sandbox()
except SandboxError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)

PROMPT = (
    "from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\n"
    'def up(numbers: List[int]) -> List[int]:\n    """Each number plus one."""\n'
)
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "canonical_solution": "    return [helper(x) for x in numbers]\n",
    "entry_point": "up",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 3]\n    assert candidate([]) == []\n",
}
BODY = "    return [helper(x) for x in numbers]\n"
WHOLE = "def up(numbers: List[int]) -> List[int]:\n    return [helper(x) for x in numbers]\n"
COMPLETIONS = {
    "the body alone": BODY,
    "a fence behind it": f"{BODY}```\n",
    "prose behind it": f"{BODY}\nThis function adds one to each number.\n",
    "prose with an open bracket": f"{BODY}\nNote (as said above that it works.\n",
    "prose with a quote": f'{BODY}\nIt\'s called """up\n',
    "an import": f"{BODY}\nimport os.pat\nfrom\n",
    "a decorator of nothing": f"{BODY}\n@cache\n",
    "half a second function": f"{BODY}\ndef down(numbers):\n    return [x -",
    "its own tests as a main program": f'{BODY}\nif __name__ == "__main__":\n    print(up(input()))\n',
}
REPLIES = {
    "without the prompt's imports": f"```python\n{WHOLE}```",
    "with imports of its own": f"```python\nfrom __future__ import annotations\nfrom typing import List\n{WHOLE}```",
    "python3": f"```python3\n{WHOLE}```",
    "Python, in capitals": f"```Python\n{WHOLE}```",
    "no language": f"```\n{WHOLE}```",
    "output behind it": f"Here:\n```python\n{WHOLE}```\nIt prints\n```\n[2, 3]\n```",
    "output of a named kind behind it": f"Here:\n```python\n{WHOLE}```\nIt prints\n```text\n[2, 3]\n```",
    "cut off before the last fence": f"Here:\n```python\n{WHOLE}",
    "an example of its use behind it": f"```python\n{WHOLE}```\nExample:\n```python\nprint(up([1]))\n# [2]\n```",
    "without a language, and an example": f"```\n{WHOLE}```\nExample:\n```python\nprint(up([1]))\n```",
    "a form feed": f"```python\n'a'\n\f\nfrom __future__ import annotations\n{WHOLE}```",
    "ends itself": f"```python\nimport sys\n{WHOLE}\nsys.exit()\n```",
    "exit": f"```python\n{WHOLE}\nprint(up([1]))\nexit()\n```",
    "a main program that reads": f'```python\n{WHOLE}\nif __name__ == "__main__":\n    print(up(eval(input())))\n```',
    "an escape that Python warns of": f'```python\nimport re\n{WHOLE}\nPATTERN = re.compile("\\d")\n```',
}


def grade(builder, name: str, row: dict[str, object], answer: str) -> Grade:
    plan = builder(BENCHMARKS[name], Task())
    found: Grade = plan.metrics[0].sample_level_fn._score(answer, plan.prompt(row, "task"))
    return found


@pytest.mark.parametrize("completion", COMPLETIONS.values(), ids=COMPLETIONS)
def test_right_completions_pass(completion: str) -> None:
    """With all that the model went on with, or as the stop sequences cut it."""
    stops = humaneval(BENCHMARKS["humaneval_plus"], Task()).stop_sequences
    cut = min((completion.find(stop) for stop in stops if stop in completion), default=len(completion))
    assert grade(humaneval, "humaneval_plus", HUMANEVAL, completion[:cut]) == Grade(1.0)
    if "import" not in completion:  # such a line is Python, and fails
        assert grade(humaneval, "humaneval_plus", HUMANEVAL, completion) == Grade(1.0)


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_right_replies_pass(reply: str) -> None:
    assert grade(humaneval, "humaneval_plus", HUMANEVAL, reply) == Grade(1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "    pass\n",
        "    return [x for x in numbers]\n\nprose",
        f"```python\n{WHOLE.replace('up(', 'down(')}```",
        "",
        "```",
    ],
)
def test_wrong_functions_fail(answer: str) -> None:
    assert grade(humaneval, "humaneval_plus", HUMANEVAL, answer).score == 0


def test_a_solution_that_names_the_entry_point_only_does_not_pass_by_the_prompt() -> None:
    row = {**HUMANEVAL, "prompt": f"{PROMPT}    return [helper(x) for x in numbers]\n"}
    assert grade(humaneval, "humaneval_plus", row, f"```python\n{WHOLE.replace('[helper(x)', '[(x)')}```").score == 0


MBPP = {"prompt": "Three times x.", "test_list": ["assert triple(2) == 6"], "test": "assert triple(2) == 6\n"}
MBPP["code"] = TRIPLE = "def triple(x):\n    return 3 * x\n"


@pytest.mark.parametrize(
    "answer",
    [
        TRIPLE,
        f"{TRIPLE}```\n",
        f"{TRIPLE}\nThat is all (",
        f"```py\n{TRIPLE}```",
        f"```py\n{TRIPLE}```\nSo:\n```py\nassert triple(1) == 3\n```",
        f"'a\fb\fc\fd'\n{TRIPLE}\nThat is all (",
    ],
)
def test_right_programs_pass(answer: str) -> None:
    assert grade(mbpp, "mbpp_plus", MBPP, answer) == Grade(1.0)


def contest(tests: list[dict[str, str]], function: str | None = None) -> dict[str, object]:
    return {
        "question_content": "?",
        "starter_code": "class Solution:" if function else "",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": "[]",
        "metadata": json.dumps({"func_name": function} if function else {}),
    }


READS = contest([{"input": "3\n1 2 3\n", "output": "6\n2.50\n", "testtype": "stdin"}])
CONTEST_PROGRAMS = {
    "plain": "n = input()\nx = list(map(int, input().split()))\nprint(sum(x))\nprint(2.5)",
    "names that the platform has": "input()\nq = deque(map(int, input().split()))\nprint(sum(q))\n"
    "print(2.50 if inf else 0)",
    "sys.exit": "import sys\ninput()\nprint(sum(map(int, input().split())), 2.5, sep='\\n')\nsys.exit()",
    "exit": "input()\nprint(sum(map(int, input().split())))\nprint('2.500')\nexit()",
    "quit with a zero": "input()\nprint(Counter(a=6)['a'])\nprint(5 / 2)\nquit(0)",
    "future": "from __future__ import annotations\nimport sys\nd = sys.stdin.read().split()\nprint(6, 2.5, sep='\\n')",
    "three arguments of pow": "print(pow(2, 10, 1018))\nprint(2.5)",
    "main": "def main():\n    input()\n    print(reduce(add, map(int, input().split())))\n    print(2.5)\n"
    'if __name__ == "__main__":\n    main()',
}


@pytest.mark.parametrize("program", CONTEST_PROGRAMS.values(), ids=CONTEST_PROGRAMS)
def test_right_contest_programs_pass(program: str) -> None:
    assert grade(livecodebench, "livecodebench_v4", READS, f"```python\n{program}\n```") == Grade(1.0)


METHODS = {
    "a list": "return [[x, x + 1], [0]]",
    "tuples": "return ((x, x + 1), (0,))",
    "a tuple in a list": "return [(x, x + 1), [0]]",
    "names that the platform has": "return [list(accumulate([x, 1])), [gcd(0, 0)]]",
}


@pytest.mark.parametrize("body", METHODS.values(), ids=METHODS)
def test_right_methods_pass(body: str) -> None:
    row = contest([{"input": "4", "output": "[[4, 5], [0]]", "testtype": "functional"}], "f")
    code = f"class Solution:\n    def f(self, x: int) -> List[List[int]]:\n        {body}\n"
    assert grade(livecodebench, "livecodebench_v4", row, f"```python\n{code}```") == Grade(1.0)
    other = contest([{"input": "4", "output": "[[4, 6], [0]]", "testtype": "functional"}], "f")
    assert grade(livecodebench, "livecodebench_v4", other, f"```python\n{code}```").score == 0


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("6\n", "6", True),
        ("  6  \n\n", "6\n", True),
        ("6.0", "6", True),
        ("1e1 2", "10 2.0", True),
        ("0.333333", "0.3333333", False),
        ("1 2", "1\n2", False),
        ("a  b", "a b", False),
        ("a b", "a b", True),
        ("", "0", False),
        ("NO", "no", False),
        ("nan", "nan", True),
        ("1 a", "1.0 a", False),
        ("sNaN", "1", False),
        ("1 -sNaN7", "1 2", False),
    ],
)
def test_outputs_are_compared_as_the_contest_does(found: str, expected: str, same: bool) -> None:
    assert same_output(found, expected) is same


def test_code_is_taken_from_the_last_block_of_python() -> None:
    assert extract_code("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```") == "x = 1\n"
    assert extract_code("a\n```\nx = 1\n```\nb\n```\ny = 2\n```") == "y = 2\n"
    assert extract_code("```python\nx = 1\n```\n```js\nlet y\n```\nand ```\n") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"
    revised = "```py\ndef f(): 1\n```\nBetter:\n```py\ndef f(): 2\n```\n```py\nf()\n```"
    assert extract_code(revised, ["f"]) == "def f(): 2\n" and extract_code(revised) == "f()\n"


def test_a_long_answer_is_cut_in_little_time() -> None:
    assert parsable("def f():\n", "    return 1\n" + "no code (\n" * 20_000) == "def f():\n    return 1\n"
    assert parsable("def f(:\n", "    return 1\n") == "def f(:\n    return 1\n"
    started = time.process_time()
    for endless in ("@x\n" * 5_000, "def f():\n  pass\n" + "  @x\n" * 5_000):  # each cut finds the next line wrong
        parsable("", endless)
    assert time.process_time() - started < 5
