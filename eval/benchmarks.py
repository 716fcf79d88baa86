"""The list of benchmarks: where each one's data comes from and how it is scored. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["base", "multilingual", "long", "instruct", "code", "tools"]

_MIXEVAL = ("MixEval/MixEval", "MixEval_Hard")
LANGUAGES = {"fr": "fra", "es": "spa", "de": "deu", "it": "ita", "pt": "por"}  # ISO 639-1 -> ISO 639-3
RULER_TASKS = ("niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa")


@dataclass(frozen=True)
class Dataset:
    """A hub dataset, as it is named there; locally it lies in <data>/<owner>__<name>/<subset>/<split>/*.jsonl."""

    repo: str
    subset: str
    split: str
    fewshot_split: str | None = None

    @property
    def folder(self) -> str:
        return f"{self.repo.replace('/', '__')}/{self.subset}/{self.split}"

    @property
    def splits(self) -> list[str]:
        return [self.split] if self.fewshot_split in (None, self.split) else [self.split, str(self.fewshot_split)]


@dataclass(frozen=True)
class Benchmark:
    """`builder` is the function of eval.tasks.<family> that makes the task. With a `generator` the documents are made
    with the model's tokenizer, out of `dataset` or out of nothing. `chance` is the score of uniform guessing, where
    that means something. `judged`: a judge model scores the answers, if the recipe names one."""

    name: str
    family: Family
    builder: str
    dataset: Dataset | None
    scored_by: Literal["log-likelihood", "answer"]
    chance: float | None = None
    generator: Literal["ruler", "helmet", "facts"] | None = None
    executes_code: bool = False
    judged: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def _choice(
    name: str, repo: str, subset: str, split: str, chance: float, fewshot_split: str | None = None
) -> Benchmark:
    builder = name.removesuffix("_easy").removesuffix("_challenge")
    return Benchmark(name, "base", builder, Dataset(repo, subset, split, fewshot_split), "log-likelihood", chance)


def _answer(name: str, family: Family, builder: str, dataset: Dataset | None, **more: Any) -> Benchmark:
    return Benchmark(name, family, builder, dataset, "answer", **more)


def _benchmarks() -> list[Benchmark]:
    found = [
        _choice("hellaswag", "Rowan/hellaswag", "default", "validation", 0.25, "train"),
        _choice("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", 0.25, "train"),
        _choice("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", 0.25, "train"),
        _choice("winogrande", "allenai/winogrande", "winogrande_xl", "validation", 0.5, "train"),
        _choice("commonsense_qa", "tau/commonsense_qa", "default", "validation", 0.2, "train"),
        _choice("boolq", "google/boolq", "default", "validation", 0.5, "train"),
        _choice("mmlu", "cais/mmlu", "all", "test", 0.25, "dev"),
        _choice("mmlu_pro", "TIGER-Lab/MMLU-Pro", "default", "test", 0.1, "validation"),
        _choice("piqa", "ybisk/piqa", "plain_text", "validation", 0.5, "train"),
        _choice("openbookqa", "allenai/openbookqa", "main", "validation", 0.25, "train"),
        _answer("gsm8k", "base", "gsm8k", Dataset("openai/gsm8k", "main", "test", "train")),
        _answer("math", "base", "math", Dataset("DigitalLearningGmbH/MATH-lighteval", "default", "test", "train")),
        _answer("aime25", "instruct", "aime25", Dataset("yentinglin/aime_2025", "default", "train")),
        _answer("gpqa_diamond", "instruct", "gpqa", Dataset("Idavidrein/gpqa", "gpqa_diamond", "train"), chance=0.25),
        _answer("ifeval", "instruct", "ifeval", Dataset("google/IFEval", "default", "train")),
        _answer("gsm_plus", "instruct", "gsm_plus", Dataset("qintongli/GSM-Plus", "default", "testmini")),
        _answer("mixeval_hard_mc", "instruct", "mixeval_mc", Dataset(*_MIXEVAL, "multiple_choice"), chance=0.25),
        _answer("mixeval_hard_freeform", "instruct", "mixeval_freeform", Dataset(*_MIXEVAL, "free_form"), judged=True),
        _answer("bfcl_simple", "tools", "bfcl", Dataset("bfcl", "simple", "test")),
        _answer("bfcl_multiple", "tools", "bfcl", Dataset("bfcl", "multiple", "test")),
        _answer("bfcl_parallel", "tools", "bfcl", Dataset("bfcl", "parallel", "test")),
        _answer("bfcl_parallel_multiple", "tools", "bfcl", Dataset("bfcl", "parallel_multiple", "test")),
        _answer("bfcl_irrelevance", "tools", "bfcl", Dataset("bfcl", "irrelevance", "test")),
    ]
    code = {
        "humaneval_plus": ("humaneval", Dataset("evalplus/humanevalplus", "default", "test")),
        "mbpp_plus": ("mbpp", Dataset("evalplus/mbppplus", "default", "test")),
        "livecodebench_v4": ("livecodebench", Dataset("lighteval/code_generation_lite", "release_v4", "test")),
    }
    found += [_answer(name, "code", builder, data, executes_code=True) for name, (builder, data) in code.items()]
    for task in RULER_TASKS:
        found.append(_answer(f"ruler_{task}", "long", "ruler", None, generator="ruler", arguments={"kind": task}))
    found.append(_answer("facts", "long", "ruler", None, generator="facts"))
    found += _helmet()
    for short, iso3 in LANGUAGES.items():
        found += _multilingual(short, iso3)
    return found


def _helmet() -> list[Benchmark]:
    recall = _answer("helmet_recall", "long", "helmet_answer", None, generator="helmet", arguments={"kind": "recall"})
    icl = {
        "trec_coarse": ("coarse_label", Dataset("CogComp/trec", "default", "test", "train")),
        "trec_fine": ("fine_label", Dataset("CogComp/trec", "default", "test", "train")),
        "banking77": ("label", Dataset("PolyAI/banking77", "default", "test", "train")),
        "clinc150": ("intent", Dataset("clinc/clinc_oos", "plus", "validation", "train")),
    }
    found = [recall]
    for name, (label, dataset) in icl.items():
        arguments = {"kind": "icl", "label": label}
        found.append(
            _answer(f"helmet_icl_{name}", "long", "helmet_label", dataset, generator="helmet", arguments=arguments)
        )
    for name in ("nq", "triviaqa", "hotpotqa", "popqa"):
        dataset = Dataset("princeton-nlp/HELMET", f"kilt_{name}", "test", "demos")
        arguments = {"kind": "rag"}
        found.append(
            _answer(f"helmet_rag_{name}", "long", "helmet_answer", dataset, generator="helmet", arguments=arguments)
        )
    return found


def _multilingual(short: str, iso3: str) -> list[Benchmark]:
    arguments = {"language": short}
    mmlu = Dataset("CohereForAI/Global-MMLU", short, "test", "dev")
    flores = Dataset("facebook/flores", f"{iso3}_Latn-eng_Latn", "devtest", "dev")
    sources = {
        f"belebele_{short}": ("belebele", Dataset("facebook/belebele", f"{iso3}_Latn", "test")),
        f"mlmm_hellaswag_{short}": ("mlmm_hellaswag", Dataset("jon-tow/okapi_hellaswag", short, "validation")),
        f"global_mmlu_{short}": ("global_mmlu", mmlu),
    }
    found = [
        Benchmark(name, "multilingual", builder, dataset, "log-likelihood", 0.25, arguments=arguments)
        for name, (builder, dataset) in sources.items()
    ]
    for name, to_english in ((f"flores200_{short}_en", True), (f"flores200_en_{short}", False)):
        more = {**arguments, "to_english": to_english}
        found.append(_answer(name, "multilingual", "flores", flores, arguments=more))
    instruct = f"global_mmlu_instruct_{short}"
    found.append(_answer(instruct, "instruct", "global_mmlu_instruct", mmlu, chance=0.25, arguments=arguments))
    return found


BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _benchmarks()}
BENCHMARK_NAMES = frozenset(BENCHMARKS)
