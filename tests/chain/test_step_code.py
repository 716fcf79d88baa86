"""The code that the steps of the demo depend on."""

from pathlib import Path

from chain.steps import steps_of
from foundation.code import Code
from jobs.profile import Profile


def test_steps_of_the_demo_see_the_code_that_they_run_and_no_other() -> None:
    code = Code(Path())
    seen = {}
    for step in steps_of(Profile(Path("recipes/tiny"), Path("runs/tiny"))):
        roots = (*step.plan.job.code, *step.plan.code)
        files = {Path(path) for path in roots} | {f for path in roots for f in Path(path).rglob("*.py")}
        seen[step.name] = {str(found) for file in files if file.suffix == ".py" for found in code.imported_files(file)}
    assert {"nanotron_ext/train/step.py", "nanotron_ext/model/smollm3.py", "nanotron_ext/data/loader.py"} <= seen[
        "pretrain_stage1"
    ]
    assert {"posttrain/training.py", "posttrain/data.py"} <= seen["sft"]
    assert {"eval/tasks/base.py", "eval/ruler.py", "eval/helmet.py", "eval/sandbox_inside.py"} <= seen["eval_base"]
    for step, others in {
        "data": ("check/audit.py", "datapipes/synthetic/build.py", "nanotron_ext/train/step.py"),
        "pretrain_stage1": (
            "nanotron_ext/plan/speed.py",
            "nanotron_ext/rewind.py",
            "posttrain/train.py",
            "eval/runner.py",
        ),
        "sft": ("posttrain/evaluate.py", "posttrain/chat.py", "nanotron_ext/train/step.py"),
        "merge": ("eval/runner.py", "foundation/charts.py"),
    }.items():
        assert not seen[step] & set(others), step
