"""Another scheduler than Slurm: an adapter (pbs.py) and nothing else, through which the miniature's whole graph runs.

qsub and qstat are stand-ins that keep a spool of scripts. The jobs' program is one too: it finds the job that it is
part of, refuses to start where something that the job reads is not there yet, and leaves the job's products.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.plan import JobError
from jobs.profile import Profile
from jobs.scheduler import load_cluster_settings, load_scheduler
from jobs.status import status_table
from jobs.submission import submit_chain, submit_job

QSUB = """#!/bin/bash
cd "$(dirname "$0")/../spool"
id=$(($(ls | wc --lines) / 2 + 1)).server
cat >"$id.sh"
printf '%s\\n' "$*" >"$id.asked"
echo "$id"
"""
QSTAT = """#!/bin/bash
cd "$(dirname "$0")/../spool"
[[ $1 != -Q || $2 == short ]] || { echo "Unknown queue $2" >&2; exit 1; }
shopt -s nullglob
for asked in *.asked; do
  [[ $1 == -u && ! -e ${asked%.asked}.ended ]] || continue
  name=$(grep -oP '(?<=-N )\\S+' "$asked") folder=$(grep -oP '(?<=-A )\\S+' "$asked") state=Q
  ! grep -q depend= "$asked" || state=H
  printf '%s\\t%s\\t%s\\t%s\\n' "${asked%.asked}" "$name" "$state" "$folder"
done
"""
PROGRAM = """
import os, sys
from pathlib import Path
from jobs.profile import Profile

profile = Profile(Path(os.environ["RECIPES"]), Path(os.environ["RUN"]))
words = tuple(sys.argv[1:])
[plan] = [plan for plan in map(profile.plan, profile.jobs_in("chain")) if words in plan.commands]
models = [Path(word) for before, word in zip(words, words[1:]) if before == "--model"]
models += [plan.model] if plan.model else []
lacking = [*plan.missing_inputs, *(model for model in models if not (model / "config.json").is_file())]
if lacking:
    sys.exit(f"{plan.name} lacks {lacking[0]}")
if words == plan.commands[-1]:
    for product in plan.products:
        product.parent.mkdir(parents=True, exist_ok=True)
        product.exists() or product.touch()
"""


class Site:
    """The miniature's recipes, PBS's commands, and a way to let the queue run."""

    def __init__(self, root: Path) -> None:
        self.spool = root / "spool"
        for folder in ("bin", "spool", "recipes"):
            (root / folder).mkdir()
        for name, text in {"qsub": QSUB, "qstat": QSTAT}.items():
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        for path in Path("recipes/tiny").glob("*.yaml"):
            tree = {"extends": str(path.resolve())}
            (root / "recipes" / path.name).write_text(yaml.safe_dump(tree))
        (root / "program.py").write_text(PROGRAM)
        settings = {"scheduler": "tests.jobs.pbs:Pbs", "device": "cpu", "queue_name": "short"}
        self.cluster_file = root / "recipes" / "cluster.yaml"
        self.settings = settings | {"program": [sys.executable, str(root / "program.py")]}
        self.cluster_file.write_text(yaml.safe_dump(self.settings))
        self.profile = Profile(root / "recipes", root / "run")

    def run_queue(self) -> list[str]:
        """Run all jobs, of those that may start always the one submitted last; returns their names in order."""
        ran = []
        while waiting := self._may_start():
            job_id, name = waiting[-1]
            done = subprocess.run(["bash", str(self.spool / f"{job_id}.sh")], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (self.spool / f"{job_id}.ended").touch()
            ran.append(name)
        return ran

    def _may_start(self) -> list[tuple[str, str]]:
        jobs = sorted(self.spool.glob("*.asked"), key=lambda path: int(path.name.partition(".")[0]))
        found = []
        for asked in (job for job in jobs if not job.with_suffix(".ended").exists()):
            words = shlex.split(asked.read_text())
            first = [word.partition("afterok:")[2].split(":") for word in words if word.startswith("depend=")]
            if all((self.spool / f"{job_id}.ended").exists() for ids in first for job_id in ids):
                found.append((asked.stem, words[words.index("-N") + 1]))
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.setenv("RECIPES", str(tmp_path / "recipes"))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    return Site(tmp_path)


def test_the_whole_graph_runs_through_an_adapter_of_another_scheduler(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty starts of Python with pydantic: half a second each."""
    names = site.profile.jobs_in("chain")
    assert submit_chain(site.profile, load_scheduler(site.profile)) == len(names)
    assert "eval_base          job 9.server after export" in capsys.readouterr().out
    assert submit_chain(site.profile, load_scheduler(site.profile)) == 0
    assert "report             job 18.server, queued before" in capsys.readouterr().out
    ran = site.run_queue()
    assert sorted(ran) == sorted(names) and ran[-1] == "report"
    assert ran.index("plan") < ran.index("data")  # nothing but the graph holds a job back
    fresh = Profile(site.profile.recipes, site.profile.run)
    assert all(fresh.plan(name).is_done for name in names)
    assert submit_chain(fresh, load_scheduler(fresh)) == 0


def test_one_job_waits_for_those_in_the_queue_that_make_what_it_lacks(site: Site) -> None:
    scheduler = load_scheduler(site.profile)
    with pytest.raises(JobError, match=r"pretrain_stage1: missing input: .*Finish data first"):
        submit_job(site.profile, scheduler, "pretrain_stage1")
    assert submit_job(site.profile, scheduler, "data") == "data: job 1.server, output in data.o1.server"
    assert "behind data (1.server)" in submit_job(site.profile, scheduler, "pretrain_stage1", ["-p", "5"])
    assert "-W depend=afterok:1.server -p 5" in (site.spool / "2.server.asked").read_text()
    with pytest.raises(JobError, match=r"already, as job 2.server .held."):
        submit_job(site.profile, scheduler, "pretrain_stage1")
    # The data is coming, which is not all that the third stage starts from.
    with pytest.raises(JobError, match=r"pretrain_stage3: no checkpoint to start from: .*Finish pretrain_stage2 first"):
        submit_job(site.profile, scheduler, "pretrain_stage3")
    states = list(status_table(site.profile, scheduler, scheduler.queue(site.profile.run)).columns[1].cells)
    assert states[:4] == ["queued, job 1.server", "not submitted", "held, job 2.server", "not submitted"]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("pbs", "scheduler: pbs is no adapter that can be imported"),
        ("tests.jobs.nowhere:Pbs", "No module named 'tests.jobs.nowhere'.*Write module:class.* on PYTHONPATH"),
        ("tests.jobs.pbs:Pbss", "no attribute 'Pbss'"),
    ],
)
def test_an_adapter_that_is_not_there_is_named(site: Site, scheduler: str, message: str) -> None:
    site.cluster_file.write_text(yaml.safe_dump(site.settings | {"scheduler": scheduler}))
    with pytest.raises(JobError, match=f"(?s)cluster.yaml: .*{message}"):
        load_scheduler(site.profile)


def test_a_site_that_is_not_set_up_is_said_before_anything_is_queued(site: Site) -> None:
    tree = site.settings | {"device": "cuda", "queue_name": "long"}
    site.cluster_file.write_text(yaml.safe_dump(tree))
    assert load_cluster_settings(site.profile).device == "cuda"
    with pytest.raises(JobError, match="qstat refused: Unknown queue long"):
        submit_chain(site.profile, load_scheduler(site.profile))
    assert not list(site.spool.iterdir())
