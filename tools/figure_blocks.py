"""Tables, blocks and figures that pages take from the records of the demo, its seeds, and the planner's predictions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Block = Callable[[Mapping[str, Any]], str]

_STAGES = ("stage1", "stage2", "stage3")
_TASKS = {
    "all": "all", "addition": "addition", "chain": "chain (three steps)", "conversion": "conversion",
    "sorting": "sorting", "translation": "translation", "tool_call": "tool call",
}  # fmt: skip
_LEARNED = (
    ("midtrain", "think", "mid-training, thinking"),
    ("sft", "think", "SFT, thinking"),
    ("sft", "no_think", "SFT, not thinking"),
    ("merged", "think", "merged, thinking"),
    ("merged", "no_think", "merged, not thinking"),
)
# The effects of report/effects.py in words, by claim; {} is the effect's own name.
CLAIMS = {
    "stages": "fall of held-out bits per byte in {}",
    "shares": "{} falls further than web text in stage 3, points",
    "long_context": "retrieval beyond 256 tokens rises with the long-context phases, points",
    "apo": "retrieval falls after APO, points",
    "merge": "retrieval comes back with the merge, points",
    "thinking": "thinking beats not thinking on chains, points",
    "modes": "replies keep to the mode {}, %",
    "taught": "taught tasks right, final against base model, points",
}
_EFFECTS = {"stage1": "stage 1", "stage2": "stage 2", "stage3": "stage 3", "math": "mathematics"}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str] = ()) -> str:
    rule = {"right": "---:", "left": "---"}
    align = align or ["left"] * len(columns)
    lines = [columns, [rule[side] for side in align], *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _pretraining(results: Mapping[str, Any]) -> str:
    demo = results["demo"]
    lines = ["  stage      steps    tokens   loss at start   loss at end   tokens/s   minutes"]
    for stage in demo["stages"]:
        steps = f"{stage['first_step']}-{stage['last_step']}"
        lines.append(
            f"  {stage['stage']:<7} {steps:>8} {stage['tokens']:>9,} {stage['first_loss']:>15.3f} "
            f"{stage['last_loss']:>13.3f} {stage['tokens_per_second']:>10,.0f} {stage['minutes']:>9.1f}"
        )
    lines += ["", "Held-out bits per byte (lower is better)"]
    lines.append("  source                       bytes   model   unigram    gzip")
    for row in demo["held_out"]:
        lines.append(
            f"  {row['source']:<24} {row['bytes']:>9,} {row['model']:>7.3f} {row['unigram']:>9.3f} {row['gzip']:>7.3f}"
        )
    return _indented(lines)


def _bits_by_step(results: Mapping[str, Any]) -> str:
    rows = [
        (row["stage"].replace("stage", "stage "), str(row["step"]), f"{mean(row['bits_per_byte']):.3f}")
        for row in results["demo"]["validations"]
    ]
    ends = {stage: max(int(step) for name, step, _ in rows if name == stage) for stage, *_ in rows}
    named = [(name if int(step) == ends[name] else f"part of {name}", step, bits) for name, step, bits in rows]
    return markdown(("after", "steps", "bits per byte"), named)


def mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def effect_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(effect, values, mean with interval, verdict) of every effect of a seeds.json (report/seeds.py)."""
    rows = []
    for effect in document["effects"]:
        values = effect["values"]
        places = 2 if effect["unit"] == "bits per byte" else 1
        same = min(values) == max(values)  # under every seed: there is no interval, and decimals would say nothing

        def text(value: float, places: int = places, same: bool = same) -> str:
            return f"{value:g}" if same else f"{value:.{places}f}"

        interval = "" if same else f" [{text(effect['low'])}, {text(effect['high'])}]"
        claim = CLAIMS[effect["claim"]].format(_EFFECTS.get(effect["effect"], effect["effect"]))
        verdict = "shown" if effect["low"] > effect["null"] else "not shown"
        rows.append((claim, ", ".join(map(text, values)), f"{text(effect['mean'])}{interval}", verdict))
    return rows


def _seeds(results: Mapping[str, Any]) -> str:
    rows = effect_rows(results["demo_seeds"])
    return markdown(("effect", "mean", "verdict"), [(claim, *rest) for claim, _, *rest in rows])


def _seed_by_seed(results: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, results["demo_seeds"]["seeds"]))
    return markdown(("effect", f"seeds {seeds}", "mean", "verdict"), effect_rows(results["demo_seeds"]))


def _capabilities(results: Mapping[str, Any]) -> str:
    models = results["demo"]["capabilities"]
    wanted = [(name, task, "correct") for task, name in _TASKS.items()]
    wanted += [("follows the mode", "all", "followed_mode"), ("ends its turn", "all", "ended")]
    rows = [
        (name, *(_share(models[model][task][mode][what]) for model, mode, _ in _LEARNED)) for name, task, what in wanted
    ]
    return markdown(("task", *(column for _, _, column in _LEARNED)), rows)


def _share(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.1f} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def _chat(results: Mapping[str, Any]) -> str:
    lines = []
    for reply in results["demo"]["replies"]:
        lines += [f"> {reply['question']} /{reply['mode']}", *reply["text"].replace("\n\n", "\n").splitlines(), ""]
    return _indented(lines[:-1])


def _predictions(results: Mapping[str, Any]) -> str:
    rows = []
    for row in results["predictions"]["rows"]:
        rows.append(
            (row["machine"], row["what"], _duration(row["days"]), f"{row['device_hours']:,.0f}",
             f"{row['memory_bytes'] / 1e9:.0f} GB")
        )  # fmt: skip
    return markdown(
        ("machine", "what", "time", "GPU-hours", "memory per GPU"), rows, ("left", "left", "right", "right", "right")
    )


def _duration(days: float) -> str:
    if days < 1 / 24:
        return f"{days * 24 * 60:.0f} minutes"
    return f"{days * 24:.1f} hours" if days < 2 else f"{days:.1f} days"


def named_values(results: Mapping[str, Any]) -> dict[str, str]:
    """Figures that sentences and cells of tables quote, by name."""
    return {
        **_demo_values(results["demo"]), **_seed_values(results), **_ablation_values(results["ablations"]),
        **_predicted_values(results["predictions"]),
    }  # fmt: skip


def _demo_values(demo: Mapping[str, Any]) -> dict[str, str]:
    seconds, right = demo["seconds"], demo["capabilities"]["merged"]
    base = [name for name in seconds if name.startswith(("data", "pretrain", "long_context", "export"))]
    base_right = demo["capabilities"]["long_context_64k"]["all"]
    found = {
        "demo minutes": f"{sum(seconds.values()) / 60:.0f}",
        "demo pretraining minutes": f"{sum(seconds[name] for name in base) / 60:.0f}",
        "demo megabytes": f"{demo['bytes'] / 1e6:.0f}",
        "demo machine": f"{demo['machine']}, {demo['measured']}",
        "demo million tokens": f"{demo['data_tokens'] / 1e6:.2f}",
        "demo base right, of all": str(base_right["think"]["correct"]["successes"]),
    }
    for task in ("all", "chain"):
        for mode, words in (("think", "thinking"), ("no_think", "not thinking")):
            share = right[task][mode]["correct"]
            found[f"demo {task} right {words}"] = str(share["successes"])
            found[f"demo {task} prompts"] = str(share["trials"])
    ends = {row["stage"]: row["bits_per_byte"] for row in demo["validations"]}
    for source, words in (("math", "mathematics"), ("code-python", "code"), ("web-en", "web")):
        before, after = (ends[stage][f"tiny-{source}-heldout"] for stage in _STAGES[1:])
        found[f"demo fall of {words}"] = f"{100 * (1 - after / before):.1f}"
    return found


def _seed_values(results: Mapping[str, Any]) -> dict[str, str]:
    verdicts = [verdict for *_, verdict in effect_rows(results["demo_seeds"])]
    return {
        "effects shown": str(verdicts.count("shown")),
        "effects": str(len(verdicts)),
        "seeds machine": "{machine}, {measured}".format_map(results["demo_seeds"]),
    }


def _ablation_values(ablations: Mapping[str, Any]) -> dict[str, str]:
    """How many of the announcement's ablations leave open whether they make a difference."""
    intervals = [tuple(map(float, row[2].strip("[]").split(", "))) for row in ablations["rows"]]
    undecided = sum(low <= 0 <= high for low, high in intervals)
    return {"ablations undecided": str(undecided), "ablations": str(len(intervals))}


def _predicted_values(predictions: Mapping[str, Any]) -> dict[str, str]:
    run = predictions["rows"][-1]  # all of the real run, as it was published
    return {
        "predicted days of the 3B run": f"{run['days']:.1f}",
        "predicted memory of the 3B run": f"{run['memory_bytes'] / 1e9:.1f} GB",
    }


BLOCKS: dict[str, Block] = {
    "demo pretraining": _pretraining,
    "demo bits per byte": _bits_by_step,
    "demo capabilities": _capabilities,
    "demo chat": _chat,
    "seeds": _seeds,
    "seeds by seed": _seed_by_seed,
    "predictions": _predictions,
}
