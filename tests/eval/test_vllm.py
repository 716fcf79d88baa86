"""The vLLM backend against the transformers backend, over a stand-in for vLLM's offline interface.

What only vLLM itself can show (its kernels, speed and memory) is not tested here. That the stand-in has no parameter
and no field that vLLM lacks is tested against the release of constraints-vllm.txt.
"""

import ast
import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from eval.engine import Doc
from eval.model import TransformersModel
from eval.recipe import Backend, Sampling
from eval.vllm_model import VllmModel
from tests.eval import fake_vllm

DOCS = [
    Doc(query="Question: What do bees make?\nAnswer:", choices=[" Honey", " A very long other thing"], gold_index=0),
    Doc(query="The other father there", choices=["er", " other"], gold_index=1),
]


@pytest.fixture
def backends(model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    settings = {"dtype": "float32", "device": "cpu", "batch_size": 2, "max_length_tokens": 96}
    return (
        TransformersModel(model_folder, Backend(**settings)),
        VllmModel(model_folder, Backend(**settings, engine="vllm")),
    )


def test_scores_and_greedy_text_are_those_of_the_transformers_backend(backends):
    ours, theirs = (backend.loglikelihood(DOCS) for backend in backends)
    for expected, response in zip(ours, theirs, strict=True):
        assert response.logprobs == pytest.approx(expected.logprobs, abs=2e-4)
        assert response.argmax_logits_eq_gold == expected.argmax_logits_eq_gold
    docs = [Doc(query=doc.query, choices=[""], gold_index=0, generation_size=12) for doc in DOCS]
    whole = [response.text for response in backends[0].greedy_until(docs)]
    assert [response.text for response in backends[1].greedy_until(docs)] == whole
    docs[0].stop_sequences = [whole[0][0][4]]
    cut, free = (response.text for response in backends[1].greedy_until(docs))
    assert cut == [whole[0][0].split(whole[0][0][4])[0]] and free == whole[1]


def test_samples_differ_and_repeat(backends):
    doc = Doc(query="Question:", choices=[""], gold_index=0, generation_size=8, num_samples=4)
    backends[1].start_task("plain", Sampling(temperature=1.0), lambda *arguments: None)
    first, second = (backends[1].greedy_until([doc])[0].text for _ in range(2))
    assert first == second and len(set(first)) > 1


def test_what_does_not_fit_is_cut_or_left_empty_and_counted(backends):
    _, vllm = backends
    long = Doc(query="word " * 40, choices=[" a", " b"], gold_index=0, generation_size=4)
    assert vllm.greedy_until([long])[0].text == [""] and vllm.over_length == 1
    assert len(vllm.loglikelihood([long])[0].logprobs) == 2 and vllm.over_length == 2
    # Room for 8 tokens of an answer that would be longer, or that 8 tokens are enough for.
    for tokens, counted in ((40, 1), (8, 0)):
        for backend in backends:
            backend.start_task("plain", Sampling(), lambda *arguments: None)
            close = Doc(query="w" * 88, choices=[""], gold_index=0, generation_size=tokens)
            backend.greedy_until([close])
            assert backend.over_length == counted


@pytest.fixture(scope="module")
def vllm_classes():
    """The classes of the locked release, read out of its wheel (330 MB, fetched once): it needs no GPU for that."""
    release = re.search(r"^vllm==(\S+)", Path("constraints-vllm.txt").read_text(), re.MULTILINE)[1]
    folder = Path.home() / ".cache" / "smollm3-tests" / f"vllm-{release}"
    if not list(folder.glob("*.whl")):
        fetch = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform=manylinux_2_28_x86_64")
        command = (sys.executable, "-m", "pip", *fetch, f"--dest={folder}", f"vllm=={release}")
        subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = ("entrypoints/llm", "engine/arg_utils", "sampling_params", "outputs", "logprobs", "inputs/llm")
        trees = [ast.parse(archive.read(f"vllm/{name}.py")) for name in names]
        registry = archive.read("vllm/model_executor/models/registry.py").decode()
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}, registry


def fields(node):
    return {entry.target.id for entry in node.body if isinstance(entry, ast.AnnAssign)}


def parameters(node, method="__init__"):
    [function] = [entry for entry in node.body if isinstance(entry, ast.FunctionDef) and entry.name == method]
    return [argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]]


@pytest.mark.compat
def test_the_stand_in_takes_and_gives_what_the_locked_vllm_does(vllm_classes):
    classes, registry = vllm_classes
    ours = set(inspect.signature(fake_vllm.LLM).parameters)
    assert len(ours) == 8 and ours <= {*parameters(classes["LLM"]), *fields(classes["EngineArgs"])}
    assert parameters(classes["LLM"], "generate")[:4] == ["self", "prompts", "sampling_params", "use_tqdm"]
    assert "prompt_token_ids" in fields(classes["TokensPrompt"])
    assert set(inspect.signature(fake_vllm.SamplingParams).parameters) <= fields(classes["SamplingParams"])
    assert {"prompt_logprobs", "outputs"} <= set(parameters(classes["RequestOutput"]))
    assert "text" in fields(classes["CompletionOutput"]) and {"logprob", "rank"} <= fields(classes["Logprob"])
    assert '"SmolLM3ForCausalLM": ("transformers", "TransformersForCausalLM")' in registry
