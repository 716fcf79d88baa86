"""A judge model behind an OpenAI-compatible endpoint, for answers that no rule can score (MixEval's free-form half)."""

import functools
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from lighteval.metrics.utils.metric_utils import Metric

from eval.engine import Doc
from eval.errors import EvalError
from eval.recipe import Judge
from eval.tasks.common import answer_metric
from foundation.json_text import loads

_PROMPT = """Grade an answer to a question against the reference answers.

Question:
{question}

Reference answers:
{references}

Answer to grade:
{answer}

Say in one sentence whether the answer agrees with a reference answer. Then write its grade from 0.0 (wrong, or no
answer) to 1.0 (right and complete) in double square brackets, for example [[0.5]]."""
_GRADE = re.compile(r"\[\[\s*([01](?:\.\d+)?)\s*\]\]")
_ATTEMPTS = 3
_LARGEST_REPLY_BYTES = 32 << 20


def check_judge(judge: Judge) -> None:
    """Raises EvalError if the endpoint does not answer or does not serve the model."""
    served = _request(judge, "/models", None, lambda reply: [str(entry["id"]) for entry in reply["data"]])
    if judge.model not in served:
        raise EvalError(f"The judge at {judge.url} serves {', '.join(served)}, not {judge.model}. Correct judge.model.")


def judge_metric(judge: Judge) -> Metric:
    return answer_metric("judge_score", functools.partial(judge_score, judge), judge.threads)


def judge_score(judge: Judge, answer: str, doc: Doc) -> float:
    """The grade of `answer`, 0 if the judge gives none or gives it in no readable form.

    Raises:
        EvalError: if the judge does not answer.
    """
    specific = doc.specific or {}
    references = "\n".join(f"- {output}" for output in specific["outputs"])
    prompt = _PROMPT.format(question=specific["question"], references=references, answer=answer.strip())
    message = {"role": "user", "content": prompt}
    body = {"model": judge.model, "messages": [message], "temperature": 0, "max_tokens": 512}
    said = _request(judge, "/chat/completions", body, lambda reply: reply["choices"][0]["message"]["content"])
    grades = _GRADE.findall(str(said))
    return min(float(grades[-1]), 1.0) if grades else 0.0


def _request(judge: Judge, path: str, body: dict[str, Any] | None, found_in: Callable[[Any], Any]) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(judge.url.rstrip("/") + path, data, {"Content-Type": "application/json"})
    for attempt in range(_ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=judge.timeout_seconds) as response:
                return found_in(loads(response.read(_LARGEST_REPLY_BYTES)))
        except (LookupError, TypeError) as error:
            problem = f"its reply is none of an OpenAI-compatible server ({type(error).__name__}: {error})"
            raise EvalError(f"The judge at {judge.url}{path} does not answer: {problem}.") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS - 1 or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                raise EvalError(f"The judge at {judge.url}{path} does not answer: {error}.") from None
            time.sleep(2**attempt)
    raise AssertionError("the loop returns or raises")
