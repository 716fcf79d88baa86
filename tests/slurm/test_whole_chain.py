"""`make cluster-run PROFILE=tiny` on a real Slurm, from an empty folder to the report, with fewer steps."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.attempts import read_attempts
from tests.slurm.conftest import Cluster
from tests.slurm.small_profile import losses

pytestmark = pytest.mark.long

CHANGES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "tokens": {"train_steps": 12, "val_check_interval": 12, "limit_val_batches": 2},
        "optimizer": {
            "learning_rate_scheduler": {"lr_warmup_steps": 2, "lr_decay_starting_step": 9, "lr_decay_steps": 4}
        },
        "checkpoints": {"checkpoint_interval": 2},
        "parallelism": {"dp": 2, "pp": 1},
    },
    "pretrain_stage1": {"tokens": {"stop_step": 4}},
    "pretrain_stage2": {"tokens": {"stop_step": 8}},
    "pretrain_stage3": {"parallelism": {"dp": 2, "tp": 1}},
    "long_context_32k": {
        "tokens": {"train_steps": 2, "val_check_interval": 2, "limit_val_batches": 1},
        "optimizer": {"learning_rate_scheduler": {"lr_warmup_steps": 1}},
        "checkpoints": {"checkpoint_interval": 2},
    },
    "eval": {
        "suites": {
            "base": {"tasks": {"piqa": {"max_documents": 4}}},
            "long": {
                "tasks": {"ruler_niah_single": {"context_tokens": 128, "generation_tokens": 4, "max_documents": 2}}
            },
            "instruct": {"modes": ["no_think"], "tasks": {"ifeval": {"generation_tokens": 4, "max_documents": 2}}},
        },
        "checkpoints": {"every_steps": 4, "suites": ["base"]},
    },
    "sft": {"parallelism": {"fsdp": True}},
    "apo": {"parallelism": {"fsdp": True}},
    "cluster": {"sbatch": {"all": {"time": 30}}},
}
ROWS_USED = {"midtrain": 0.05, "sft": 0.05, "apo": 0.05}
EVALUATED_STEPS = {"stage1": [4], "stage2": [8], "stage3": [12]}


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {key: changed(tree.get(key) or {}, new) if isinstance(new, dict) else new for key, new in changes.items()}
    return tree | merged


def write_short_profile(folder: Path) -> None:
    """recipes/tiny with fewer steps, rows and questions; everything else as it is."""
    shutil.copytree("recipes/tiny", folder)
    for file in folder.glob("*.yaml"):
        name = file.stem
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        if name == "pretrain":
            for stage, start in zip(tree["data_stages"], (1, 5, 9), strict=True):
                stage["start_training_step"] = start
        if name in ROWS_USED:
            for dataset in tree["data"]["datasets"]:
                dataset["weight"] = ROWS_USED[name]
            tree["data"]["max_lost_fraction"] = 0.5
            tree["optimizer"]["num_train_epochs"] = 1
        if name == "eval":
            tree["suites"] = {}
        if name == "merge":
            tree["evaluation"]["recipe"] = str(folder / "eval.yaml")
        file.write_text(yaml.safe_dump(changed(tree, CHANGES.get(name, {})), sort_keys=False), encoding="utf-8")


def test_from_an_empty_folder_to_the_report(cluster: Cluster, tmp_path: Path) -> None:
    write_short_profile(tmp_path / "recipes")
    run = tmp_path / "run"
    environment = {
        "RECIPES": tmp_path / "recipes",
        "RUN": run,
        "EVALUATION_POLL_SECONDS": "2",
        "HF_DATASETS_CACHE": tmp_path / "cache",
    }

    def slurm(verb: str) -> str:
        return cluster.run(sys.executable, "-m", "smollm3", verb, **environment).stdout

    first = slurm("cluster-run")
    jobs = {name: int(job) for name, job in re.findall(r"^  (\w+) +job (\d+)", first, re.MULTILINE)}
    assert f"{len(jobs)} jobs submitted" in first
    assert " ".join(jobs) == (
        "data pretrain_stage1 pretrain_stage2 pretrain_stage3 long_context_32k long_context_64k eval_base "
        "midtrain sft apo merge eval report"
    )
    assert "after eval_base, eval" in first
    assert "0 jobs submitted" in slurm("cluster-run")

    cluster.wait_for("stage 2 to train", lambda: bool(losses(run / "stage2")), 300)
    status = slurm("cluster-status")
    assert re.search(r"pretrain_stage1 +done +4/4 +\d\.\d{4} +[\d,]+", status), status
    assert re.search(r"pretrain_stage2 +(running|completing)", status), status
    assert re.search(r"next: .*sft, apo, merge", status), status

    cluster.wait_for_end(*jobs.values(), seconds=900)
    states = {name: cluster.field(job, "JobState") for name, job in jobs.items()}
    assert set(states.values()) == {"COMPLETED"}, states
    assert "0 jobs submitted" in slurm("cluster-run")
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert "next: nothing" in slurm("cluster-status")

    for stage, steps in EVALUATED_STEPS.items():
        folder = run / stage
        cluster.wait_for(f"evaluations of {stage}", (folder / "evaluations.jsonl").is_file, 120)
        rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == steps
        assert all(0 <= row["evaluation/base/piqa"] <= 1 for row in rows)
        assert set(steps) <= set(losses(folder))
    # Post-training ran on two nodes, sharded.
    assert len({log.stem for log in (run / "sft" / "logs").glob("*/n?.log")}) == 2
    assert list((run / "sft" / "checkpoints").glob("*/pytorch_model_fsdp.bin"))
    assert (run / "hf" / "apo_seed43" / "config.json").is_file()
    assert [attempt.outcome for attempt in read_attempts(run / "sft")] == ["finished"]
