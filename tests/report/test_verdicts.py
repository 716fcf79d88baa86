"""The verdicts follow from the numbers: each claim with an effect, without one, and unmeasured."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.profile import Profile
from report.blocks import Finding
from report.collect import collect
from report.verdicts import findings
from tests.report.run_folder import WINDOW, summary, write, write_capabilities, write_retrieval, write_stage

RECIPES = Path(__file__).parents[2] / "recipes" / "tiny"
MIXTURES = (
    {"tiny-web-en": 0.8, "tiny-code-python": 0.12, "tiny-math": 0.08},
    {"tiny-web-en": 0.6, "tiny-code-python": 0.24, "tiny-math": 0.16},
)


def bits(web: float, code: float, math: float) -> dict[str, float]:
    return {"tiny-web-en-heldout": web, "tiny-code-python-heldout": code, "tiny-math-heldout": math}


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    run = tmp_path / "run"
    monkeypatch.setenv("RUN", str(run))
    first = {10: bits(4.0, 4.0, 4.0), 20: bits(2.0, 2.0, 2.0)}
    write_stage(run / "stage1", 1, 20, MIXTURES[0], {}, first)
    write_stage(run / "stage2", 21, 40, MIXTURES[1], {}, {40: bits(1.8, 1.0, 1.6)})
    write_stage(run / "long_context_32k", 1, 10, MIXTURES[1], {})
    write_stage(run / "apo", 1, 10, {}, {})
    return Profile(RECIPES, run)


def verdicts_of(profile: Profile) -> dict[str, Finding]:
    keys = ("stages", "shares", "long_context", "apo", "merge", "thinking", "modes", "taught")
    return dict(zip(keys, findings(collect(profile)), strict=True))


def write_seeds(profile: Profile, claim: str, **effects: list[float]) -> None:
    entries = [
        {
            "claim": claim,
            "effect": name,
            "unit": "",
            "null": 0.0,
            "values": values,
            "mean": 0.0,
            "low": 0.0,
            "high": 0.0,
        }
        for name, values in effects.items()
    ]
    write(profile.run.with_name("run-seeds") / "seeds.json", {"seeds": [1, 2, 3], "effects": entries})


def test_one_run_shows_falling_bits_but_no_interval(profile: Profile) -> None:
    found = verdicts_of(profile)["stages"]
    assert (
        found.verdict == "not measured"
        and found.lines[-1] == f"To measure it: RUN={profile.run} smollm3 demo-seeds --profile {RECIPES}"
    )
    assert found.numbers[0] == "stage1: 4.000 to 2.000; +2.000 bits per byte"
    assert found.numbers[1].startswith("stage2: 2.000 to 1.467; +0.533")
    assert not any("long_context" in line for line in found.numbers)


@pytest.mark.parametrize(
    ("second", "verdict"), [([0.5, 0.6, 0.55], "shown"), ([0.5, -0.6, 0.55], "not shown at this size")]
)
def test_seeds_decide(profile: Profile, second: list[float], verdict: str) -> None:
    write_seeds(profile, "stages", stage1=[2.0, 2.1, 1.9], stage2=second)
    found = verdicts_of(profile)["stages"]
    assert found.verdict == verdict
    assert "Over 3 seeds +2.000 [+1.752, +2.248]" in found.numbers[0]  # 4.303 x 0.1 / sqrt(3)


def test_categories_are_compared_with_web_text(profile: Profile) -> None:
    math, code, *_ = verdicts_of(profile)["shares"].numbers
    assert math.startswith("math: share 8 to 16 % in stage2; 20.0 % fewer bits, web 10.0 %; +10.0 points")
    assert code.startswith("code: share 12 to 24 % in stage2; 50.0 % fewer bits, web 10.0 %; +40.0 points")


def test_retrieval_within_the_pretraining_window_says_nothing_about_long_context(profile: Profile) -> None:
    for model in ("stage2", "long_context_32k", "apo"):
        write_retrieval(profile.run, model, 10, 12, WINDOW - 1)
    for claim in ("long_context", "apo", "merge"):
        found = verdicts_of(profile)[claim]
        assert found.verdict == "not measured" and not found.command and "255 tokens at most" in found.numbers[0]


def test_retrieval_rises_falls_and_comes_back(profile: Profile) -> None:
    for model, right in {"stage2": 0, "long_context_32k": 40, "apo": 5, "merged": 30}.items():
        write_retrieval(profile.run, model, right, 50, 2 * WINDOW, too_long=50 if model == "stage2" else 0)
    found = verdicts_of(profile)
    assert {claim: found[claim].verdict for claim in ("long_context", "apo", "merge")} == {
        "long_context": "shown", "apo": "shown", "merge": "shown",
    }  # fmt: skip
    assert "stage2 0 of 50, 50 longer than its window; long_context_32k 40 of 50" in found["long_context"].numbers[0]
    assert "long_context_32k to apo: long_context_32k 40 of 50; apo 5 of 50; +70.0" in found["apo"].numbers[0]
    write_retrieval(profile.run, "merged", 7, 50, 2 * WINDOW)
    assert verdicts_of(profile)["merge"].verdict == "not shown at this size"


def test_nothing_measured_names_the_command(profile: Profile) -> None:
    found = verdicts_of(profile)
    assert found["taught"].verdict == found["long_context"].verdict == "not measured"
    models = [f"{profile.run}/hf/{name}" for name in ("long_context_64k", "midtrain", "sft", "apo", "soup", "merged")]
    command = f"RUN={profile.run} smollm3 capabilities {' '.join(models)} --seeds 1 --profile {RECIPES}"
    assert found["taught"].lines == [f"To measure it: {command}"]
    assert found["long_context"].command.startswith(f"RUN={profile.run} smollm3 eval --profile {RECIPES} --model ")
    assert found["long_context"].command.endswith("/hf/merged --suite long")


@pytest.mark.parametrize(
    ("with_thinking", "kept", "right", "verdicts"),
    [
        (90, 100, 80, ("shown", "shown", "shown")),
        (55, 96, 3, ("not shown at this size", "not shown at this size", "not shown at this size")),
    ],
)
def test_taught_models(
    profile: Profile, with_thinking: int, kept: int, right: int, verdicts: tuple[str, str, str]
) -> None:
    base = summary({"all": (1, 1), "chain": (0, 0)}, (0, 0), 100)
    final = summary({"all": (right, right), "chain": (with_thinking, 50)}, (kept, kept), 100)
    write_capabilities(profile.run, {"hf/base": base, "hf/merged": final})
    found = verdicts_of(profile)
    assert tuple(found[claim].verdict for claim in ("thinking", "modes", "taught")) == verdicts


def test_a_model_is_not_its_own_base(profile: Profile) -> None:
    """`make capabilities MODELS=runs/tiny/hf/merged` measures no base model."""
    write_capabilities(profile.run, {"hf/merged": summary({"all": (80, 80), "chain": (80, 50)}, (100, 100), 100)})
    found = verdicts_of(profile)
    assert found["thinking"].verdict == "shown"
    assert found["taught"].verdict == "not measured" and " smollm3 capabilities " in found["taught"].command


def test_capabilities_may_name_the_tasks_of_several_steps(profile: Profile) -> None:
    final = summary({"all": (50, 50), "chain": (50, 50), "dance": (90, 10)}, (100, 100), 100)
    write_capabilities(profile.run, {"hf/merged": final})
    file = profile.run / "eval" / "capabilities.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"multi_step_tasks": ["dance"]}))
    assert [line.partition(":")[0] for line in verdicts_of(profile)["thinking"].numbers] == ["dance"]


def test_seeds_of_post_training_alone_count_where_the_chain_has_none(profile: Profile) -> None:
    def final(right: int) -> dict[str, Any]:
        return summary({"all": (right, right), "chain": (right, 50)}, (100, 100), 100)

    base = summary({"all": (1, 1), "chain": (0, 0)}, (0, 0), 100)
    write_capabilities(profile.run, {"hf/base": base, "hf/merged": final(55)})
    assert verdicts_of(profile)["thinking"].verdict == "not shown at this size"
    content = {"seeds": [1, 2, 3], "base": base, "chains": [final(right) for right in (80, 82, 84)]}
    write(profile.run / "eval" / "posttrain_seeds.json", content)
    found = verdicts_of(profile)
    assert found["thinking"].verdict == "shown" and "Over 3 seeds +32.0 [+27.0, +37.0]" in found["thinking"].numbers[0]
    # Equal values under all seeds give no width to judge by: the interval within the run decides.
    assert found["modes"].verdict == "shown" and "100.0 [96.3, 100.0] %" in found["modes"].numbers[0]
