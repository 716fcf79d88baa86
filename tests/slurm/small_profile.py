"""A profile of three stages over 12 steps, small enough that a job on the local Slurm takes seconds."""

import json
from pathlib import Path

import yaml
from safetensors.numpy import load_file

from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

LAST_STEPS = {"stage1": 4, "stage2": 8, "stage3": 12}
CLUSTER = {
    "device": "cpu",
    "sbatch": {"all": {"nodes": 1, "gres": "none", "time": 60}}
    | {f"pretrain_{stage}": {"nodes": 2} for stage in LAST_STEPS},
}


def write_profile(root: Path) -> None:
    """`root/recipes`, `root/data` and `root/tokenizer`; runs go to `root/runs`."""
    prepare(root)
    (root / "recipes").mkdir()
    tokens = "{sequence_length: 16, train_steps: 12, stop_step: %d, micro_batch_size: 2, val_check_interval: 12}"
    for stage, last_step in {"pretrain": 12, **LAST_STEPS}.items():
        tree = tiny_recipe(
            root,
            general__run=stage,
            tokens=tokens % last_step,
            checkpoints__checkpoint_interval=2,
        ).to_dict()
        if last_step > 4 and stage != "pretrain":
            tree["checkpoints"]["resume_checkpoint_path"] = str(root / "runs" / f"stage{int(stage[-1]) - 1}")
        name = stage if stage == "pretrain" else f"pretrain_{stage}"
        (root / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (root / "recipes" / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))


def losses(run_folder: Path) -> dict[int, float]:
    """Step -> loss, of the complete lines of metrics.jsonl."""
    file = run_folder / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def master_weights(run_folder: Path, step: int) -> dict[str, bytes]:
    """The float32 masters of a checkpoint, byte for byte."""
    files = (run_folder / "checkpoints" / str(step)).glob("master-*.safetensors")
    return {f"{file.name} {name}": tensor.tobytes() for file in files for name, tensor in load_file(file).items()}
