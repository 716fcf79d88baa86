"""What other users of the machine get to see of the miniature's stages: no port, no secret in files or processes."""

import json
import sys
from pathlib import Path

import pytest

from tests.watched import Watched


@pytest.mark.long
def test_stages_of_the_demo_show_nothing(tmp_path: Path) -> None:
    """Data preparation, planner and the first stage, as `make demo` runs them: two minutes on idle cores."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "smollm3", "demo", "data", "plan", "pretrain_stage1"]
    watched = Watched(command, RUN=str(run))
    watched.check(run)
    assert json.loads((run / "chain.json").read_text())["steps"]["pretrain_stage1"]["state"] == "done"
    assert any("nanotron_ext.train" in name for name in watched.programs)
    assert len(watched.addresses) >= 3, watched.addresses  # the store and, for each rank, gloo
