"""IFEval's rules give an answer the same score every time."""

import langdetect
import pytest

from eval.engine import Doc, ModelResponse, import_ifeval

UNCLEAR = "Das is no casa"  # pt, lv or tl, as the numbers fall


def test_the_language_of_a_short_answer_is_not_a_matter_of_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", None)
    assert len({langdetect.detect(UNCLEAR) for _ in range(60)}) > 1
    metric = import_ifeval().IFEvalMetrics()
    doc = Doc(
        query="",
        choices=[""],
        gold_index=0,
        specific={"instructions_id_list": ["language:response_language"], "kwargs": [{"language": "pt"}]},
    )
    scores = [metric.compute(doc=doc, model_response=ModelResponse(text=[UNCLEAR])) for _ in range(60)]
    assert all(score == scores[0] for score in scores)
