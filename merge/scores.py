"""What greedy selection and the sweep go by: scores of a model folder, from whoever can give them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from merge.recipe import Evaluation


class Score(TypedDict):
    value: float
    stderr: float


Scores = dict[str, Score]  # "suite/task" -> main metric

# score(model, name, evaluation, output): scores of the folder `model` on the evaluation's suites. Results may be kept
# under `name` in the folder `output`, and found there again. Raises UserError if there are none.
Scorer = Callable[[Path, str, Evaluation, Path], Scores]


def mean_score(scores: Scores) -> float:
    return sum(score["value"] for score in scores.values()) / len(scores)
