"""The effects that the recipe of SmolLM3 claims, measured in the results of one run.

Every claim is one or several effects, each a number that is greater the more the claim holds, and an interval where one
run gives one. `smollm3 demo-seeds` repeats the chain under several seeds and gathers the same effects of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foundation.intervals import Estimate, newcombe, wilson
from report.collect import Report, Training

MODE_FOLLOWING_PERCENT = 95.0
_MERGED = {"soup", "merged"}

Summary = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]  # task -> mode -> measure -> share


@dataclass(frozen=True)
class Effect:
    """`value` is above `null` if the claim holds; both, and the interval, in `unit`."""

    name: str
    detail: str  # the numbers that it is made of
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    null: float = 0.0


@dataclass(frozen=True)
class Claim:
    """`effects` is empty where nothing measured the claim; `command` does, or `absent` says what is in the way."""

    key: str
    text: str
    command: str
    effects: Sequence[Effect]
    absent: str = ""


def measure(report: Report) -> list[Claim]:
    """All claims, in the order of the chain."""
    retrieval = [
        ("long_context", "Retrieval at long lengths rises with the long-context phases.", _long_context_phases(report)),
        ("apo", "Retrieval falls after APO on short data.", _preference(report)),
        ("merge", "Retrieval comes back with the 0.9/0.1 merge.", _merged(report)),
    ]
    base, final, multi_step = _taught_models(report)
    pretrain, ask = report.commands["pretrain"], report.commands["capabilities"]
    return [
        Claim("stages", "Held-out text gets easier in each pretraining stage.", pretrain, _stages(report)),
        Claim(
            "shares", "Mathematics and code improve more than web text when their shares rise.", pretrain,
            _shares(report),
        ),
        *(Claim(key, text, report.commands["eval_long"], effects, _no_long_lengths(report))
          for key, text, effects in retrieval),
        Claim(
            "thinking", "Thinking beats not thinking on tasks of several steps.", ask,
            thinking_effects(final, multi_step) if final else [],
        ),
        Claim(
            "modes", f"Replies keep to the mode that was asked for, at least {MODE_FOLLOWING_PERCENT:.0f} % of them.",
            ask, mode_effects(final) if final else [],
        ),
        Claim(
            "taught", "The final model solves taught tasks that the base model does not.",
            ask, taught_effects(base, final) if base and final else [],
        ),
    ]  # fmt: skip


def is_long_context(training: Training) -> bool:
    return training.name.startswith("long_context")


def _held_out(training: Training) -> list[Mapping[str, float]]:
    """Bits per byte by source, of every validation."""
    key = "validation_bits_per_byte"
    return [row[key] for row in training.rows if key in row]


def _stages(report: Report) -> list[Effect]:
    """The fall of the mean over the held-out sources within each stage: from the end of the stage before, or from the
    first validation."""
    effects: list[Effect] = []
    before: Mapping[str, float] | None = None
    for training in report.pretraining:
        found = _held_out(training)
        if is_long_context(training) or not found:
            continue
        start, end = before or found[0], found[-1]
        before = end
        if start is not end:
            sources = [source for source in end if source in start]
            first, last = (sum(bits[source] for source in sources) / len(sources) for bits in (start, end))
            effects.append(Effect(training.name, f"{first:.3f} to {last:.3f}", first - last, "bits per byte"))
    return effects


def _shares(report: Report) -> list[Effect]:
    """How much more, in percent of its bits per byte, a category falls over the last stage than English web text."""
    stages = [training for training in report.pretraining if not is_long_context(training) and _held_out(training)]
    if len(stages) < 2:
        return []
    before, after = stages[-2:]
    bits_before, bits_after = _held_out(before)[-1], _held_out(after)[-1]

    def fall(category: str) -> float | None:
        sources = [source for source in bits_after if report.categories.get(source) == category]
        falls = [100 * (1 - bits_after[source] / bits_before[source]) for source in sources if source in bits_before]
        return sum(falls) / len(falls) if falls else None

    def share(stage: Training, category: str) -> float:
        sources = report.mixtures[stage.name]
        return 100 * sum(source.planned for source in sources if report.categories.get(source.name) == category)

    web = fall("web")
    effects = []
    for category in ("math", "code"):
        own, (low, high) = fall(category), (share(before, category), share(after, category))
        if own is not None and web is not None and high > low:
            detail = f"share {low:.0f} to {high:.0f} % in {after.name}; {own:.1f} % fewer bits, web {web:.1f} %"
            effects.append(Effect(category, detail, own - web, "points more than web"))
    return effects


def _long_lengths(report: Report) -> tuple[int, list[int]]:
    """(tokens of a pretraining window, all lengths at which retrieval was asked for)."""
    tasks = [task for result in report.evaluations for task in result.tasks if task.is_retrieval]
    lengths = sorted({int(task.settings["context_tokens"] or 0) for task in tasks})
    return report.pretraining[0].recipe["tokens"]["sequence_length"] if report.pretraining else 0, lengths


def _no_long_lengths(report: Report) -> str:
    window, lengths = _long_lengths(report)
    if not lengths or lengths[-1] > window:
        return ""
    return f"Asked at {lengths[-1]:,} tokens at most, which fits into pretraining's windows of {window:,}."


def _retrieval(report: Report, model: str) -> tuple[Estimate, str] | None:
    """The share of wanted strings that the model gives back beyond the window of pretraining, and that in words."""
    window, _ = _long_lengths(report)
    tasks = [
        task
        for result in report.evaluations
        for task in result.tasks
        if result.model.name == model and task.is_retrieval and int(task.settings["context_tokens"] or 0) > window
    ]
    if not tasks:
        return None
    trials = sum(task.num_documents * task.num_samples for task in tasks)
    successes = sum(task.main_metric.value * task.num_documents * task.num_samples for task in tasks)
    too_long = sum(task.num_over_length for task in tasks)
    note = f", {too_long} longer than its window" if too_long else ""
    return wilson(successes, trials), f"{model} {successes:.3g} of {trials}{note}"


def _retrieval_change(report: Report, first: str | None, second: str | None, sign: int = 1) -> list[Effect]:
    before = _retrieval(report, first) if first else None
    after = _retrieval(report, second) if second else None
    if before is None or after is None:
        return []
    change = newcombe(before[0], after[0]) if sign > 0 else newcombe(after[0], before[0])
    return [_points(f"{first} to {second}", f"{before[1]}; {after[1]}", change)]


def _last_evaluated(report: Report, names: Sequence[str]) -> str | None:
    found = [name for name in names if _retrieval(report, name)]
    return found[-1] if found else None


def _long_context_phases(report: Report) -> list[Effect]:
    base = [training.name for training in report.pretraining if not is_long_context(training)]
    extended = [training.name for training in report.pretraining if is_long_context(training)]
    return _retrieval_change(report, base[-1] if base else None, extended[-1] if extended else None)


def _preference(report: Report) -> list[Effect]:
    names = [training.name for training in (*report.pretraining, *report.posttraining) if training.name != "apo"]
    return _retrieval_change(report, _last_evaluated(report, names), "apo", sign=-1)


def _merged(report: Report) -> list[Effect]:
    return _retrieval_change(report, _last_evaluated(report, ("apo", "soup")), "merged")


def _points(name: str, detail: str, difference: Estimate) -> Effect:
    return Effect(
        name, detail, 100 * difference.value, "points", 100 * difference.low, 100 * difference.high
    )  # fmt: skip


def _taught_models(report: Report) -> tuple[Summary | None, Summary | None, Sequence[str]]:
    """Shares of the first base model and of the last post-trained one, where there are such, and the tasks that need
    several steps."""
    if report.capabilities is None:
        return None, None, ()
    after_base = {training.name for training in report.posttraining} | _MERGED
    base: list[Summary] = []
    final: list[Summary] = []
    for folder, content in report.capabilities["models"].items():
        (final if folder.rsplit("/", 1)[-1] in after_base else base).append(content["summary"])
    return base[0] if base else None, final[-1] if final else None, multi_step_tasks(report)


def multi_step_tasks(report: Report) -> Sequence[str]:
    """Of the taught tasks, those that take several steps, as their held-out prompts say."""
    return (report.capabilities or {}).get("multi_step_tasks", ())


def _share(summary: Summary, task: str, modes: Sequence[str], measure: str) -> tuple[Estimate, str]:
    shares = [summary[task][mode][measure] for mode in modes]
    successes, trials = (sum(share[key] for share in shares) for key in ("successes", "trials"))
    return wilson(successes, trials), f"{successes:.0f} of {trials:.0f}"


def thinking_effects(final: Summary, multi_step: Sequence[str]) -> list[Effect]:
    """Both modes answer the same prompts; taking them for independent can only widen the interval where they agree."""
    effects = []
    for task in multi_step:
        if task in final:
            (thinking, with_it), (direct, without) = (
                _share(final, task, [mode], "correct") for mode in ("think", "no_think")
            )
            effects.append(
                _points(task, f"right with thinking {with_it}, without {without}", newcombe(direct, thinking))
            )
    return effects


def mode_effects(final: Summary) -> list[Effect]:
    effects = []
    for mode in ("think", "no_think"):
        share, words = _share(final, "all", [mode], "followed_mode")
        effects.append(replace(_points(f"/{mode}", words, share), unit="%", null=MODE_FOLLOWING_PERCENT))
    return effects


def taught_effects(base: Summary, final: Summary) -> list[Effect]:
    (before, words_before), (after, words_after) = (
        _share(summary, "all", ("think", "no_think"), "correct") for summary in (base, final)
    )
    detail = f"right in both modes together: base {words_before}, final {words_after}"
    return [_points("all tasks", detail, newcombe(before, after))]


def over_posttraining_seeds(content: Mapping[str, Any], multi_step: Sequence[str]) -> dict[str, list[list[Effect]]]:
    """posttrain_seeds.json as claim -> for each seed, its effects."""
    return {
        "thinking": [thinking_effects(chain, multi_step) for chain in content["chains"]],
        "modes": [mode_effects(chain) for chain in content["chains"]],
        "taught": [taught_effects(content["base"], chain) for chain in content["chains"]],
    }
