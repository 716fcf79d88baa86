"""The Slurm executor against stand-ins for Slurm's commands that run every job at once, as sbatch describes it."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from datapipes import executors
from datapipes.errors import SourceError
from datapipes.executors import SlurmSettings
from datapipes.pipeline import SourceBuild
from datapipes.registry import Source
from datapipes.tokenizer import LoadedTokenizer
from smollm3.command_line import main
from tests.datapipes.helpers import is_done, random_text, shard_bytes

SETTINGS = SlurmSettings(partition="cpu", time="01:00:00", cpus_per_task=2, qos="low")

# State below $FAKE_SLURM: `queue` holds the ids that squeue lists, `outcome/ID` how the job ended.
COMMANDS = {
    "sbatch": r"""
script=${!#}; id=$(( $(ls "$FAKE_SLURM/scripts" | wc -l) + 1 ))
cp "$script" "$FAKE_SLURM/scripts/$id"; echo "$@" > "$FAKE_SLURM/arguments/$id"; env > "$FAKE_SLURM/environment"
ok=yes
for argument; do case $argument in
  --dependency=afterok:*) [ "$(cat "$FAKE_SLURM/outcome/${argument##*:}")" = ok ] || ok=no;;
  --export=*) export "${argument##*,}";;
esac; done
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
if [ -e "$FAKE_SLURM/hold" ]; then ok=no; fi
for rank in $(seq 0 "$last"); do
  [ $ok = no ] || SLURM_ARRAY_TASK_ID=$rank SLURM_JOB_ID=$id SLURM_NODELIST=node1 bash "$script" \
    > "$FAKE_SLURM/output" 2>&1 || ok=no
done
echo $ok | sed s/yes/ok/ > "$FAKE_SLURM/outcome/$id"
echo "Submitted batch job $id"
""",
    "srun": 'while [[ $1 == -* ]]; do [ "$1" = -n ] && shift; shift; done; exec "$@"',
    "scontrol": 'echo "${!#}"',
    "squeue": 'cat "$FAKE_SLURM/queue" 2> /dev/null || { echo "slurm_load_jobs error: Invalid job id" >&2; exit 1; }',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    commands, state = tmp_path / "commands", tmp_path / "slurm"
    commands.mkdir()
    for name in ("scripts", "arguments", "outcome"):
        (state / name).mkdir(parents=True)
    for name, body in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setattr(executors, "POLL_SECONDS", 0.05)
    return state


def texts(count: int) -> list[str]:
    generator = random.Random(2)
    return [random_text(generator, generator.randint(1, 60)) for _ in range(count)]


def test_the_shards_are_those_of_the_local_executor(
    make_source: Callable[..., Source], tokenizer: LoadedTokenizer, tmp_path: Path, slurm: Path
) -> None:
    source = make_source([*texts(30), *texts(5)], files=2, tasks=2, deduplicate="exact")
    SourceBuild(source, tokenizer, tmp_path / "local").build(workers=1)
    build = SourceBuild(source, tokenizer, tmp_path / "slurm-data")
    build.submit(SETTINGS)
    build.finish_submitted()
    assert shard_bytes(tmp_path / "slurm-data/letters") == shard_bytes(tmp_path / "local/letters")
    assert build.summary(rebuilt=True).dropped == {"duplicate": 5}
    scripts = {path.name: path.read_text() for path in (slurm / "scripts").iterdir()}
    assert len(scripts) == 3  # signatures, duplicates, shards
    for option in ("partition=cpu", "time=01:00:00", "cpus-per-task=2", "qos=low", "kill-on-invalid-dep=yes"):
        assert all(f"#SBATCH --{option}\n" in script for script in scripts.values())
    assert ["--array=0-1\n" in scripts[number] for number in "123"] == [True, False, True]
    arguments = [(slurm / "arguments" / number).read_text() for number in "123"]
    assert ["afterok" in line for line in arguments] == [False, True, True]
    assert "afterok:1" in arguments[1] and "afterok:2" in arguments[2]


def test_jobs_that_fail_are_reported_and_submitted_again(
    make_source: Callable[..., Source], tokenizer: LoadedTokenizer, tmp_path: Path, slurm: Path
) -> None:
    build = SourceBuild(make_source(texts(10)), tokenizer, tmp_path / "data")
    (slurm / "hold").touch()
    build.submit(SETTINGS)
    with pytest.raises(SourceError, match=r"1 of 1 tasks of stage 'shards' ended without success: read .*slurm_logs"):
        build.finish_submitted()
    assert not build.folder.exists()
    (slurm / "hold").unlink()
    build.submit(SETTINGS)
    build.finish_submitted()
    assert is_done(build)


def test_jobs_in_the_queue_are_not_submitted_twice(
    make_source: Callable[..., Source], tokenizer: LoadedTokenizer, tmp_path: Path, slurm: Path
) -> None:
    build = SourceBuild(make_source(texts(10)), tokenizer, tmp_path / "data")
    (slurm / "hold").touch()
    build.submit(SETTINGS)
    (slurm / "queue").write_text("1\n")
    build.submit(SETTINGS)
    assert len(list((slurm / "scripts").iterdir())) == 1
    (slurm / "queue").unlink()
    build.submit(SETTINGS)
    assert len(list((slurm / "scripts").iterdir())) == 2


def test_a_stage_that_ran_on_part_of_its_input_runs_again(
    make_source: Callable[..., Source], tokenizer: LoadedTokenizer, tmp_path: Path, slurm: Path
) -> None:
    source = make_source(texts(10), deduplicate="exact")
    build = SourceBuild(source, tokenizer, tmp_path / "data")
    (slurm / "hold").touch()
    for stage in ("duplicates", "shards"):
        (build.logs / stage / "completions").mkdir(parents=True)
        (build.logs / stage / "completions/00000").touch()
    build.submit(SETTINGS)
    assert len(list((slurm / "scripts").iterdir())) == 3


def test_jobs_get_the_keys_of_jobs_alone(
    make_source: Callable[..., Source],
    tokenizer: LoadedTokenizer,
    tmp_path: Path,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sbatch hands on all that it is given."""
    for name in ("BANK_PASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary")
    SourceBuild(make_source(texts(10)), tokenizer, tmp_path / "data").submit(SETTINGS)
    handed_on = (slurm / "environment").read_text().splitlines()
    assert "HF_TOKEN=canary" in handed_on and "BANK_PASSWORD=canary" not in handed_on
    assert os.environ["BANK_PASSWORD"] == "canary"


def test_without_slurm_or_partition_the_error_says_so(
    make_source: Callable[..., Source],
    tokenizer: LoadedTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = SourceBuild(make_source(texts(10)), tokenizer, tmp_path / "data")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceError, match=r"sbatch failed for letters: .* login node"):
        build.submit(SETTINGS)
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    assert main(["data", "recipes/tiny/pretrain.yaml", "--executor", "slurm"]) == 2
    assert "error: --executor slurm needs --partition" in capsys.readouterr().err
