"""Mixtures: what is selected, tokenized, masked, packed, counted and refused."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from posttrain.data import DatasetError, SetReport, TrainingData, prepare_data
from posttrain.recipe import MissingInputError, PostTrainingRecipe, load_recipe
from posttrain.tokenization import IGNORED

DATE = "01 July 2025"


def write_set(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def pair(question: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": question}]
    answers = {"chosen": chosen, "rejected": rejected}
    return {**{k: [*prompt, {"role": "assistant", "content": text}] for k, text in answers.items()}, **more}


def recipe(phase: str, datasets: list[dict[str, Any]], *overrides: str) -> PostTrainingRecipe:
    return load_recipe(f"recipes/tiny/{phase}.yaml", [f"data.datasets={json.dumps(datasets)}", *overrides])


def prepare(phase: str, path: str, tokenizer: PreTrainedTokenizerBase, *overrides: str, **spec: Any) -> TrainingData:
    return prepare_data(recipe(phase, [{"path": path, **spec}], *overrides), tokenizer)


NO_THINK = {"chat_template_kwargs": {"enable_thinking": False}}


def test_weight_is_the_fraction_of_a_set(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """100 and 20 rows at 1 and 0.5 give 100 and 10, not a share of the mixture; the 10 are not simply the first."""
    large = write_set(tmp_path / "large", [chat(f"large {i}", "x") for i in range(100)])
    small = write_set(tmp_path / "small", [chat(f"small {i}", "x") for i in range(20)])
    wanted = recipe("sft", [{"path": large}, {"path": small, "weight": 0.5}], "data.packing_strategy=null")
    data = prepare_data(wanted, tokenizer)
    texts = [tokenizer.decode(ids) for ids in data.dataset["input_ids"]]
    chosen = {i for i in range(20) if any(f"small {i}<" in text for text in texts)}
    assert [report.samples for report in data.reports] == [100, 10]
    assert len(texts) == 110 and len(chosen) == 10 and chosen != set(range(10))
    assert [tokenizer.decode(ids) for ids in prepare_data(wanted, tokenizer).dataset["input_ids"]] == texts
    other = recipe(
        "sft", [{"path": large}, {"path": small, "weight": 0.5}], "data.packing_strategy=null", "data.seed=7"
    )
    assert [tokenizer.decode(ids) for ids in prepare_data(other, tokenizer).dataset["input_ids"]] != texts


def test_missing_template_arguments_of_a_row_do_not_flip_its_mode(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Arrow gives the second row enable_thinking=None and the third no arguments at all."""
    rows = [
        chat("a", "x", chat_template_kwargs={"enable_thinking": False}),
        chat("b", "<think>\nhm\n</think>\nx", chat_template_kwargs={"custom_instructions": "Be kind."}),
        chat("c", "<think>\nhm\n</think>\nx"),
    ]
    data = prepare("sft", write_set(tmp_path, rows), tokenizer, "data.packing_strategy=null")
    modes = {}
    for ids in data.dataset["input_ids"]:
        text = tokenizer.decode(ids)
        question = text.partition("<|im_start|>user\n")[2][0]
        modes[question] = "/no_think" if "Reasoning mode: /no_think" in text else "/think"
    assert modes == {"a": "/no_think", "b": "/think", "c": "/think"}
    assert {report.mode: report.samples for report in data.reports} == {"no_think": 1, "think": 2}


def test_arguments_of_the_set_yield_to_the_row(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [chat("a", "x"), chat("b", "<think>\nhm\n</think>\nx", chat_template_kwargs={"enable_thinking": True})]
    data = prepare("sft", write_set(tmp_path, rows), tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert {report.mode: report.samples for report in data.reports} == {"no_think": 1, "think": 1}


def test_only_assistant_turns_are_trained_and_every_one_ends(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"}, {"role": "tool", "content": "r1"},
        {"role": "assistant", "content": "a2"},
    ]  # fmt: skip
    rows = [{"messages": messages, **NO_THINK}]
    data = prepare("sft", write_set(tmp_path, rows), tokenizer, "data.packing_strategy=null")
    labels = data.dataset[0]["labels"]
    runs = "".join("·" if label == IGNORED else tokenizer.decode([label]) for label in labels).split("·")
    assert [run for run in runs if run] == [f"<think>\n\n</think>\n{a}<|im_end|>" for a in ("a1", "a2")]


def test_every_token_is_trained_in_midtraining(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [chat(f"question {i}", "<think>\nhm\n</think>\nanswer " + "long " * i) for i in range(50)]
    overrides = ("data.packing_strategy=wrapped", "data.max_length=64", "data.assistant_only_loss=false")
    data = prepare("midtrain", write_set(tmp_path, rows), tokenizer, *overrides)
    lengths = [len(ids) for ids in data.dataset["input_ids"]]
    assert set(lengths[:-1]) == {64} and lengths[-1] <= 64
    assert data.dataset["input_ids"][:] == data.dataset["labels"][:]
    assert sum(lengths) == data.reports[0].tokens == data.reports[0].trained_tokens
    assert "Metadata" not in tokenizer.decode(data.dataset[0]["input_ids"])


def test_packing_neither_cuts_nor_loses(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Random lengths: the packed samples are exactly the unpacked ones, none cut, and the bins are well filled."""
    rng = random.Random(0)
    rows = [chat(f"{i}", "w " * rng.randint(1, 120), **NO_THINK) for i in range(300)]
    path = write_set(tmp_path, rows)
    plain = prepare("sft", path, tokenizer, "data.packing_strategy=null", "data.max_length=1024")
    packed = prepare("sft", path, tokenizer, "data.max_length=1024")
    assert max(len(ids) for ids in packed.dataset["input_ids"]) <= 1024
    samples = []
    for row in packed.dataset:
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            samples.append((row["input_ids"][start:end], row["labels"][start:end]))
    assert sorted(samples) == sorted((row["input_ids"], row["labels"]) for row in plain.dataset)
    assert packed.fill_rate is not None and packed.fill_rate > 0.9


def test_the_report_adds_up(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [chat("a", "x", **NO_THINK)] * 3 + [chat("b", "<think>\nhm\n</think>\nx", chat_template_kwargs={})]
    rows += [chat("c", "", **NO_THINK), chat("d", "w " * 400, **NO_THINK)]
    path = write_set(tmp_path, rows)
    data = prepare("sft", path, tokenizer, "data.packing_strategy=null", "data.max_lost_fraction=0.5")
    by_mode = {report.mode: report for report in data.reports}
    direct, think = by_mode["no_think"], by_mode["think"]
    assert (direct.samples, direct.kept, direct.cut, direct.dropped, direct.duplicates) == (5, 4, 1, 1, 2)
    assert (think.samples, think.kept, think.cut, think.dropped, think.duplicates) == (1, 1, 0, 0, 0)
    assert direct.reasons == {"longer than max_length": 1, "empty assistant turn in messages": 1}
    rows_left = list(data.dataset)
    assert sum(report.tokens for report in data.reports) == sum(len(row["input_ids"]) for row in rows_left)
    trained = sum(label != IGNORED for row in rows_left for label in row["labels"])
    assert sum(report.trained_tokens for report in data.reports) == trained


def test_a_lost_persona_is_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A system message beats custom_instructions, so those would silently vanish."""
    kwargs = {"custom_instructions": "You are a pirate.", "enable_thinking": False}
    lost = {"messages": [{"role": "system", "content": "Be kind."}, *chat("a", "x")["messages"]]}
    rows = [chat(str(i), "x", **NO_THINK) for i in range(9)] + [{**lost, "chat_template_kwargs": kwargs}]
    path = write_set(tmp_path, rows)
    data = prepare("sft", path, tokenizer, "data.max_lost_fraction=0.2")
    assert data.reports[0].reasons == {"custom_instructions lost in rendering: there is a system message": 1}


def test_preference_pairs_split_after_the_generation_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """As in smoltalk2: whole conversations in chosen and rejected, and a `prompt` string beside them."""
    rows = [pair("q", "yes", "no", prompt="q", **NO_THINK)]
    rows += [pair("q", "<think>\na\n</think>\nyes", "<think>\nb\n</think>\nno", prompt="q")]
    data = prepare("apo", write_set(tmp_path, rows), tokenizer)
    decoded = {
        tuple(tokenizer.decode(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")) for row in data.dataset
    }
    prompts = {prompt[-40:]: (chosen, rejected) for prompt, chosen, rejected in decoded}
    direct = [answers for prompt, answers in prompts.items() if prompt.endswith("assistant\n<think>\n\n</think>\n")]
    think = [answers for prompt, answers in prompts.items() if prompt.endswith("q<|im_end|>\n<|im_start|>assistant\n")]
    assert direct == [("yes<|im_end|>", "no<|im_end|>")]
    assert think == [("<think>\na\n</think>\nyes<|im_end|>", "<think>\nb\n</think>\nno<|im_end|>")]


def test_explicit_prompts_mean_the_same(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    whole = [pair("q", "yes", "no", **NO_THINK)]
    split = [{"prompt": whole[0]["chosen"][:1], "chosen": whole[0]["chosen"][1:],
              "rejected": whole[0]["rejected"][1:], **NO_THINK}]  # fmt: skip
    first, second = (prepare("apo", write_set(tmp_path / name, rows), tokenizer).dataset[0]
                     for name, rows in (("whole", whole), ("split", split)))  # fmt: skip
    assert first == second


GOOD_PAIR = pair("q", "yes", "no", **NO_THINK)
BAD_ROWS = {
    "unknown role": ("sft", {"messages": [{"role": "critic", "content": "x"}]}, "unknown role 'critic'"),
    "no messages": ("sft", {"messages": []}, "empty or no list"),
    "messages are text": ("sft", {"messages": "hi"}, "no list of messages"),
    "no assistant": ("sft", {"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
    "empty assistant": ("sft", chat("a", " "), "empty assistant turn"),
    "late system message": ("sft", {"messages": [*chat("a", "b")["messages"], {"role": "system", "content": "x"}]},
                            "system message must be the first"),
    "prompt fills max_length": ("sft", chat("w " * 400, "x"), "no trained token within max_length"),
    "special token": ("sft", chat("a<|reserved|>", "x"), "special token in the content"),
    "empty chosen": ("apo", {**GOOD_PAIR, "chosen": []}, "chosen is empty"),
    "chosen equals rejected": ("apo", pair("q", "yes", "yes", **NO_THINK), "chosen equals rejected"),
    "different prompts": ("apo", {**GOOD_PAIR, "rejected": pair("r", "a", "b")["rejected"]}, "different prompts"),
    "ends with the user": ("apo", {**GOOD_PAIR, "chosen": [*GOOD_PAIR["chosen"], {"role": "user", "content": "x"}]},
                           "does not end with an assistant turn"),
    "thinking in a direct pair": ("apo", pair("q", "<think>\na\n</think>\nb", "no", **NO_THINK),
                                  "reasoning under /no_think in chosen"),
    "long pairs": ("apo", pair("q", "w " * 400, "no", **NO_THINK), "longer than max_length"),
}  # fmt: skip


@pytest.mark.parametrize(("phase", "row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_sets_of_bad_rows_are_refused(
    phase: str, row: dict[str, Any], reason: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """An error that names set, counts and reason, not a run of zero steps."""
    from tokenizers import AddedToken

    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, chat_template=tokenizer.chat_template)
    tokenizer.add_tokens([AddedToken("<|reserved|>", special=True)])
    with pytest.raises(DatasetError) as refused:
        prepare(phase, write_set(tmp_path / "bad_set", [row] * 4), tokenizer)
    assert "bad_set" in str(refused.value) and "4 of 4" in str(refused.value) and reason in str(refused.value)


def test_losses_below_the_threshold_pass(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [pair(f"q{i}", "yes", "no", **NO_THINK) for i in range(19)] + [pair("q", "yes", "yes", **NO_THINK)]
    path = write_set(tmp_path, rows)
    assert len(prepare("apo", path, tokenizer, "data.max_lost_fraction=0.05").dataset) == 19
    with pytest.raises(DatasetError, match="loses 1 of 20 samples: 1 x chosen equals rejected"):
        prepare("apo", path, tokenizer, "data.max_lost_fraction=0.04")


@pytest.mark.parametrize(
    ("phase", "content", "weight", "message"),
    [
        ("sft", '{"text": "x"}\n', 1.0, r"loses 1 of 1 samples: 1 x no messages; the row has text \(row 1\)"),
        ("apo", json.dumps({"chosen": chat("a", "b")["messages"]}) + "\n", 1.0, "1 x no rejected; the row has chosen"),
        ("sft", "not json\n", 1.0, r"1 x the line is no JSON \(row 1\)"),
        ("sft", "", 1.0, r"train\.jsonl holds no row"),
        ("sft", "\n \n", 1.0, "gives no sample: weight 1.0 of 0 rows"),
        ("sft", "\xff\xfe", 1.0, "cannot be read"),
        ("sft", json.dumps(chat("a", "b")) + "\n", 0.5, "gives no sample: weight 0.5 of 1 rows"),
    ],
    ids=["column", "one of two columns", "not json", "empty", "blank", "not utf-8", "weight rounds to nothing"],
)
def test_files_that_cannot_be_used(
    phase: str, content: str, weight: float, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "train.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(DatasetError, match=message):
        prepare(phase, str(tmp_path), tokenizer, weight=weight)


def test_a_missing_file_names_the_generator(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(MissingInputError, match=r"There is no .*train\.jsonl or .*\.parquet.*smollm3 posttrain-data"):
        prepare("sft", str(tmp_path / "a/b"), tokenizer)


def test_parquet_is_read_alike(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from datasets import Dataset

    rows = [chat(f"q{i}", "x", **NO_THINK) for i in range(4)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "set.parquet"))
    write_set(tmp_path, rows)
    one, two = (prepare("sft", str(tmp_path / name), tokenizer) for name in ("set.parquet", "train.jsonl"))
    assert one.dataset[:] == two.dataset[:]


def test_report_is_json(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from dataclasses import asdict

    data = prepare("sft", write_set(tmp_path, [chat("a", "x", **NO_THINK)]), tokenizer)
    assert SetReport(**json.loads(json.dumps(asdict(data.reports[0])))) == data.reports[0]
