"""What code under evaluation gets to see of its caller: nothing of its environment."""

import sys
from pathlib import Path

import yaml

from eval.recipe import EvalRecipe
from tests.watched import Watched


def test_an_evaluation_with_code_shows_nothing(recipe: EvalRecipe, model_folder: Path, tmp_path: Path) -> None:
    """Two benchmarks whose programs run in the sandbox."""
    tasks = {name: {"max_documents": 4} for name in ("humaneval_plus", "mbpp_plus")}
    tree = {
        "output": str(tmp_path / "results"), "data": recipe.data, "execute_code": True,
        "backend": {"dtype": "float32", "device": "cpu", "batch_size": 4}, "suites": {"code": {"tasks": tasks}},
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "smollm3", "eval", str(tmp_path / "eval.yaml"), "--model", str(model_folder)]
    watched = Watched(command, RUN=str(tmp_path))
    watched.check(tmp_path)
    assert any("sandbox_inside" in name for name in watched.programs)
