"""Sections about training: the run as a whole, losses, mixtures, held-out text, ablations, predictions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.results import SuiteResult
from foundation.charts import COLOURS, Series, short_number
from report.blocks import Block, Chart, Details, Missing, Table, Text
from report.collect import Report, Source, Training

_MEAN_STEPS = 10  # losses in tables are means over so many steps: single steps are noisy
_CHART_POINTS = 400  # a curve of more steps is thinned out: the page stays small
_REPORT_STEP = "report"  # still running while it writes this page


def summary(report: Report) -> list[Block]:
    trained = sum(training.tokens for training in report.pretraining)
    rows = [["profile", report.profile], ["written", report.created], ["machine", report.machine]]
    if report.pretraining:
        config = report.pretraining[-1].recipe["model"]["model_config"]
        shape = f"{config['num_hidden_layers']} layers x {config['hidden_size']}"
        rows += [["model", f"{shape}, vocabulary {config['vocab_size']:,}"], ["pretraining", f"{trained:,} tokens"]]
    if report.seconds:
        rows.append(["whole chain", duration(report.seconds)])
    if report.missing:
        rows.append(["not there yet", ", ".join(report.missing)])
    return [Table(["", ""], rows, text_columns=2)]


def time_per_stage(report: Report) -> list[Block]:
    if report.chain is None:
        return [Missing("The times of the stages", report.commands["demo"])]
    total = report.seconds or 1.0
    rows, heat = [], []
    for name, step in report.chain["steps"].items():
        if name != _REPORT_STEP:
            share = step["seconds"] / total
            rows.append([name, step["state"], duration(step["seconds"]), f"{100 * share:.0f} %"])
            heat.append([None, None, None, share])
    return [Details("Time of every stage", [Table(["stage", "state", "time", "share"], rows, heat, text_columns=2)])]


def pretraining(report: Report) -> list[Block]:
    if not report.pretraining:
        return [Missing("Pretraining", report.commands["pretrain"])]
    header = ["stage", "steps", "tokens", "layout", "loss at start", "loss at end", "tokens/s", "time", "device hours"]
    rows = [_stage_row(training) for training in report.pretraining]
    loss = _step_chart(report, "loss", "Training loss", "nats per token", y_from_zero=False)
    others = [
        *_step_chart(report, "lr", "Learning rate", "learning rate"),
        *_step_chart(report, "grad_norm", "Gradient norm before clipping", "norm"),
        *_step_chart(report, "tokens_per_second", "Throughput", "tokens/s"),
    ]
    note = (
        f"Losses in the table are means over the first and the last {_MEAN_STEPS} steps of a stage. Where a step holds "
        "few windows, as in the long-context phases, its loss jumps with the kind of text in them."
    )
    return [
        *loss,
        Table(header, rows),
        Text(note),
        Details("Learning rate, gradient norm, throughput", others),
        *_starts_and_saves(report),
    ]


def _starts_and_saves(report: Report) -> list[Block]:
    """How long the attempts of each stage took to start and to save, and how long the run stood still between them."""
    rows = []
    for training in report.pretraining:
        for event, name in (("start", "starts"), ("save", "saves")):
            parts: list[dict[str, float]] = [row["seconds"] for row in training.timings if row["event"] == event]
            longest = max(parts, key=lambda seconds: sum(seconds.values()), default={})
            by_part = ", ".join(f"{part} {value:.1f} s" for part, value in longest.items())
            rows += _timings_row(training.name, name, by_part, [sum(seconds.values()) for seconds in parts])
        still = [row.get("seconds_since_last_step") for row in training.timings]
        rows += _timings_row(training.name, "restarts, from the last step to the next", "",
                             [seconds for seconds in still if seconds is not None])  # fmt: skip
    if not rows:
        return []
    header = ["stage", "what", "the longest, by part", "number", "median", "longest", "all"]
    return [Details("Starts, saves and restarts", [Table(header, rows, text_columns=3)])]


def _timings_row(stage: str, what: str, by_part: str, seconds: Sequence[float]) -> list[list[str]]:
    if not seconds:
        return []
    times = (statistics.median(seconds), max(seconds), sum(seconds))
    return [[stage, what, by_part, f"{len(seconds)}", *map(duration, times)]]


def _step_chart(report: Report, key: str, caption: str, label: str, *, y_from_zero: bool = True) -> list[Block]:
    # One curve over all stages: each goes on from the weights of the one before.
    points = [(tokens, row[key]) for tokens, row in _rows(report) if key in row]
    if not points:
        return []
    series = [series_of(caption.lower(), points)]
    return [Chart(f"pretraining-{key}", caption, series, "tokens", label, _boundaries(report), y_from_zero=y_from_zero)]


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
        f"{training.tokens / seconds:,.0f}", duration(seconds), short_number(seconds / 3600 * processes),
    ]  # fmt: skip


def mixture(report: Report) -> list[Block]:
    """Planned shares of all stages side by side; what each stage consumed, folded away."""
    if not report.mixtures:
        return [Missing("The mixtures", report.commands["pretrain"])]
    planned = {stage: {source.name: source.planned for source in sources} for stage, sources in report.mixtures.items()}
    names = sorted({name for shares in planned.values() for name in shares}, key=lambda n: -_most(planned, n))
    rows, heat = [], []
    for name in names:
        shares = [planned[stage].get(name) for stage in planned]
        rows.append([name, *("" if share is None else f"{100 * share:.2f}" for share in shares)])
        heat.append([None, *shares])
    blocks: list[Block] = [Table(["planned %", *planned], rows, heat)]
    off = [
        (abs(source.consumed - source.planned), source.name, stage)
        for stage, sources in report.mixtures.items()
        for source in sources
        if source.consumed is not None
    ]
    if off:
        most, name, stage = max(off)
        text = f"Counted shares differ from planned ones by {100 * most:.2f} points at most ({name} in {stage}): "
        blocks.append(
            Text(text + "the loader gives out whole windows, so a short stage cannot meet every share exactly.")
        )
    consumed = [_consumed_table(stage, sources) for stage, sources in report.mixtures.items()]
    return [*blocks, Details("Planned and consumed, with tokens and epochs, stage by stage", consumed)]


def _most(planned: Mapping[str, Mapping[str, float]], name: str) -> float:
    return max(shares.get(name, 0.0) for shares in planned.values())


def _consumed_table(stage: str, sources: Sequence[Source]) -> Table:
    rows, heat = [], []
    for source in sorted(sources, key=lambda source: -source.planned):
        consumed = "" if source.consumed is None else f"{100 * source.consumed:.2f}"
        tokens = "" if source.tokens is None else f"{source.tokens:,}"
        epochs = "" if source.epochs is None else f"{source.epochs:.3g}"
        rows.append([source.name, f"{100 * source.planned:.2f}", consumed, tokens, epochs])
        heat.append([None, source.planned, source.consumed, None, None])
    return Table([stage, "planned %", "consumed %", "tokens", "epochs so far"], rows, heat)


def held_out(report: Report) -> list[Block]:
    key = "validation_bits_per_byte"
    rows = [(tokens, row[key]) for tokens, row in _rows(report) if key in row]
    if not rows:
        return [Missing("Held-out bits per byte", report.commands["pretrain"])]
    series = []
    for source in rows[-1][1]:
        points = [(tokens, bits[source]) for tokens, bits in rows if source in bits]
        series.append(series_of(source.removesuffix("-heldout"), points, marks=True))
    caption = "Bits per byte of held-out text; lower is better"
    blocks: list[Block] = [Chart("held-out", caption, series, "tokens", "bits per byte", _boundaries(report))]
    if report.summary and report.summary["held_out"]:
        table = [
            [row["source"], f"{row['bytes']:,}", f"{row['model']:.3f}", f"{row['unigram']:.3f}", f"{row['gzip']:.3f}"]
            for row in report.summary["held_out"]
        ]
        blocks.append(Text(
            "After the last stage, beside two baselines: a table of how often each token occurs (unigram), and gzip, "
            "which sees repetition but no language."
        ))  # fmt: skip
        blocks.append(Table(["source", "bytes", "model", "unigram", "gzip -9"], table))
    return blocks


def checkpoint_scores(report: Report) -> list[Block]:
    """evaluations.jsonl of all stages: the mean of each suite, and every task folded away."""
    suites = _checkpoint_curves(report)
    if not suites:
        what = "Scores of checkpoints, which the jobs of a cluster evaluate while training goes on"
        return [Missing(what, report.commands["cluster-run"])]
    boundaries = _boundaries(report)
    means = [series_of(suite, _mean_curve(list(tasks.values())), marks=True) for suite, tasks in suites.items()]
    single: list[Block] = []
    for suite, tasks in suites.items():
        series = [series_of(task, points, marks=True) for task, points in tasks.items()]
        for number, start in enumerate(range(0, len(series), len(COLOURS)), 1):
            part = series[start : start + len(COLOURS)]
            name, caption = f"checkpoints-{suite}-{number}", f"Tasks of the suite {suite}"
            single.append(Chart(name, caption, part, "tokens", "score, percent", boundaries))
    chart = Chart("checkpoints", "Mean score of each suite", means, "tokens", "mean score, percent", boundaries)
    return [chart, Details("Every task", single)]


_Curve = list[tuple[float, float]]


def _checkpoint_curves(report: Report) -> dict[str, dict[str, _Curve]]:
    """suite -> task -> (tokens since the start of the chain, score in percent)."""
    curves: dict[str, dict[str, _Curve]] = {}
    for training in report.pretraining:
        tokens_at = {row["step"]: training.tokens_before + row["tokens"] for row in training.rows}
        for row in training.evaluations:
            for key, value in row.items():
                if key.startswith("evaluation/") and row["step"] in tokens_at:
                    _, suite, task = key.split("/", 2)
                    point = (float(tokens_at[row["step"]]), float(value))
                    curves.setdefault(suite, {}).setdefault(task, []).append(point)
    return {suite: {task: _percent(curve) for task, curve in tasks.items()} for suite, tasks in curves.items()}


def _percent(curve: _Curve) -> _Curve:
    """Shares lie in [0, 1]; chrF++ in [0, 100] already."""
    factor = 1.0 if max(value for _, value in curve) > 1 else 100.0
    return [(tokens, factor * value) for tokens, value in curve]


def _mean_curve(curves: Sequence[_Curve]) -> _Curve:
    """Mean over the tasks that were evaluated at each place."""
    values: dict[float, list[float]] = {}
    for tokens, value in (point for curve in curves for point in curve):
        values.setdefault(tokens, []).append(value)
    return [(tokens, _mean(found)) for tokens, found in sorted(values.items())]


def posttraining(report: Report) -> list[Block]:
    if not report.posttraining:
        return [Missing("Post-training", report.commands["posttrain"])]
    rows = []
    blocks: list[Block] = []
    for training in report.posttraining:
        losses = [row["loss"] for row in training.rows]
        mean_steps = min(_MEAN_STEPS, max(1, len(losses) // 4))
        rows.append([
            training.name, f"{training.rows[-1]['step']:,}", f"{training.rows[-1]['tokens']:,}",
            f"{_mean(losses[:mean_steps]):.3f}", f"{_mean(losses[-mean_steps:]):.3f}",
        ])  # fmt: skip
        for key, caption, label in (
            ("loss", "Loss of {}", "loss"),
            ("rewards/margins", "Margin of {}: how much more the chosen answer is preferred to the rejected", "margin"),
        ):
            points = [(row["step"], row[key]) for row in training.rows if key in row]
            if points:
                name = f"{training.name}-{label}"
                series = [series_of(label, points)]
                blocks.append(Chart(name, caption.format(training.name), series, "steps", label))
    return [Table(["phase", "steps", "tokens", "loss at start", "loss at end"], rows), *blocks]


def ablations(report: Report) -> list[Block]:
    if report.ablations is None:
        return [Missing("The announcement's ablations", report.commands["ablations"])]
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


def plan(report: Report) -> list[Block]:
    """Speed as the planner saw it beside the median of the steps."""
    if not report.plans:
        return [Missing("The planner's predictions", report.commands["plan"])]
    runs = {training.name: training for training in report.pretraining}
    rows = []
    for name, predicted in report.plans.items():
        speed = predicted["tokens_per_second_per_device"] * predicted["devices"]
        cells = [name, predicted["device"], f"{predicted['memory']['total'] / 1e9:.2f} GB", f"{speed:,.0f}"]
        if name in runs:
            measured = statistics.median(row["tokens_per_second"] for row in runs[name].rows)
            cells += [f"{measured:,.0f}", f"{100 * (speed / measured - 1):+.0f} %"]
        rows.append([*cells, *([""] * (6 - len(cells)))])
    header = ["stage", "device", "memory per device", "tokens/s predicted", "measured (median)", "error"]
    return [Table(header, rows, text_columns=2)]


def provenance(report: Report) -> list[Block]:
    rows = [[name, number] for name, number in report.versions.items()]
    if report.chain:
        rows += [[f"key of {name}", step["key"][:16]] for name, step in report.chain["steps"].items()]
    evaluated: dict[str, SuiteResult] = {result.model.name: result for result in report.evaluations}
    rows += [[f"weights of {name}", result.model.weights_sha256[:16]] for name, result in evaluated.items()]
    return [Details("Versions and hashes", [Table(["", ""], rows, text_columns=2)])]


def series_of(name: str, points: Sequence[tuple[Any, Any]], *, marks: bool = False) -> Series:
    """Thinned out to `_CHART_POINTS` by means of neighbours."""
    size = -(-len(points) // _CHART_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return Series(
        name, [group[-1][0] for group in groups], [_mean([y for _, y in group]) for group in groups], marks=marks
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{short_number(seconds / 3600)} h"
