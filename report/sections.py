"""From what was collected to the sections of the report."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report import Table as EvaluationTable
from eval.report import base_scores, build_table, percent, win_rates
from eval.results import SuiteResult, TaskResult
from report.blocks import Block, Chart, Missing, Sample, Section, Table, Text
from report.charts import Series, short_number
from report.collect import Report, Training

_MEAN_STEPS = 10  # losses in tables are means over so many steps: single steps are noisy
_CHART_POINTS = 400  # a curve of more steps is thinned out: the page stays small
_SAMPLE_CHARACTERS = 600


def build_sections(report: Report) -> list[Section]:
    """All sections, also of parts without results: those say what makes them."""
    return [
        Section("Summary", _summary(report)),
        Section("Time and cost", _time(report)),
        Section("Pretraining", _pretraining(report)),
        Section("Mixture", _mixture(report)),
        Section("Held-out text", _held_out(report)),
        Section("Retrieval at length", _retrieval(report)),
        Section("Post-training", _posttraining(report)),
        Section("Capabilities", _capabilities(report)),
        Section("Merge", _merge(report)),
        Section("Benchmarks", _benchmarks(report)),
        Section("Samples", _samples(report)),
        Section("Ablations", _ablations(report)),
        Section("Prediction and measurement", _plan(report)),
        Section("Provenance", _provenance(report)),
    ]


def _summary(report: Report) -> list[Block]:
    trained = sum(training.tokens for training in report.pretraining)
    rows = [["profile", report.profile], ["written", report.created], ["machine", report.machine]]
    if report.pretraining:
        config = report.pretraining[-1].recipe["model"]["model_config"]
        shape = f"{config['num_hidden_layers']} layers x {config['hidden_size']}"
        rows += [["model", f"{shape}, vocabulary {config['vocab_size']:,}"], ["pretraining", f"{trained:,} tokens"]]
    if report.seconds:
        rows.append(["whole chain", _duration(report.seconds)])
    if report.missing:
        rows.append(["not there yet", ", ".join(report.missing)])
    return [Table(["", ""], rows, text_columns=2)]


def _time(report: Report) -> list[Block]:
    if report.chain is None:
        return [Missing("The times of the stages", "make demo")]
    total = report.seconds or 1.0
    rows, heat = [], []
    for name, step in report.chain["steps"].items():
        share = step["seconds"] / total
        rows.append([name, step["state"], _duration(step["seconds"]), f"{100 * share:.0f} %"])
        heat.append([None, None, None, share])
    return [Table(["stage", "state", "time", "share"], rows, heat, text_columns=2)]


def _pretraining(report: Report) -> list[Block]:
    if not report.pretraining:
        return [Missing("Pretraining", "make pretrain")]
    header = ["stage", "steps", "tokens", "layout", "loss at start", "loss at end", "tokens/s", "time", "device hours"]
    rows = [_stage_row(training) for training in report.pretraining]
    boundaries = _boundaries(report)
    charts = (
        ("loss", "Training loss", "nats per token", False),
        ("lr", "Learning rate", "learning rate", True),
        ("grad_norm", "Gradient norm before clipping", "norm", True),
        ("tokens_per_second", "Throughput", "tokens/s", True),
    )
    blocks: list[Block] = [Table(header, rows)]
    for key, caption, label, from_zero in charts:
        # One curve over all stages: each goes on from the weights of the one before.
        points = [(tokens, row[key]) for tokens, row in _rows(report) if key in row]
        if points:
            series = _series(caption.lower(), points)
            blocks.append(
                Chart(f"pretraining-{key}", caption, [series], "tokens", label, boundaries, y_from_zero=from_zero)
            )
    return blocks


def _rows(report: Report) -> list[tuple[int, Mapping[str, Any]]]:
    """(tokens since the start of the chain, row) of all steps of pretraining."""
    return [(training.tokens_before + row["tokens"], row) for training in report.pretraining for row in training.rows]


def _boundaries(report: Report) -> list[tuple[float, str]]:
    return [(float(t.tokens_before + t.rows[0]["tokens"]), t.name) for t in report.pretraining]


def _stage_row(training: Training) -> list[str]:
    layout = training.recipe["parallelism"]
    names = {"dp": "dp", "tp": "tp", "pp": "pp", "context_parallel_size": "cp"}
    sizes = [f"{short} {layout[key]}" for key, short in names.items() if layout.get(key, 1) > 1]
    processes = math.prod(layout.get(key, 1) for key in names)
    losses = [row["loss"] for row in training.rows]
    seconds = sum(training.tokens / len(training.rows) / row["tokens_per_second"] for row in training.rows)
    first, last = training.rows[0]["step"], training.rows[-1]["step"]
    return [
        training.name, f"{first:,}-{last:,}", f"{training.tokens:,}", " x ".join(sizes) or "one process",
        f"{_mean(losses[:_MEAN_STEPS]):.3f}", f"{_mean(losses[-_MEAN_STEPS:]):.3f}",
        f"{training.tokens / seconds:,.0f}", _duration(seconds), short_number(seconds / 3600 * processes),
    ]  # fmt: skip


def _mixture(report: Report) -> list[Block]:
    if not report.mixtures:
        return [Missing("The mixtures", "make pretrain")]
    blocks: list[Block] = [Text("The shares that the recipe plans, and those of the tokens that the loader gave out.")]
    for stage, sources in report.mixtures.items():
        rows, heat = [], []
        for source in sorted(sources, key=lambda source: -source.planned):
            consumed = "" if source.consumed is None else f"{100 * source.consumed:.2f}"
            tokens = "" if source.tokens is None else f"{source.tokens:,}"
            epochs = "" if source.epochs is None else f"{source.epochs:.3g}"
            rows.append([source.name, f"{100 * source.planned:.2f}", consumed, tokens, epochs])
            heat.append([None, source.planned, source.consumed, None, None])
        blocks.append(Table([stage, "planned %", "consumed %", "tokens", "epochs so far"], rows, heat))
    return blocks


def _held_out(report: Report) -> list[Block]:
    rows = [
        (tokens, row["validation_bits_per_byte"]) for tokens, row in _rows(report) if "validation_bits_per_byte" in row
    ]
    if not rows:
        return [Missing("Held-out bits per byte", "make pretrain")]
    series = []
    for source in rows[-1][1]:
        points = [(tokens, bits[source]) for tokens, bits in rows if source in bits]
        series.append(_series(source, points, marks=True))
    boundaries = _boundaries(report)
    blocks: list[Block] = [
        Chart(
            "held-out", "Bits per byte of held-out text; lower is better", series, "tokens", "bits per byte", boundaries
        )
    ]
    if report.summary and report.summary["held_out"]:
        table = [
            [row["source"], f"{row['bytes']:,}", f"{row['model']:.3f}", f"{row['unigram']:.3f}", f"{row['gzip']:.3f}"]
            for row in report.summary["held_out"]
        ]
        blocks.append(Text("After the last stage, beside two baselines that know no grammar:"))
        blocks.append(Table(["source", "bytes", "model", "unigram", "gzip -9"], table))
    return blocks


def _retrieval(report: Report) -> list[Block]:
    """Scores of the generated long-context tasks: for each model a row per task and a column per length."""
    scores: dict[str, dict[tuple[str, int], TaskResult]] = {}
    for result in report.evaluations:
        for task in result.tasks:
            if task.benchmark.startswith("ruler"):
                place = task.benchmark.removeprefix("ruler_"), int(task.settings["context_tokens"] or 0)
                scores.setdefault(result.model.name, {})[place] = task
    if not scores:
        return [Missing("RULER's tasks", "make eval SUITE=long MODEL=...")]
    blocks: list[Block] = [
        Text(
            "Percent of the wanted strings that the model gives back, ± one standard error, by task and by the "
            "prompt's length in tokens."
        )
    ]
    for model in _in_chain_order(report, set(scores)):
        cells = scores[model]
        lengths = sorted({length for _, length in cells})
        rows, heat = [], []
        for name in dict.fromkeys(name for name, _ in cells):
            row = [cells.get((name, length)) for length in lengths]
            rows.append([name, *("" if cell is None else _score(cell) for cell in row)])
            heat.append([None, *(None if cell is None else percent(cell)[0] / 100 for cell in row)])
        blocks.append(Table([model, *(f"{length:,}" for length in lengths)], rows, heat))
    return blocks


def _posttraining(report: Report) -> list[Block]:
    if not report.posttraining:
        return [Missing("Post-training", "make posttrain")]
    rows = []
    blocks: list[Block] = []
    for training in report.posttraining:
        losses = [row["loss"] for row in training.rows]
        rows.append([
            training.name, f"{training.rows[-1]['step']:,}", f"{training.rows[-1]['tokens']:,}",
            f"{_mean(losses[:_MEAN_STEPS]):.3f}", f"{_mean(losses[-_MEAN_STEPS:]):.3f}",
        ])  # fmt: skip
        curve = _series("loss", [(row["step"], row["loss"]) for row in training.rows])
        blocks.append(Chart(f"{training.name}-loss", f"Loss of {training.name}", [curve], "steps", "loss"))
        margins = [(row["step"], row["rewards_margin"]) for row in training.rows if "rewards_margin" in row]
        if margins:
            margin = _series("margin", margins)
            blocks.append(
                Chart(f"{training.name}-margin", f"Rewards margin of {training.name}", [margin], "steps", "margin")
            )
    return [Table(["phase", "steps", "tokens", "loss at start", "loss at end"], rows), *blocks]


def _capabilities(report: Report) -> list[Block]:
    if report.capabilities is None:
        return [Missing("The taught tasks in both modes", "make capabilities")]
    blocks: list[Block] = [Text(
        "Held-out problems of the taught tasks in both modes: percent right with its 95 % interval (Wilson), over "
        f"{report.capabilities['seeds']} sampling seeds. Below, how often a reply keeps to the mode, and ends its turn."
    )]  # fmt: skip
    models = {name.rsplit("/", 1)[-1]: content["summary"] for name, content in report.capabilities["models"].items()}
    for measure, title in (("correct", "correct"), ("followed_mode", "follows the mode"), ("ended", "ends its turn")):
        tasks = list(next(iter(models.values()))) if measure == "correct" else ["all"]
        rows, heat = [], []
        for model, summary in models.items():
            for mode in ("think", "no_think"):
                shares = [summary[task][mode][measure] for task in tasks]
                rows.append([model, mode, *(_interval(share) for share in shares)])
                heat.append([None, None, *(share["value"] for share in shares)])
        blocks.append(Table([title, "mode", *tasks], rows, heat, text_columns=2))
    return blocks


def _interval(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.0f} [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def _merge(report: Report) -> list[Block]:
    if report.sweep is None:
        return [Missing("Scores over the share of the soup", "make merge-sweep")]
    rows = report.sweep["rows"]
    x = [row["soup_weight"] for row in rows]
    series = [Series("mean", x, [100 * row["mean"] for row in rows], marks=True)]
    for task in rows[0]["scores"]:
        scores = [row["scores"][task] for row in rows]
        series.append(
            Series(
                task, x, [100 * s["value"] for s in scores], [100 * (s["stderr"] or 0.0) for s in scores], marks=True
            )
        )
    best = report.sweep["best_soup_weight"]
    text = f"1 is the soup of the APO checkpoints alone, 0 the mid-training checkpoint. The best mean is at {best:g}."
    return [Text(text), Chart("merge", "Linear merge", series, "share of the soup", "score, percent")]


def _benchmarks(report: Report) -> list[Block]:
    if not report.evaluations:
        return [Missing("The benchmarks", "make eval")]
    table = build_table(report.evaluations)
    models = _in_chain_order(report, set(table.models))
    rows, heat = [], []
    for (suite, name), row in table.cells.items():
        first = next(iter(row.values()))
        if first.benchmark.startswith("ruler"):
            continue
        mark = {"small": " †", "generated": " ‡"}.get(first.dataset.edition, "")
        chance = "" if first.chance is None else f"{100 * first.chance:.0f}"
        rows.append([suite, name + mark, chance, *(_score(row[m]) if m in row else "" for m in models)])
        heat.append([None, None, None, *(percent(row[m])[0] / 100 if m in row else None for m in models)])
    blocks: list[Block] = [
        Text(
            "Percent ± one standard error. † our own small edition of the set, a few dozen items: not comparable with "
            "published numbers, and a difference within the error says nothing."
        ),
        Table(["suite", "task", "chance", *models], rows, heat, text_columns=2),
    ]
    return blocks + _win_rate_block(table, models)


def _win_rate_block(table: EvaluationTable, models: Sequence[str]) -> list[Block]:
    rates = win_rates(base_scores(table))
    if len(rates) < 2:
        return []
    return [Table(["win rate on the base tasks", "percent"], [[m, f"{rates[m]:.1f}"] for m in models if m in rates])]


def _score(task: TaskResult) -> str:
    value, error = percent(task)
    return f"{value:.0f}" + ("" if error is None else f" ± {error:.0f}")


def _in_chain_order(report: Report, models: set[str]) -> list[str]:
    order = [training.name for training in (*report.pretraining, *report.posttraining)] + ["soup", "merged"]
    return sorted(models, key=lambda model: (order.index(model) if model in order else len(order), model))


def _samples(report: Report) -> list[Block]:
    blocks: list[Block] = []
    if report.summary:
        blocks += [Sample("pretrained, greedy", "", _cut(text)) for text in report.summary["samples"]]
    if report.capabilities:
        name, content = list(report.capabilities["models"].items())[-1]
        shown = set()
        for reply in content["replies"]:
            if (reply["task"], reply["mode"]) not in shown:
                shown.add((reply["task"], reply["mode"]))
                verdict = "right" if reply["correct"] else "wrong"
                label = f"{name.rsplit('/', 1)[-1]}, {reply['mode']}, {reply['task']}: {verdict}"
                blocks.append(Sample(label, reply["question"], _cut(reply["text"])))
    return blocks or [Missing("Samples", "make summary")]


def _cut(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARACTERS else text[:_SAMPLE_CHARACTERS] + " ..."


def _ablations(report: Report) -> list[Block]:
    if report.ablations is None:
        return [Missing("The announcement's ablations", "make ablations")]
    effects = report.ablations["effects"]
    rows = []
    for effect in effects:
        interval = f"[{effect['low']:+.4f}, {effect['high']:+.4f}]"
        numbers = [f"{effect['base']:.4f}", f"{effect['difference']:+.4f}", interval]
        rows.append([effect["variant"], effect["measure"].replace("_", " "), *numbers])
    seeds = ", ".join(map(str, report.ablations["seeds"]))
    text = (
        f"Difference to the base with its 95 % interval (Student's t, paired; seeds {seeds}). Positive is worse. "
        "A short run of a small model says nothing about a long run of a large one."
    )
    table = Table(["variant", "measure", "base", "difference", "interval"], rows, text_columns=2)
    conclusions = [Text(f"{e['conclusion']}.") for e in effects if e["measure"] == "bits_per_byte"]
    return [Text(text), table, *conclusions]


def _plan(report: Report) -> list[Block]:
    """Speed as the planner saw it beside the median of the steps."""
    if not report.plans:
        return [Missing("The planner's predictions", "make plan")]
    runs = {training.name: training for training in report.pretraining}
    rows = []
    for name, plan in report.plans.items():
        predicted = plan["tokens_per_second_per_device"] * plan["devices"]
        cells = [name, plan["device"], f"{plan['memory']['total'] / 1e9:.2f} GB", f"{predicted:,.0f}"]
        if name in runs:
            measured = statistics.median(row["tokens_per_second"] for row in runs[name].rows)
            cells += [f"{measured:,.0f}", f"{100 * (predicted / measured - 1):+.0f} %"]
        rows.append([*cells, *([""] * (6 - len(cells)))])
    header = ["stage", "device", "memory per device", "tokens/s predicted", "measured (median)", "error"]
    return [Table(header, rows, text_columns=2)]


def _provenance(report: Report) -> list[Block]:
    rows = [[name, number] for name, number in report.versions.items()]
    if report.chain:
        rows += [[f"key of {name}", step["key"][:16]] for name, step in report.chain["steps"].items()]
    evaluated: dict[str, SuiteResult] = {result.model.name: result for result in report.evaluations}
    rows += [[f"weights of {name}", result.model.weights_sha256[:16]] for name, result in evaluated.items()]
    return [Text("Package versions, and the first 16 digits of SHA-256 hashes."), Table(["", ""], rows, text_columns=2)]


def _series(name: str, points: Sequence[tuple[Any, Any]], *, marks: bool = False) -> Series:
    """Thinned out to `_CHART_POINTS` by means of neighbours."""
    size = -(-len(points) // _CHART_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return Series(
        name, [group[-1][0] for group in groups], [_mean([y for _, y in group]) for group in groups], marks=marks
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{int(seconds // 60)} min {seconds % 60:02.0f} s"
    return f"{short_number(seconds / 3600)} h"
