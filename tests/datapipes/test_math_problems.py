import hashlib
import os
import re
import subprocess
import sys
from fractions import Fraction

from datapipes.math_problems import KINDS, draw_problem, is_held_out, math_document
from foundation.draws import Draws

NUMBER = r"(-?\d+(?:/\d+)?)"
# Not the inner part of a longer expression such as (3 + 4) * 5 = 35.
EQUALITY = re.compile(rf"(?<![\w/.)(] )(?<![\w/.^-]){NUMBER} ([-+*/]) {NUMBER} = {NUMBER}(?![\d/]| [-+*/])")
OPERATIONS = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}


def test_every_written_equality_holds() -> None:
    checked = 0
    for number in range(300):
        for left, operator, right, result in EQUALITY.findall(math_document("train", number).text):
            assert OPERATIONS[operator](Fraction(left), Fraction(right)) == Fraction(result), (left, operator, right)
            checked += 1
    assert checked > 1000


def test_equations_are_solved_by_their_answers() -> None:
    solved = 0
    for number in range(2000):
        problem = draw_problem(Draws(f"test/{number}"), "train")
        if problem.asks[0] == "linear":
            _, a, sign, b, c = problem.asks
            x = int(problem.answer.removeprefix("x = "))
            assert a * x + (b if sign == "+" else -b) == c
            solved += 1
        elif problem.asks[0] == "two-sided":
            _, a, d, c, e = problem.asks
            x = int(problem.answer.removeprefix("x = "))
            assert a * x + d == c * x + e
            solved += 1
    assert solved > 100


def test_no_problem_is_in_both_splits() -> None:
    asked = {
        split: {draw_problem(Draws(f"{split}/{number}"), split).asks for number in range(3000)}
        for split in ("train", "heldout")
    }
    assert len(asked["train"]) > 2000
    assert len(asked["heldout"]) > 500
    assert not asked["train"] & asked["heldout"]


def test_both_splits_hold_every_kind_and_about_one_in_sixteen_is_held_out() -> None:
    held_out = [is_held_out(kind(Draws(f"{kind.__name__}/{number}"))) for kind in KINDS for number in range(300)]
    assert 0.04 < sum(held_out) / len(held_out) < 0.09
    for number in range(len(KINDS)):
        kinds = held_out[300 * number : 300 * (number + 1)]
        assert any(kinds) and not all(kinds)


def test_documents_are_a_pure_function_of_split_and_number() -> None:
    """In another process with another hash seed; and equal to the digest of the version that this repository ships,
    which a platform, a Python version or an edit without a new VERSION would change."""
    code = (
        "import hashlib; from datapipes.math_problems import math_document\n"
        "texts = [math_document(s, n).text for s in ('train', 'heldout') for n in range(40)]\n"
        "print(hashlib.sha256('\\n'.join(texts).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    texts = [math_document(split, number).text for split in ("train", "heldout") for number in range(40)]
    digests.add(hashlib.sha256("\n".join(texts).encode()).hexdigest())
    assert digests == {"0eb9ac4e5e26e11be36d1a4311b6ceb03cae7d8b9bf671610d42ca24cf276a9e"}
