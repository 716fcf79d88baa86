"""What must hold before a job is queued, and again when it starts."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from jobs.plan import JobError, Plan
from jobs.profile import Profile
from jobs.scheduler import Resources, Scheduler, load_cluster_settings
from jobs.table import JOBS


def check_job(
    profile: Profile,
    scheduler: Scheduler,
    plan: Plan,
    resources: Resources,
    coming: Iterable[str] = (),
) -> None:
    """All checks; `coming` names queued jobs, whose products will be there when this one starts.

    Raises:
        UserError: a sentence that says what is wrong and what to do.
    """
    device = load_cluster_settings(profile).device
    if device == "cuda":
        scheduler.check()
    processes_per_node(plan, resources, device)
    check_inputs(profile, plan, coming)


def processes_per_node(plan: Plan, resources: Resources, device: str) -> int:
    """One process per GPU; on CPUs as many as the layout needs.

    Raises:
        JobError: when the nodes do not hold the recipe's layout, naming the numbers that do.
    """
    if not plan.is_distributed:
        return 1
    per_node = _per_node_of_cpus(plan, resources) if device == "cpu" else _per_node_of_gpus(plan, resources)
    if plan.micro_batches is not None and plan.micro_batches % (resources.nodes * per_node):
        raise JobError(
            f"{plan.recipe} makes a step of {plan.micro_batches} micro-batches, which {resources.nodes} nodes x "
            f"{per_node} processes cannot share evenly. Ask for other nodes, or change optimizer.micro_batch_size."
        )
    return per_node


def _per_node_of_cpus(plan: Plan, resources: Resources) -> int:
    nodes = resources.nodes
    needed = plan.world_size or nodes
    if needed % nodes:
        fitting = ", ".join(str(number) for number in range(1, needed + 1) if needed % number == 0)
        raise JobError(
            f"{plan.recipe} needs {needed} processes (dp x pp x tp), which {nodes} nodes cannot share evenly. "
            f"Ask for one of {fitting} nodes."
        )
    return needed // nodes


def _per_node_of_gpus(plan: Plan, resources: Resources) -> int:
    nodes, gpus = resources.nodes, resources.gpus_per_node
    if gpus == 0:
        raise JobError(f"{plan.name} asks for no GPUs, which {plan.recipe} trains on.")
    needed = plan.world_size or nodes * gpus
    if needed != nodes * gpus:
        fix = f"Ask for {needed // gpus} nodes" if needed % gpus == 0 else "Ask for another number of GPUs per node"
        raise JobError(
            f"{plan.recipe} needs {needed} GPUs (dp x pp x tp), but {nodes} nodes x {gpus} GPUs are "
            f"{nodes * gpus}. {fix}, or change the parallelism section."
        )
    return gpus


def check_inputs(profile: Profile, plan: Plan, coming: Iterable[str] = ()) -> None:
    """Raises JobError when something that the job starts from is not there, and no job that is `coming` makes it."""
    missing = plan.missing_inputs
    if missing:
        promised = [product for name in coming for product in _products(profile, name)]
        missing = [path for path in missing if not _is_among(path, promised)]
    if not missing:
        return
    listed = ", ".join(str(path) for path in missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
    if profile.model is not None and missing[0].parent == profile.model:
        raise JobError(f"{plan.name}: {profile.model} is no transformers folder (no config.json). Correct its path.")
    maker = _maker(profile, plan.name, missing[0])
    fix = f"Finish {maker} first, or submit it together with this job" if maker else "Make it"
    what = "no checkpoint to start from" if all(path.name == "checkpoint.json" for path in missing) else "missing input"
    raise JobError(f"{plan.name}: {what}: {listed}. {fix}: smollm3 cluster-run submits the whole chain.")


def _products(profile: Profile, name: str) -> Sequence[Path]:
    return profile.plan(name).products if name in JOBS and JOBS[name].in_graph else ()


def _is_among(path: Path, products: Iterable[Path]) -> bool:
    return any(fnmatchcase(str(product), str(path)) for product in products)


def _maker(profile: Profile, name: str, path: Path) -> str | None:
    """The job before this one that makes what is missing; where none does, the one that it comes after."""
    among = profile.jobs
    before = among[: among.index(name)] if name in among else ()
    makers = [job for job in before if _is_among(path, _products(profile, job))]
    return next(iter([*makers, *reversed(before)]), None)
