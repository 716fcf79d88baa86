"""The table of jobs: one row per job of a profile, in the order of the chain.

The chain on this machine (chain/), the graph of a scheduler with its checks and its status (jobs/submission.py,
jobs/status.py, slurm/), the check of recipes (check/) and the commands that the report names for what is missing all
follow from it. A new job is a row here and a function that plans it, in jobs/training.py or jobs/models.py.
"""

from eval.fingerprint import VERSIONED
from jobs import models, training
from jobs.plan import PRETRAINING, Folders, Job, JobError

# Where the code of a job begins; what the files import, and what they name beside them, belongs to it.
# What does nothing but call it from the command line does not.
_DATA = ("datapipes/prepare.py", "datapipes/corpus", "posttrain/tiny_data.py", "eval/data.py")
_PLANNER = ("nanotron_ext/plan/recipes.py",)
_PRETRAINING = ("nanotron_ext/train/__main__.py",)
_EXPORT = ("nanotron_ext/export.py", "eval/pretraining.py")
_POST_TRAINING = ("posttrain/train.py",)
_MERGE = ("merge/run.py",)
_SWEEP = ("merge/sweep.py",)  # and the code of its suites, which jobs/models.py adds, as to all evaluations
_CAPABILITIES = ("posttrain/evaluate.py",)
_REPORT = ("report/write.py",)

_DATA_VERSIONS = ("datatrove", "tokenizers", "numpy")
_PRETRAINING_VERSIONS = ("torch", "nanotron", "numpy")
_MODEL_VERSIONS = ("torch", "transformers", "safetensors")
_POST_TRAINING_VERSIONS = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")
_MERGE_VERSIONS = ("mergekit", "torch", "transformers")


def _pretraining_job(name: str, description: str, before: str, seconds: float) -> Job:
    return Job(
        name, description, training.pretrain, lambda folders: folders.has(name), name, ("data", before),
        _PRETRAINING, _PRETRAINING_VERSIONS, seconds,
    )  # fmt: skip


def _post_training_job(name: str, description: str, before: str, seconds: float) -> Job:
    return Job(
        name, description, training.post_train, lambda folders: folders.has(name), name, ("data", before),
        _POST_TRAINING, _POST_TRAINING_VERSIONS, seconds,
    )  # fmt: skip


def _has_stages(folders: Folders) -> bool:
    return any(name.startswith("pretrain") for name in folders.pretraining)


def _evaluates(folders: Folders) -> bool:
    return folders.has("eval")


_ROWS = (
    Job(
        "data", "Tokenizer, shards of all sources, and the sets that post-training and evaluation read.",
        training.data, lambda folders: folders.has("pretrain"), "pretrain", (), _DATA, _DATA_VERSIONS, 11,
    ),
    Job(
        "plan", "Predict memory, speed and storage of the pretraining stages.", training.predict, _has_stages,
        "pretrain", (), _PLANNER, _PRETRAINING_VERSIONS, 11, ("chain",),
    ),
    _pretraining_job("pretrain_stage1", "Pretraining: the first mixture.", "data", 98),
    _pretraining_job("pretrain_stage2", "Pretraining: the second mixture.", "pretrain_stage1", 55),
    _pretraining_job("pretrain_stage3", "Pretraining: the third mixture, and decay.", "pretrain_stage2", 68),
    _pretraining_job("long_context_32k", "Pretraining: longer windows.", "pretrain_stage3", 65),
    _pretraining_job("long_context_64k", "Pretraining: the longest windows.", "long_context_32k", 54),
    Job(  # on a cluster the jobs that need a model export it themselves
        "export", "Write the stages' models as transformers folders, with their held-out bits per byte.",
        training.export, lambda folders: bool(folders.pretraining), "pretrain", (PRETRAINING[-1],), _EXPORT,
        _MODEL_VERSIONS, 15, ("chain",),
    ),
    Job(
        "eval_base", "Evaluate the last model of pretraining.", models.evaluate_base,
        lambda folders: folders.has("eval") and bool(folders.pretraining), "eval", ("data", "export"),
        versions=VERSIONED, seconds=17, script="eval",
    ),
    _post_training_job("midtrain", "Mid-training: long reasoning.", "export", 134),
    _post_training_job("sft", "Supervised fine-tuning in both modes.", "midtrain", 89),
    _post_training_job("apo", "Preference training (APO), under every seed of the soup.", "sft", 36),
    Job(
        "merge", "Average the APO models, then add a share of the mid-training model.", models.merge,
        lambda folders: folders.has("merge"), "merge", ("midtrain", "apo"), _MERGE, _MERGE_VERSIONS, 6,
    ),
    Job(
        "eval_long", "Ask every model that changed it for facts in long texts.", models.evaluate_long,
        models.has_long_suite, "eval", ("data", "export", "merge"), versions=VERSIONED, seconds=41, places=("chain",),
    ),
    Job(
        "eval", "Evaluate the last model on all suites.", models.evaluate_last, _evaluates, "eval",
        ("data", "merge"), versions=VERSIONED, seconds=16,
    ),
    Job(
        "capabilities", "Ask for the taught tasks in both modes, with held-out problems.", models.capabilities,
        models.teaches, "eval", ("data", "export", "merge"), _CAPABILITIES, _MODEL_VERSIONS, 33, ("chain",),
    ),
    Job(
        "merge_sweep", "Evaluate other shares of the soup in the merge.", models.merge_sweep, models.has_sweep,
        "merge", ("data", "merge"), _SWEEP, (*_MERGE_VERSIONS, *VERSIONED), 56, ("chain",),
    ),
    Job(
        "report", "One page about everything above.", models.report, lambda folders: folders.has("pretrain"),
        "pretrain", ("plan", "eval_base", "eval_long", "eval", "capabilities", "merge_sweep"), _REPORT, (), 2,
    ),
    Job(
        "eval_checkpoint", "Evaluate a checkpoint while its run goes on.", models.evaluate_checkpoint, _evaluates,
        "eval", places=("cluster",), in_graph=False,
    ),
)  # fmt: skip
JOBS = {job.name: job for job in _ROWS}
# Names for several jobs at once.
GROUPS = {
    "pretrain": ("pretrain_stage1", "pretrain_stage2", "pretrain_stage3"),
    "long_context": ("long_context_32k", "long_context_64k"),
    "posttrain": ("midtrain", "sft", "apo"),
    "evaluation": ("eval_long", "eval_base", "eval", "capabilities"),
}


def job_of(name: str) -> Job:
    """Raises JobError when there is no such job."""
    if name not in JOBS:
        raise JobError(f"There is no job {name!r}. Jobs: {', '.join(JOBS)}.")
    return JOBS[name]
