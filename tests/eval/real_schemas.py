"""Copies of hub repositories with rows of our own in each real set's columns, types and oddities."""

import base64
import io
import json
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import datasets

from eval.benchmarks import Benchmark

Rows = list[dict[str, Any]]

HELLASWAG: Rows = [
    {"ind": 24, "activity_label": "Roofing", "ctx_a": "A man sits on a roof.", "ctx_b": "he", "ctx": "A man sits. he",
     "endings": ["sings [title].", "climbs down.", "swims.", "melts."], "source_id": "activitynet~v_1", "split": "val",
     "split_type": "indomain", "label": "1"},
]  # fmt: skip
QUESTION = "Which of these can fly?"
LETTERED = {"text": ["a dog", "a bird", "a snail", "a table"], "label": ["A", "B", "C", "D"]}
# ARC numbers the options of some questions.
NUMBERED = {"text": ["a dog", "a bird", "a snail", "a table"], "label": ["1", "2", "3", "4"]}
# The hub's copy has a key per argument of any instruction, most of them null.
IFEVAL_KWARGS = {"num_words": None, "relation": None, "end_phrase": None, "keywords": None, "num_highlights": None}
HUMANEVAL_TEST = """
import numpy as np

def is_floats(x) -> bool:
    return isinstance(x, float) or (isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x))

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        np.testing.assert_allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

def check(candidate):
    for inp, exp in zip([[3], [0.1]], [9, 0.3]):
        assertion(candidate(*inp), exp, 1e-6)
"""


def _contest_tests(cases: list[tuple[str, str]]) -> str:
    return json.dumps([{"input": x, "output": y, "testtype": "stdin"} for x, y in cases])


def _hidden(text: str) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


def _global_mmlu(label: str) -> dict[str, Any]:
    options = {f"option_{letter}": text for letter, text in zip("abcd", LETTERED["text"], strict=True)}
    return {
        "sample_id": f"misc/{label}", "subject": "misc", "subject_category": "Other", "question": QUESTION, **options,
        "answer": "B", "required_knowledge": "[]", "time_sensitive": "[]", "reference": "[]", "culture": "[]",
        "region": "[]", "country": "[]", "cultural_sensitivity_label": label, "is_annotated": label != "-",
    }  # fmt: skip


ROWS: dict[str, Rows] = {
    "hellaswag": HELLASWAG,
    "mlmm_hellaswag": HELLASWAG,
    "arc": [{"id": f"M{n}", "question": QUESTION, "choices": choices, "answerKey": choices["label"][1]}
            for n, choices in enumerate((LETTERED, NUMBERED))],
    "winogrande": [{"sentence": "The box is in the bag because _ is small.", "option1": "bag", "option2": "box",
                    "answer": "2"}],
    "commonsense_qa": [{"id": "x", "question": QUESTION, "question_concept": "fly", "answerKey": "E",
                        "choices": {"label": list("ABCDE"), "text": ["a", "b", "c", "d", "a bird"]}}],
    "boolq": [{"question": "do birds fly", "answer": True, "passage": "Birds fly."}],
    "mmlu": [{"question": QUESTION, "subject": "misc", "choices": LETTERED["text"], "answer": 1}],
    "mmlu_pro": [{"question_id": 7, "question": QUESTION, "options": [*LETTERED["text"], *"efghij"], "answer": "B",
                  "answer_index": 1, "cot_content": "", "category": "other", "src": "ours"},
                 # some questions have fewer than ten options
                 {"question_id": 8, "question": QUESTION, "options": LETTERED["text"], "answer": "B",
                  "answer_index": 1, "cot_content": "", "category": "other", "src": "ours"}],
    "piqa": [{"goal": "to fly", "sol1": "swim", "sol2": "take a plane", "label": 1}],
    "openbookqa": [{"id": "7", "question_stem": QUESTION, "choices": LETTERED, "answerKey": "B"}],
    "gsm8k": [{"question": "How many?", "answer": "He has 600 * 2 = <<600*2=1200>>1200.\n#### 1,200"}],
    "math": [{"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": solution}
             for solution in ("So $\\boxed{\\frac{1}{2}}$.", "The answer is $\\boxed 2$.", "It is $\\fbox{3}$.")],
    "aime25": [{"id": 0, "problem": "Find n.", "answer": "070", "solution": "", "url": "", "year": 2025}],
    "gpqa": [{"Question": QUESTION, "Correct Answer": "a bird\n", "Incorrect Answer 1": "a dog",
              "Incorrect Answer 2": "a snail", "Incorrect Answer 3": "a table", "Subdomain": "ours"}],
    "ifeval": [{"key": 1000, "prompt": "Write about rain. Do not use any commas. Write at least 5 words.",
                "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
                "kwargs": [IFEVAL_KWARGS, {**IFEVAL_KWARGS, "num_words": 5, "relation": "at least"}]}],
    "gsm_plus": [{"question": "How many?", "solution": "", "answer": answer, "perturbation_type": kind,
                  "seed_question": "", "seed_solution": "", "seed_answer": "18"}
                 for answer, kind in (("18.5", "numerical variation"), ("None", "critical thinking"))],
    "mixeval_mc": [{"id": "0", "prompt": QUESTION, "options": LETTERED["text"], "target": ["1"],
                    "problem_type": "single-choice", "benchmark_name": "MMLU", "context": None}],
    "mixeval_freeform": [{"id": "0", "prompt": "Who sang it?", "target": ["The Beatles", "Beatles"],
                          "problem_type": "free-form", "benchmark_name": "TriviaQA", "context": None}],
    "belebele": [{"link": "", "question_number": 1, "flores_passage": "Les oiseaux volent.", "question": QUESTION,
                  **{f"mc_answer{n}": text for n, text in enumerate(LETTERED["text"], 1)},
                  "correct_answer_num": "2", "dialect": "fra_Latn", "ds": "2023-05-03"}],
    "global_mmlu": [_global_mmlu("CA"), _global_mmlu("CS"), _global_mmlu("-")],
    "flores": [{"id": 1, "URL": "", "domain": "", "topic": "", "has_image": 0, "has_hyperlink": 0,
                "sentence_fra_Latn": "Il pleut.", "sentence_eng_Latn": "It rains."}],
    "humaneval": [{"task_id": "HumanEval/0", "prompt": "def triple(x):\n    \"\"\"Three times x.\"\"\"\n",
                   "canonical_solution": "    return x + x + x\n", "entry_point": "triple", "test": HUMANEVAL_TEST}],
    "mbpp": [{"task_id": 2, "code": "import math\ndef root(x):\n    return math.sqrt(x)", "prompt": "Take a root.",
              "source_file": "Ours", "test_imports": [], "test_list": ["assert root(4) == 2"],
              "test": "import numpy as np\nfrom math import inf\nassert np.isclose(root(4), 2)"}],
    "livecodebench": [{"question_title": "T", "question_content": "Read an integer x and print x times 3.",
                       "platform": "atcoder", "question_id": "1", "contest_id": "1", "contest_date": "2024-01-01",
                       "starter_code": "", "difficulty": "easy", "public_test_cases": _contest_tests([("2\n", "6\n")]),
                       "private_test_cases": _hidden(_contest_tests([("5\n", "15\n")])), "metadata": "{}"}],
    "helmet_label": [{"text": f"text {n} about {('rain', 'music')[n % 2]}", "label": n % 2, "intent": n % 2,
                      "coarse_label": n % 2, "fine_label": n % 2} for n in range(6)],
}  # fmt: skip
ROWS["global_mmlu_instruct"] = ROWS["global_mmlu"]
_CLASSES = {
    "mmlu": ("answer", list("ABCD")),
    "piqa": ("label", ["0", "1"]),
    "helmet_label": ("label", ["rain", "music"]),
}
_BFCL = {
    "id": "simple_0",
    "question": [[{"role": "user", "content": "Weather in\u2028Paris?"}]],
    "function": [{"name": "geo.weather", "description": "", "parameters": {
        "type": "dict", "required": ["place"], "properties": {
            "place": {"type": "dict", "properties": {"city": {"type": "string"}}},
            "days": {"type": "float"}}}}],
}  # fmt: skip


def write_mirror(folder: Path, benchmarks: list[Benchmark]) -> None:
    """Every dataset of `benchmarks` as <folder>/<owner>/<name>, parquet files with a README that names the configs."""
    configs: dict[str, dict[str, dict[str, str]]] = {}
    for benchmark in benchmarks:
        dataset = benchmark.dataset
        if dataset is None or dataset.repo in ("bfcl", "princeton-nlp/HELMET"):
            continue
        table = datasets.Dataset.from_list(ROWS[benchmark.builder])
        if benchmark.builder in _CLASSES:
            column, names = _CLASSES[benchmark.builder]
            table = table.cast_column(column, datasets.ClassLabel(names=names))
        for split in dataset.splits:
            path = f"{dataset.subset}/{split}-00000-of-00001.parquet"
            (folder / dataset.repo / dataset.subset).mkdir(parents=True, exist_ok=True)
            table.to_parquet(str(folder / dataset.repo / path))
            configs.setdefault(dataset.repo, {}).setdefault(dataset.subset, {})[split] = path
    for repo, subsets in configs.items():
        listed = [
            {"config_name": subset, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
            for subset, files in subsets.items()
        ]
        (folder / repo / "README.md").write_text(f"---\n{json.dumps({'configs': listed})}\n---\n", encoding="utf-8")
    _write_bfcl(folder / "gorilla-llm" / "Berkeley-Function-Calling-Leaderboard")
    _write_helmet(folder / "princeton-nlp" / "HELMET")


def _write_bfcl(folder: Path) -> None:
    (folder / "possible_answer").mkdir(parents=True)
    answer = {
        "id": "simple_0",
        "ground_truth": [{"geo.weather": {"place": [{"city": ["Paris", "paris"]}], "days": [1, ""]}}],
    }
    for subset in ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance"):
        (folder / f"BFCL_v3_{subset}.json").write_text(json.dumps(_BFCL, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "possible_answer" / f"BFCL_v3_{subset}.json").write_text(json.dumps(answer) + "\n", encoding="utf-8")


def _write_helmet(folder: Path) -> None:
    folder.mkdir(parents=True)
    ctxs = [{"id": str(n), "title": f"T{n}", "text": text, "score": 0.5}
            for n, text in enumerate(["Nothing here.", "Oslo is in Norway.", "Nor here."])]  # fmt: skip
    question = {"id": "q", "question": "Where is Oslo?", "answers": ["Norway"], "ctxs": ctxs, "depth": 0}
    shot = {"id": "s", "question": "Where is Rome?", "answers": ["Italy"], "ctxs": ctxs[:1]}
    with tarfile.open(folder / "data.tar.gz", "w:gz") as archive:
        for name, rows in (("nq-dev-multikilt_1000_k1000_dep6", [question, {**question, "depth": 1}]),
                           ("nq-train-multikilt_1000_k3_dep6", [shot])):  # fmt: skip
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            member = tarfile.TarInfo(f"data/kilt/{name}.jsonl")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
