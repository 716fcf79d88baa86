"""Graders of mathematics, letters and instructions on hostile answers: about a second each, whatever is answered."""

import time
from collections.abc import Callable

import pytest

from eval.engine import Doc
from eval.tasks.common import AnswerScore, letter_score, math_score
from eval.tasks.instruct import _ifeval_scores
from tests.foundation.test_replies import HOSTILE, SIZE, filled

INSTRUCTIONS = {
    "punctuation:no_comma": {},
    "length_constraints:number_sentences": {"relation": "at least", "num_sentences": 3},
    "length_constraints:number_words": {"relation": "at least", "num_words": 3},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 2},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "keywords:frequency": {"keyword": "a", "frequency": 2, "relation": "at least"},
    "language:response_language": {"language": "de"},
    "change_case:english_capital": {},
    "startend:quotation": {},
}
DOC = Doc(
    query="q", choices=["a", "b"], gold_index=0,
    specific={"gold": "7", "instructions_id_list": list(INSTRUCTIONS), "kwargs": list(INSTRUCTIONS.values())},
)  # fmt: skip
MATHEMATICS = {
    "a tower of powers": "\\boxed{9^{9^{9^{9^{9}}}}}",
    "a factorial": "\\boxed{99999999!}",
    "a long sum": filled("1+", "$", "1$"),
    "parentheses": "$" + "(" * (SIZE // 2) + ")" * (SIZE // 2) + "$",
    "fractions": filled("\\frac{1}{", "$"),
    "roots": filled("\\sqrt{", "\\boxed{"),
    "dollars": filled("$"),
    "commas": filled("1,"),
    "equations": filled("= "),
    "many answers": filled("the final answer is $9^{9^{9}}$. "),
}
GRADERS: dict[str, Callable[[str, Doc], float]] = {
    "mathematics": math_score,
    "letters": letter_score,
    "instructions": lambda answer, doc: float(_ifeval_scores(answer, doc)["prompt_level_strict_acc"]),
}


@pytest.mark.parametrize("grader", GRADERS)
def test_a_hostile_answer_costs_about_a_second(grader: str) -> None:
    """In computing time, with what one step of Python adds. Towers of powers took 5 s each, and answers hold many."""
    score = AnswerScore(GRADERS[grader], threads=1)
    score._score("The answer is 7.", DOC)  # whatever is loaded once
    for name, text in {**HOSTILE, **MATHEMATICS}.items():
        started = time.process_time()
        [grade] = score._grades(DOC, type("Response", (), {"input": "", "text": [text]})())  # type: ignore[arg-type]
        seconds = time.process_time() - started
        assert seconds < 2.5 and grade.score in (0, 1), f"{name}: {seconds:.1f} s, {grade}"


def test_what_could_not_be_graded_says_so() -> None:
    def endless(answer: str, doc: Doc) -> float:
        while True:
            pass

    [grade] = AnswerScore(endless, 1)._grades(DOC, type("Response", (), {"input": "", "text": ["a"]})())  # type: ignore[arg-type]
    assert grade.score == 0 and grade.reason == "the answer could not be graded: it took longer than 1 s"


@pytest.mark.parametrize(
    ("answer", "score"), [("It is $7$.", 1), ("\\boxed{14/2}", 1), ("So 7", 1), ("\\boxed{8}", 0), ("", 0)]
)
def test_ordinary_answers_are_graded_as_before(answer: str, score: int) -> None:
    [grade] = AnswerScore(math_score, 1)._grades(DOC, type("Response", (), {"input": "", "text": [answer]})())  # type: ignore[arg-type]
    assert grade.score == score and not grade.reason
