"""From a recipe's mixture to tokenized training data, with an account of every sample.

Rows are rendered, tokenized and masked here, so that what is reported is what TRL trains on; TRL packs and batches.
What a row may be is in `posttrain/rows.py`, what its replies have to be in `posttrain/modes.py`.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from foundation.errors import UserError
from foundation.limits import TooLargeError, bounded_lines
from posttrain.recipe import Data, DataSet, PostTrainingRecipe
from posttrain.tokenization import ACCOUNT, LINE, ROW, RowTokenizer

_EXAMPLES = 3  # rows that are named for each reason
_PACKING_BATCH = 20_000  # samples that best-fit-decreasing sees at once; TRL's default of 1,000 packs less tightly


class DatasetError(UserError):
    """Training data that cannot be used; the message names the set, the counts and the fix."""


@dataclass(frozen=True)
class SetReport:
    """What became of one set in one mode. `samples` are those that the weight selected; cut samples are kept too.

    `reasons` of losses and `notes` on samples that are kept are counted; `examples` has the first rows of each, by
    their numbers in `source`, from 1.
    """

    name: str
    source: str
    mode: str
    samples: int
    kept: int
    cut: int
    dropped: int
    duplicates: int
    tokens: int
    trained_tokens: int
    reasons: dict[str, int]
    notes: dict[str, int]
    examples: dict[str, list[int]]


@dataclass(frozen=True)
class TrainingData:
    """`dataset` in the columns that the phase's trainer takes; `fill_rate` of packed sequences (None when padded).

    `fingerprints` are of each set's tokens, in the order of the recipe's sets.
    """

    dataset: Dataset
    reports: list[SetReport]
    fingerprints: list[str]
    fill_rate: float | None


def prepare_data(recipe: PostTrainingRecipe, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Load, subsample, render, tokenize, check, shuffle and pack the mixture of a recipe.

    Raises:
        DatasetError: a set is missing, has the wrong columns, yields nothing, or loses more than max_lost_fraction.
    """
    data = recipe.data
    pairs = recipe.phase == "apo"
    seen: set[int] = set()
    parts, reports, fingerprints = [], [], []
    for spec in data.datasets:
        rows = select_fraction(_load_rows(spec), spec, data.seed)
        tokenize = RowTokenizer(tokenizer, spec, data, pairs)
        part = rows.map(
            tokenize,
            remove_columns=rows.column_names,
            features=tokenize.features,
            num_proc=data.num_proc if data.num_proc > 1 else None,
            desc=f"Tokenizing {spec.label}",
        )
        set_reports = _account(spec, part, seen)
        _refuse_losses(spec, set_reports, data)
        reports += set_reports
        parts.append(part.select(np.flatnonzero(np.array(part["status"]) != "dropped")))
        fingerprints.append(_fingerprint(parts[-1]))
    dataset = concatenate_datasets(parts).remove_columns(list(ACCOUNT)).shuffle(seed=data.seed)
    if data.packing_strategy is None:
        return TrainingData(dataset, reports, fingerprints, None)
    packed = pack_dataset(dataset, data.max_length, data.packing_strategy, {"batch_size": _PACKING_BATCH})
    tokens = sum(report.tokens for report in reports)
    return TrainingData(packed, reports, fingerprints, tokens / (len(packed) * data.max_length))


def _load_rows(spec: DataSet) -> Dataset:
    """All rows of a set, numbered in the column ROW."""
    file = spec.local_file()
    try:
        if file is None:
            rows = _load_hub(spec)
        elif file.suffix == ".parquet":
            rows = Dataset.from_parquet(str(file))
        else:
            return _load_lines(file)
    except (DatasetGenerationError, UnicodeDecodeError) as error:
        raise DatasetError(f"{spec.path} cannot be read: {error.__cause__ or error}") from None
    except ValueError as error:
        if "corresponds to no data" not in str(error):  # how datasets says that a file holds no row
            raise
        raise DatasetError(f"{file} holds no row. Write the set again, or remove it from data.datasets.") from None
    return rows.add_column(ROW, np.arange(1, len(rows) + 1))


def _load_lines(file: Path) -> Dataset:
    """Rows as lines, blank ones left out: columns would fill the keys of one row with the nulls of another, order them
    anew, and refuse a file for one row of another type.

    Raises:
        DatasetError: for a line that is larger than one may be.
    """
    try:
        with file.open("rb") as stream:
            deque(bounded_lines(stream), maxlen=0)
    except TooLargeError as error:
        raise DatasetError(f"{file}: {error}") from None
    lines = Dataset.from_text(str(file), features=Features({LINE: Value("large_string")}))
    lines = lines.add_column(ROW, np.arange(1, len(lines) + 1))
    lengths = pc.utf8_length(pc.utf8_trim_whitespace(lines.data.column(LINE))).to_numpy()
    return lines if lengths.all() else lines.select(np.flatnonzero(lengths))


def _load_hub(spec: DataSet) -> Dataset:
    try:
        return load_dataset(spec.path, spec.name, split=spec.split, revision=spec.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(
            f"The hub dataset {spec.path} ({spec.name}, {spec.split}) cannot be loaded: {reason}"
        ) from None


def select_fraction(rows: Dataset, spec: DataSet, seed: int) -> Dataset:
    """`int(len(rows) * weight)` random rows; the seed and the set's size decide which."""
    count = int(len(rows) * spec.weight)
    if count == 0:
        raise DatasetError(
            f"{spec.path} ({spec.split}) gives no sample: weight {spec.weight} of {len(rows)} rows. "
            "Raise the weight or remove the set."
        )
    return rows.shuffle(seed=seed).select(range(count))


def _fingerprint(kept: Dataset) -> str:
    """Of all samples that a set gives, in their order: their tokens, and how many of them carry loss."""
    columns = kept.with_format("numpy", columns=["digest", "tokens", "trained_tokens"])[:]
    return hashlib.sha256(b"".join(column.tobytes() for column in columns.values())).hexdigest()


def _account(spec: DataSet, part: Dataset, seen: set[int]) -> list[SetReport]:
    """One report per mode that occurs; dropped samples have the mode "" and are counted with the first."""
    columns = part.with_format("numpy", columns=list(ACCOUNT))[:]
    duplicate = np.zeros(len(part), bool)
    for position, (status, digest) in enumerate(zip(columns["status"], columns["digest"].tolist(), strict=True)):
        duplicate[position] = status != "dropped" and digest in seen
        seen.add(digest)
    reports = []
    modes = sorted(set(columns["mode"]) - {""}) or [""]
    for mode in modes:
        chosen = (columns["mode"] == mode) | ((columns["mode"] == "") & (mode == modes[0]))
        status = Counter(columns["status"][chosen].tolist())
        rows = columns["row"][chosen].tolist()
        reasons = _rows_by_text(columns["reason"][chosen].tolist(), rows)
        notes = _rows_by_text(columns["notes"][chosen].tolist(), rows)
        reports.append(
            SetReport(
                name=spec.label,
                source=spec.source,
                mode=mode or "-",
                samples=int(chosen.sum()),
                kept=status["kept"] + status["cut"],
                cut=status["cut"],
                dropped=status["dropped"],
                duplicates=int(duplicate[chosen].sum()),
                tokens=int(columns["tokens"][chosen].sum()),
                trained_tokens=int(columns["trained_tokens"][chosen].sum()),
                reasons={text: len(found) for text, found in reasons.items()},
                notes={text: len(found) for text, found in notes.items()},
                examples={text: sorted(found)[:_EXAMPLES] for text, found in (reasons | notes).items()},
            )
        )
    return reports


def _rows_by_text(texts: Sequence[str], rows: Sequence[int]) -> dict[str, list[int]]:
    """The rows of each line that occurs, the most frequent one first."""
    found: dict[str, list[int]] = {}
    for text, row in zip(texts, rows, strict=True):
        for line in text.splitlines():
            found.setdefault(line, []).append(row)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _refuse_losses(spec: DataSet, reports: Sequence[SetReport], data: Data) -> None:
    samples = sum(report.samples for report in reports)
    lost = sum(report.dropped + report.cut for report in reports)
    kept = sum(report.kept for report in reports)
    if kept and lost <= data.max_lost_fraction * samples:
        return
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reasons)
    counts = "; ".join(f"{count} x {with_rows(text, reports)}" for text, count in reasons.most_common(5))
    raise DatasetError(
        f"{spec.label} ({spec.source}) loses {lost} of {samples} samples: {counts}. data.max_lost_fraction allows "
        f"{data.max_lost_fraction:g}, data.max_length is {data.max_length}. Repair the set, or change these keys."
    )


def with_rows(text: str, reports: Sequence[SetReport]) -> str:
    """A reason or note of one set, with the first rows that it is about."""
    rows = sorted({row for report in reports for row in report.examples.get(text, [])})[:_EXAMPLES]
    return f"{text} ({'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows))})"
