"""Writes the measured figures of README and docs from the files in results/: `make figures`.

A page holds generated tables between `<!-- figures: NAME -->` and `<!-- end -->`, and generated numbers in a sentence
between `<!-- = NAME -->` and `<!-- end -->`. NAME is one of BLOCKS or of `values` below, or `table FILE` for a result
file that is a table already. `make record RUN=runs/tiny` takes a finished run of the demo over into results/.
"""

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

RESULTS = Path("results")
_REGION = re.compile(r"<!-- (?P<kind>figures:|=) (?P<name>[^>]*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)

Block = Callable[[Mapping[str, Any]], str]


def pages(root: Path = Path()) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def read_results(folder: Path = RESULTS) -> dict[str, Any]:
    """The result files by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def render(page: str, results: Mapping[str, Any]) -> str:
    """The page with every figure as the results have it.

    Raises:
        KeyError: for a name that no function has, or a result file that is not there.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"].strip()
        if match["kind"] == "=":
            return f"<!-- = {name} -->{values(results)[name]}<!-- end -->"
        text = _table(results[name.removeprefix("table ")]) if name.startswith("table ") else BLOCKS[name](results)
        return f"<!-- figures: {name} -->\n{text.rstrip()}\n<!-- end -->"

    return _REGION.sub(replace, page)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str] = ()) -> str:
    rule = {"right": "---:", "left": "---"}
    align = align or ["left"] * len(columns)
    lines = [columns, [rule[side] for side in align], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")


def _table(result: Mapping[str, Any]) -> str:
    """A result file that holds a table: columns, rows of text, and how columns are aligned."""
    return _markdown(result["columns"], result["rows"], result.get("align", ()))


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
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _bits_by_step(results: Mapping[str, Any]) -> str:
    names = {100: "half of stage 1", 200: "stage 1", 300: "stage 2", 400: "stage 3"}
    points = [(step, bits) for step, bits in results["demo"]["bits_per_byte_by_step"] if step in names]
    return _markdown(
        ("after", "steps", "bits per byte"), [(names[step], str(step), f"{bits:.3f}") for step, bits in points]
    )


def _effects(results: Mapping[str, Any], *, by_seed: bool) -> str:
    document = results["demo_seeds"]
    seeds = ", ".join(map(str, document["seeds"]))
    rows = []
    for effect in document["effects"]:
        places = effect["decimals"]
        values = ", ".join(f"{value:.{places}f}" for value in effect["values"])
        low, high = effect["low"], effect["high"]
        mean = f"{effect['mean']:.{places}f}"
        if low != high:
            mean += f" [{low:.{places}f}, {high:.{places}f}]"
        verdict = "shown" if low > effect["null"] else "not shown"
        rows.append((effect["effect"], *((values,) if by_seed else ()), mean, verdict))
    return _markdown(("effect", *((f"seeds {seeds}",) if by_seed else ()), "mean", "verdict"), rows)


def _share(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.1f} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


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


def _capabilities(results: Mapping[str, Any]) -> str:
    models = results["demo"]["capabilities"]
    wanted = [(name, task, "correct") for task, name in _TASKS.items()]
    wanted += [("follows the mode", "all", "followed_mode"), ("ends its turn", "all", "ended")]
    rows = [
        (name, *(_share(models[model][task][mode][what]) for model, mode, _ in _LEARNED)) for name, task, what in wanted
    ]
    return _markdown(("task", *(column for _, _, column in _LEARNED)), rows)


def values(results: Mapping[str, Any]) -> dict[str, str]:
    """Numbers that sentences quote, by name."""
    demo = results["demo"]
    seconds, right = demo["seconds"], demo["capabilities"]["merged"]
    base = [name for name in seconds if name.startswith(("data", "pretrain", "long_context", "export"))]
    found = {
        "demo minutes": f"{sum(seconds.values()) / 60:.0f}",
        "demo pretraining minutes": f"{sum(seconds[name] for name in base) / 60:.0f}",
        "demo megabytes": f"{demo['bytes'] / 1e6:.0f}",
        "machine": f"{demo['machine']}, {demo['measured']}",
    }
    for task in ("all", "chain"):
        for mode, words in (("think", "thinking"), ("no_think", "not thinking")):
            share = right[task][mode]["correct"]
            found[f"demo {task} right {words}"] = str(share["successes"])
            found[f"demo {task} prompts"] = str(share["trials"])
    return found


BLOCKS: dict[str, Block] = {
    "demo pretraining": _pretraining,
    "demo bits per byte": _bits_by_step,
    "demo capabilities": _capabilities,
    "seeds": lambda results: _effects(results, by_seed=False),
    "seeds by seed": lambda results: _effects(results, by_seed=True),
}


def record(run: Path, machine: str, measured: str) -> dict[str, Any]:
    """What the pages quote of a finished run of the demo."""

    def read(name: str) -> Any:
        return json.loads((run / name).read_text(encoding="utf-8"))

    summary, tasks = read("eval/pretraining.json"), read("eval/capabilities.json")["models"]
    rows = [json.loads(line) for stage in summary["stages"] for line in (run / stage["stage"] / "metrics.jsonl").open()]
    held_out = [(row["step"], row["validation_bits_per_byte"]) for row in rows if "validation_bits_per_byte" in row]
    return {
        "format": "demo-figures/1",
        "machine": machine,
        "measured": measured,
        "seconds": {name: round(step["seconds"], 1) for name, step in read("chain.json")["steps"].items()},
        "bytes": sum(file.stat().st_size for file in run.rglob("*") if file.is_file() and not file.is_symlink()),
        "stages": summary["stages"],
        "held_out": summary["held_out"],
        "bits_per_byte_by_step": [(step, statistics.fmean(bits.values())) for step, bits in held_out],
        "capabilities": {Path(folder).name: model["summary"] for folder, model in tasks.items()},
    }


@click.command()
@click.option("--record", "run", type=click.Path(path_type=Path), help="First take this finished run of the demo over.")
@click.option("--machine", help="On which it ran; with --record.")
def main(run: Path | None, machine: str | None) -> None:
    """Write the measured figures of README and docs from the files in results/."""
    if run is not None:
        document = record(run, machine or platform.processor(), time.strftime("%Y-%m"))
        (RESULTS / "demo.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    results = read_results()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := render(text, results)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page}")


if __name__ == "__main__":
    main()
