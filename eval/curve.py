"""Suites over all checkpoints of pretraining runs, plotted against tokens, and held against another run's curve.

Each checkpoint is exported, evaluated and removed again; what is evaluated already is not repeated, so the same
command follows a run that is still going. curve.json, curve.svg and curve.md lie in <recipe's output>_curve.
"""

import hashlib
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from eval.errors import EvalError
from eval.evaluate import evaluate
from eval.fingerprint import suites_sha256
from eval.recipe import EvalRecipe
from eval.results import Curve, CurvePoint, Score, write_json
from eval.tables import percent
from foundation.charts import Series, line_chart
from foundation.journal import METRICS_FILE, last_row
from foundation.plain_text import markdown
from foundation.secrets import for_jobs


def follow(recipe: EvalRecipe, runs: Sequence[Path], suites: Sequence[str]) -> Curve:
    """Evaluate every checkpoint of `runs` that has no point yet, and write the curve; returns that of `runs`.

    The file keeps the points of other runs that were made with the same settings. Points of other settings cannot stand
    in one curve with these: their file stays beside it, under a name of its own.

    Raises:
        EvalError: if a run has no checkpoint, or one cannot be exported or evaluated.
    """
    suites, folder = list(suites), Path(f"{recipe.output}_curve")
    file = folder / "curve.json"
    settings = suites_sha256(recipe, suites)
    known = _known_points(file, settings, suites)
    points = {point.checkpoint_sha256: point for point in known}
    asked = {run.resolve() for run in runs}
    others = [point for point in known if Path(point.run).resolve() not in asked]
    checkpoints = [checkpoint for run in runs for checkpoint in _checkpoints(run)]
    found = []
    for number, checkpoint in enumerate(checkpoints, 1):
        digest = hashlib.sha256((checkpoint / "checkpoint.json").read_bytes()).hexdigest()
        print(f"[{number}/{len(checkpoints)}] {checkpoint}{' (there already)' if digest in points else ''}", flush=True)
        found.append(points.get(digest) or _evaluate_checkpoint(recipe, checkpoint, digest, suites, folder))
        curve = Curve(suites=suites, settings_sha256=settings, points=_by_tokens([*others, *found]))
        write_json(curve, file)
    _draw(curve, folder)
    print(f"written: {file}, curve.svg and curve.md", flush=True)
    return curve.model_copy(update={"points": _by_tokens(found)})


def _known_points(file: Path, settings: str, suites: list[str]) -> list[CurvePoint]:
    """Of an earlier curve with these settings; one of others is given another name."""
    if not file.is_file():
        return []
    known = read_curve(file)
    if known.settings_sha256 == settings and known.suites == suites:
        return known.points
    aside = file.with_name(f"curve-{known.settings_sha256[:8]}.json")
    file.replace(aside)
    print(f"The curve so far is of other suites, data or code; its points stay in {aside}.", flush=True)
    return []


def _by_tokens(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    return sorted(points, key=lambda point: point.tokens)


def _checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders of a run, by step: those whose checkpoint.json, written last, is there."""
    folders = [file.parent for file in run.glob("checkpoints/*/checkpoint.json") if file.parent.name.isdigit()]
    if not folders:
        raise EvalError(f"There is no complete checkpoint in {run}/checkpoints. Give the folder of a pretraining run.")
    return sorted(folders, key=lambda folder: int(folder.name))


def _evaluate_checkpoint(
    recipe: EvalRecipe, checkpoint: Path, digest: str, suites: list[str], folder: Path
) -> CurvePoint:
    run, step = checkpoint.parents[1], int(checkpoint.name)
    name = f"{run.name}-{step}"
    model = folder / "models" / name
    # Its own process: nothing here may import nanotron, which breaks lighteval.
    export = [sys.executable, "-m", "smollm3", "export", str(checkpoint), str(model), "--replace"]
    if subprocess.run(export, check=False, stdout=subprocess.DEVNULL, env=for_jobs()).returncode != 0:
        raise EvalError(f"{checkpoint} could not be exported (command: {' '.join(export)}).")
    here = recipe.model_copy(update={"output": str(folder / "results")})
    results = evaluate(here, model, name, suites)
    shutil.rmtree(model)
    scores = {}
    for result in results:
        for task in result.tasks:
            value, stderr = percent(task)
            edition = task.dataset.edition
            scores[f"{result.suite}/{task.task}"] = Score(value=value, stderr=stderr or 0.0, edition=edition)
    return CurvePoint(run=str(run), step=step, tokens=_tokens(run, step), checkpoint_sha256=digest, scores=scores)


def _tokens(run: Path, step: int) -> int:
    """Tokens trained up to `step`, from the run's own log."""
    file = run / METRICS_FILE
    row = last_row(file, up_to_step=step)
    if row is None or row["step"] != step:
        raise EvalError(f"{file} has no line of step {step}.")
    return int(row["tokens"])


def read_curve(file: Path) -> Curve:
    """Raises EvalError when `file` holds no curve."""
    try:
        return Curve.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise EvalError(f"{file} is not a curve of smollm3 eval-curve: {error}") from None


def below_band(curve: Curve, reference: Curve, tolerance: float) -> list[str]:
    """Sentences about every score that lies more than `tolerance` combined standard errors below the reference.

    The reference is interpolated between its points; outside of their range of tokens nothing is compared.
    """
    found = []
    for point in curve.points:
        for task, score in point.scores.items():
            wanted = _interpolated(reference, task, point.tokens)
            if wanted is None:
                continue
            margin = tolerance * math.hypot(score.stderr, wanted.stderr)
            if score.value < wanted.value - margin:
                found.append(
                    f"{point.run} at step {point.step} ({point.tokens:,} tokens): {task} is {score.value:.2f}, "
                    f"more than {margin:.2f} below the reference ({wanted.value:.2f})."
                )
    return found


def _interpolated(reference: Curve, task: str, tokens: int) -> Score | None:
    points = [(point.tokens, point.scores[task]) for point in reference.points if task in point.scores]
    for (left, low), (right, high) in zip(points, points[1:] or points, strict=False):
        if left <= tokens <= right:
            share = (tokens - left) / (right - left) if right > left else 0.0
            return Score(
                value=low.value + share * (high.value - low.value),
                stderr=max(low.stderr, high.stderr),
                edition=low.edition,
            )
    return None


def _draw(curve: Curve, folder: Path) -> None:
    tasks = list(dict.fromkeys(task for point in curve.points for task in point.scores))
    means = [statistics.fmean(score.value for score in point.scores.values()) for point in curve.points]
    lines = [Series("mean", [point.tokens / 1e6 for point in curve.points], means, marks=True)]
    for task in tasks:
        points = [(point.tokens / 1e6, point.scores[task]) for point in curve.points if task in point.scores]
        values, errors = [score.value for _, score in points], [score.stderr for _, score in points]
        lines.append(Series(task, [tokens for tokens, _ in points], values, errors, marks=True))
    small = any(score.edition == "small" for point in curve.points for score in point.scores.values())
    title = "Scores over training" + (" (our small editions of the sets)" if small else "")
    chart = line_chart(lines, "million tokens", "percent", on_white=True)
    (folder / "curve.svg").write_text(chart, encoding="utf-8")
    header = ["run", "step", "tokens", *tasks]
    rows = [
        [Path(point.run).name, str(point.step), f"{point.tokens:,}"]
        + [f"{score.value:.2f} ± {score.stderr:.2f}" if (score := point.scores.get(task)) else "" for task in tasks]
        for point in curve.points
    ]
    text = "\n".join(f"| {' | '.join(map(markdown, row))} |" for row in [header, ["---"] * len(header), *rows])
    (folder / "curve.md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")
