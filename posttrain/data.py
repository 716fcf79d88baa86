"""From a recipe's mixture to tokenized training data, with an account of every sample.

Rows are rendered, tokenized and masked here, so that what is reported is what TRL trains on; TRL packs and batches.
Schemas (those of smoltalk2): supervised rows have `messages`, preference rows `chosen` and `rejected` (whole
conversations, or completions of a `prompt` that is a list of messages); both may have `chat_template_kwargs` and
`tools`. Other columns are ignored.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from nanotron_ext.errors import UserError
from posttrain.recipe import Data, DataSet, PostTrainingRecipe
from posttrain.template import EMPTY_THINK_BLOCK, TURN_END, TURN_START, Message, Rendering, render

IGNORED = -100  # label of a token without loss
ROLES = ("system", "user", "assistant", "tool")
FLAGS = ("/think", "/no_think", "/system_override")
_PACKING_BATCH = 20_000  # samples that best-fit-decreasing sees at once; TRL's default of 1,000 packs less tightly

_ACCOUNT = {
    **{name: Value("string") for name in ("status", "reason", "mode")},
    **{name: Value("int64") for name in ("tokens", "trained_tokens", "digest")},
}
_IDS = List(Value("int32"))
_SUPERVISED_FEATURES = Features({"input_ids": _IDS, "labels": _IDS, **_ACCOUNT})
_PAIR_FEATURES = Features({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS, **_ACCOUNT})


class DataError(UserError):
    """Training data that cannot be used; the message names the set, the counts and the fix."""


class _Unusable(Exception):
    """A row that is dropped; the text is the reason under which it is counted."""


@dataclass(frozen=True)
class SetReport:
    """What became of one set in one mode. `samples` are those that the weight selected; cut samples are kept too."""

    name: str
    mode: str
    samples: int
    kept: int
    cut: int
    dropped: int
    duplicates: int
    tokens: int
    trained_tokens: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class TrainingData:
    """`dataset` in the columns that the phase's trainer takes; `fill_rate` of packed sequences (None when padded)."""

    dataset: Dataset
    reports: list[SetReport]
    fill_rate: float | None


def prepare_data(recipe: PostTrainingRecipe, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    """Load, subsample, render, tokenize, check, shuffle and pack the mixture of a recipe.

    Raises:
        DataError: a set is missing, has the wrong columns, yields nothing, or loses more than max_lost_fraction.
    """
    data = recipe.data
    pairs = recipe.phase == "apo"
    tokenize = _tokenize_pair if pairs else _tokenize_conversation
    seen: set[int] = set()
    parts, reports = [], []
    for spec in data.datasets:
        rows = select_fraction(_load_rows(spec, ("chosen", "rejected") if pairs else ("messages",)), spec, data.seed)
        part = rows.map(
            partial(_tokenize_row, tokenize),
            fn_kwargs={"tokenizer": tokenizer, "spec": spec, "data": data},
            remove_columns=rows.column_names,
            features=_PAIR_FEATURES if pairs else _SUPERVISED_FEATURES,
            num_proc=data.num_proc if data.num_proc > 1 else None,
            desc=f"Tokenizing {spec.label}",
        )
        set_reports = _account(spec, part, seen)
        _refuse_losses(spec, set_reports, data)
        reports += set_reports
        parts.append(part.select(np.flatnonzero(np.array(part["status"]) != "dropped")))
    dataset = concatenate_datasets(parts).remove_columns(list(_ACCOUNT)).shuffle(seed=data.seed)
    if data.packing_strategy is None:
        return TrainingData(dataset, reports, None)
    packed = pack_dataset(dataset, data.max_length, data.packing_strategy, {"batch_size": _PACKING_BATCH})
    tokens = sum(report.tokens for report in reports)
    return TrainingData(packed, reports, tokens / (len(packed) * data.max_length))


def _load_rows(spec: DataSet, needed_columns: Sequence[str]) -> Dataset:
    file = spec.local_file()
    try:
        rows = _load_file(file) if file else _load_hub(spec)
    except DatasetGenerationError as error:
        raise DataError(f"{spec.path} cannot be read: {error.__cause__ or error}") from None
    missing = [column for column in needed_columns if column not in rows.column_names]
    if missing:
        raise DataError(
            f"{spec.path} ({spec.split}) has no column {' and no '.join(missing)}; it has "
            f"{', '.join(rows.column_names)}. Phase apo needs chosen and rejected, the others need messages."
        )
    return rows


def _load_file(file: Path) -> Dataset:
    rows = Dataset.from_parquet(str(file)) if file.suffix == ".parquet" else Dataset.from_json(str(file))
    assert isinstance(rows, Dataset)
    return rows


def _load_hub(spec: DataSet) -> Dataset:
    try:
        return load_dataset(spec.path, spec.name, split=spec.split, revision=spec.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"The hub dataset {spec.path} ({spec.name}, {spec.split}) cannot be loaded: {reason}") from None


def select_fraction(rows: Dataset, spec: DataSet, seed: int) -> Dataset:
    """`int(len(rows) * weight)` random rows; the seed and the set's size decide which."""
    count = int(len(rows) * spec.weight)
    if count == 0:
        raise DataError(
            f"{spec.path} ({spec.split}) gives no sample: weight {spec.weight} of {len(rows)} rows. "
            "Raise the weight or remove the set."
        )
    return rows.shuffle(seed=seed).select(range(count))


def _tokenize_row(tokenize: Any, row: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Tokenized columns plus the account of the row; a dropped row has empty columns."""
    try:
        return tokenize(_without_none(dict(row)), **context)
    except (_Unusable, TemplateError) as error:
        names = _PAIR_FEATURES if tokenize is _tokenize_pair else _SUPERVISED_FEATURES
        empty: dict[str, Any] = {name: [] for name in names if name not in _ACCOUNT}
        account = {"status": "dropped", "reason": str(error), "mode": "", "tokens": 0, "trained_tokens": 0, "digest": 0}
        return empty | account


def _without_none(value: Any) -> Any:
    """Arrow fills keys that other rows have with None; a template must not see them (enable_thinking=None)."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _tokenize_conversation(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, spec: DataSet, data: Data
) -> dict[str, Any]:
    messages: Any = row.get("messages")
    _check_messages(messages, "messages")
    arguments = _template_arguments(row, spec, data)
    rendering = render(messages, template=data.chat_template, **arguments)
    _check_rendering(rendering, messages, arguments, data)
    ids, labels = tokenize_rendering(rendering, tokenizer)
    if not data.assistant_only_loss:
        labels = list(ids)
    status, reason = "kept", ""
    if len(ids) > data.max_length and data.packing_strategy != "wrapped":
        ids, labels = ids[: data.max_length], labels[: data.max_length]
        status, reason = "cut", "longer than max_length"
    trained_tokens = sum(label != IGNORED for label in labels)
    if not trained_tokens:
        raise _Unusable("no trained token within max_length")
    return {
        "input_ids": ids,
        "labels": labels,
        "status": status,
        "reason": reason,
        "mode": _mode(rendering),
        "tokens": len(ids),
        "trained_tokens": trained_tokens,
        "digest": _digest(ids),
    }


def _tokenize_pair(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, spec: DataSet, data: Data
) -> dict[str, Any]:
    chosen: Any = row.get("chosen")
    rejected: Any = row.get("rejected")
    if isinstance(row.get("prompt"), list) and isinstance(chosen, list) and isinstance(rejected, list):
        chosen, rejected = row["prompt"] + chosen, row["prompt"] + rejected
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        _check_messages(messages, name)
        if messages[-1]["role"] != "assistant":
            raise _Unusable(f"{name} does not end with an assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise _Unusable("chosen and rejected answer different prompts")
    if chosen == rejected:
        raise _Unusable("chosen equals rejected")
    arguments = _template_arguments(row, spec, data)
    prompt = render(chosen[:-1], template=data.chat_template, add_generation_prompt=True, **arguments).text
    ids = {"prompt": _encode(prompt, tokenizer)}
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        rendering = render(messages, template=data.chat_template, **arguments)
        _check_rendering(rendering, messages, arguments, data)
        end = rendering.assistant_spans[-1][1]
        whole = _encode(rendering.text[:end], tokenizer)
        if whole[: len(ids["prompt"])] != ids["prompt"]:
            raise _Unusable(f"{name} does not continue the generation prompt (thinking in a /no_think row?)")
        if len(whole) > data.max_length:
            raise _Unusable("longer than max_length")
        ids[name] = whole[len(ids["prompt"]) :]
    return {
        **{f"{name}_ids": values for name, values in ids.items()},
        "status": "kept",
        "reason": "",
        "mode": "no_think" if prompt.endswith(EMPTY_THINK_BLOCK) else "think",
        "tokens": sum(map(len, ids.values())),
        "trained_tokens": len(ids["chosen"]) + len(ids["rejected"]),
        "digest": _digest([*ids["prompt"], *ids["chosen"], *ids["rejected"]]),
    }


def _template_arguments(row: Mapping[str, Any], spec: DataSet, data: Data) -> dict[str, Any]:
    arguments = {**spec.chat_template_kwargs, **row.get("chat_template_kwargs", {}), "date_string": data.date_string}
    tools = row.get("tools")
    return {**arguments, "tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else arguments


def _check_messages(messages: Any, name: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise _Unusable(f"{name} is empty or no list of messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise _Unusable(f"unknown role {role!r}")
        said = message.get("content") or message.get("tool_calls")
        if message["role"] == "assistant" and not (said.strip() if isinstance(said, str) else said):
            raise _Unusable(f"empty assistant turn in {name}")
    if not any(message["role"] == "assistant" for message in messages):
        raise _Unusable(f"no assistant turn in {name}")


def _check_rendering(
    rendering: Rendering, messages: Sequence[Message], arguments: Mapping[str, Any], data: Data
) -> None:
    """Instructions of the row must be in the text that is trained on: rendering must not lose a persona."""
    sources = [messages[0].get("content", "")] if messages[0]["role"] == "system" else []
    if data.chat_template == "dual_mode":
        sources.append(arguments.get("custom_instructions") or "")
    rendered = " ".join(rendering.text.split())
    for source in sources:
        words = [word for word in str(source).split() if data.chat_template == "chatml" or word not in FLAGS]
        if " ".join(words) not in rendered:
            raise _Unusable("system text lost in rendering")


def tokenize_rendering(rendering: Rendering, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids and labels; a label is the token itself inside an assistant span and `IGNORED` elsewhere."""
    encoding = tokenizer(rendering.text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    _check_control_tokens(rendering.text, ids, tokenizer)
    labels = [IGNORED] * len(ids)
    spans = iter(rendering.assistant_spans)
    start, end = next(spans, (len(rendering.text), len(rendering.text)))
    for position, (left, right) in enumerate(encoding["offset_mapping"]):
        while left >= end and start < len(rendering.text):
            start, end = next(spans, (len(rendering.text), len(rendering.text)))
        if start <= left and right <= end:
            labels[position] = ids[position]
    return ids, labels


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    _check_control_tokens(text, ids, tokenizer)
    return ids


def _check_control_tokens(text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """The only special tokens are the template's own turn tokens; content cannot smuggle in others."""
    special = _special_ids(tokenizer)
    if sum(token_id in special for token_id in ids) != text.count(TURN_START) + text.count(TURN_END):
        raise _Unusable("special token in the content")


@cache
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)


def _mode(rendering: Rendering) -> str:
    """The mode of the last assistant turn, as trained."""
    start, end = rendering.assistant_spans[-1]
    said = rendering.text[start:end]
    return "no_think" if said.startswith(EMPTY_THINK_BLOCK) or not said.startswith("<think>") else "think"


def _digest(ids: Sequence[int]) -> int:
    """64-bit fingerprint of a token sequence, for counting duplicates."""
    digest = hashlib.blake2b(array("i", ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _account(spec: DataSet, part: Dataset, seen: set[int]) -> list[SetReport]:
    """One report per mode that occurs; dropped samples have the mode "" and are counted with the first."""
    columns = part.with_format("numpy", columns=list(_ACCOUNT))[:]
    duplicate = np.zeros(len(part), bool)
    for position, (status, digest) in enumerate(zip(columns["status"], columns["digest"].tolist(), strict=True)):
        duplicate[position] = status != "dropped" and digest in seen
        seen.add(digest)
    reports = []
    modes = sorted(set(columns["mode"]) - {""}) or [""]
    for mode in modes:
        chosen = (columns["mode"] == mode) | ((columns["mode"] == "") & (mode == modes[0]))
        status = Counter(columns["status"][chosen].tolist())
        reports.append(
            SetReport(
                name=spec.label,
                mode=mode or "-",
                samples=int(chosen.sum()),
                kept=status["kept"] + status["cut"],
                cut=status["cut"],
                dropped=status["dropped"],
                duplicates=int(duplicate[chosen].sum()),
                tokens=int(columns["tokens"][chosen].sum()),
                trained_tokens=int(columns["trained_tokens"][chosen].sum()),
                reasons=dict(Counter(reason for reason in columns["reason"][chosen].tolist() if reason)),
            )
        )
    return reports


def _refuse_losses(spec: DataSet, reports: Sequence[SetReport], data: Data) -> None:
    samples = sum(report.samples for report in reports)
    lost = sum(report.dropped + report.cut for report in reports)
    kept = sum(report.kept for report in reports)
    if kept and lost <= data.max_lost_fraction * samples:
        return
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reasons)
    counts = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    raise DataError(
        f"{spec.label} ({spec.path}) loses {lost} of {samples} samples: {counts}. data.max_lost_fraction allows "
        f"{data.max_lost_fraction:g}, data.max_length is {data.max_length}. Repair the set, or change these keys."
    )
