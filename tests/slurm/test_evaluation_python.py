"""Which Python evaluates on a cluster: vLLM lives in an environment of its own."""

import subprocess
from pathlib import Path

import pytest

# The real functions but for those that talk to Slurm.
WITHOUT_SLURM = """
source {repository}/slurm/lib.sh
begin() {{ JOB_RECIPE=eval.yaml JOB_MODEL=model JOB_SUITES=base CHECKPOINT=step JOB_COMMANDS=('eval --model model'); }}
export_model() {{ STEP_STATUS=0; }}
on_one_node() {{ echo "$@"; STEP_STATUS=0; }}
finish() {{ exit; }}
"""


@pytest.mark.parametrize("script", ["eval.sh", "eval_checkpoint.sh"])
@pytest.mark.parametrize(("site", "python"), [("", "/env/python"), ("EVAL_PYTHON=/vllm/python", "/vllm/python")])
def test_evaluations_run_with_the_python_of_the_site_file(tmp_path: Path, script: str, site: str, python: str) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "lib.sh").write_text(WITHOUT_SLURM.format(repository=Path.cwd()))
    (tmp_path / "slurm" / "site.sh").write_text(f"PYTHON=/env/python\n{site}\n")
    command = ["bash", Path("slurm", script).resolve()]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    ran = [line.split(" -m smollm3 ") for line in answer.stdout.splitlines()]
    by_verb = {words.split()[0]: interpreter for interpreter, words in ran}
    assert by_verb.pop("eval") == python, answer.stdout + answer.stderr
    assert set(by_verb.values()) <= {"/env/python"}
