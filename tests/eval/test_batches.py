"""An answer is the one that its prompt gets alone, whatever stands beside it in the batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eval.engine import Doc
from eval.model import Scored, TransformersModel
from eval.recipe import Backend, Sampling
from tests.eval.real_model import real_model

BATCH_SIZES = (1, 4, 16)


def backend(folder, batch_size, **more) -> TransformersModel:
    return TransformersModel(folder, Backend(dtype="float32", device="cpu", batch_size=batch_size, **more))


def document(query: str, tokens: int, **more) -> Doc:
    return Doc(query=query, choices=[""], gold_index=0, generation_size=tokens, **more)


def answers(folder, docs, sampling=None, sizes=BATCH_SIZES, **more):
    """(texts per document, over_length) at each batch size."""
    found = []
    for size in sizes:
        evaluator = backend(folder, size, **more)
        evaluator.start_task("plain", sampling or Sampling(), lambda *arguments: None)
        found.append(([response.text for response in evaluator.greedy_until(docs)], evaluator.over_length))
    return found


def alone(folder, doc: Doc, window: int) -> str:
    """transformers' own answer to one prompt, with the room that the prompt leaves."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(doc.query, return_tensors="pt")["input_ids"]
    room = min(doc.generation_size, window - ids.shape[1])
    ends = model.generation_config.eos_token_id
    out = model.generate(ids, max_new_tokens=room, do_sample=False, temperature=None, eos_token_id=ends, pad_token_id=1)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


# Prompts of 1 to 58 tokens (the tokenizer has one per byte), in a window of 64.
DOCS = [document("w" * length, 24) for length in (1, 9, 33, 41, 50, 58)]


def test_the_longest_prompt_does_not_limit_the_others(model_folder):
    found = answers(model_folder, DOCS, max_length_tokens=64)
    expected = [[alone(model_folder, doc, window=64)] for doc in DOCS]
    assert [texts for texts, _ in found] == [expected] * 3
    assert {len(text) for (text,) in expected[:4]} != {6}  # what the longest prompt leaves


def test_answers_that_the_window_ends_are_counted_as_too_long(model_folder):
    whole = backend(model_folder, 1).greedy_until([document("w" * 58, 24)])[0].text[0]
    cut = backend(model_folder, 1, max_length_tokens=64).greedy_until([document("w" * 58, 24)])[0].text[0]
    assert whole.startswith(cut) and len(cut) < len(whole)
    # The last three have no room for 24 tokens.
    assert {over_length for _, over_length in answers(model_folder, DOCS, max_length_tokens=64)} == {3}
    stopped = document("w" * 58, 24, stop_sequences=[cut[1]])
    assert {over_length for _, over_length in answers(model_folder, [stopped], max_length_tokens=64)} == {0}


def test_rows_have_their_own_length(model_folder):
    docs = [document("Two words", tokens) for tokens in (1, 3, 12)]
    texts = [response.text[0] for response in backend(model_folder, 3).greedy_until(docs)]
    assert texts == [alone(model_folder, doc, window=2048) for doc in docs]


def test_samples_do_not_depend_on_the_batch(model_folder):
    docs = [document("w" * length, 8, num_samples=3) for length in (1, 9, 40)]
    found = answers(model_folder, docs, Sampling(temperature=0.8, top_p=0.9), max_length_tokens=44)
    assert found[0] == found[1] == found[2]
    assert found[0][0] == answers(model_folder, docs[::-1], Sampling(temperature=0.8, top_p=0.9), (4,),
                                  max_length_tokens=44)[0][0][::-1]  # fmt: skip
    assert all(len(set(texts)) > 1 for texts in found[0][0])


def test_samples_have_the_models_probabilities(model_folder):
    """First tokens of 4000 samples against the softmax at temperature 1.3, without the tail beyond top_p 0.7."""
    evaluator = backend(model_folder, 500)
    evaluator.start_task("plain", Sampling(temperature=1.3, top_p=0.7), lambda *arguments: None)
    (response,) = evaluator.greedy_until([document("The", 1, num_samples=4000)])
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    with torch.no_grad():
        logits = model(tokenizer("The", return_tensors="pt")["input_ids"]).logits[0, -1].double()
    ordered = (logits / 1.3).softmax(-1).sort(descending=True)
    kept = ordered.values.cumsum(-1) - ordered.values < 0.7
    expected: dict[str, float] = {}
    for token, share in zip(ordered.indices[kept], ordered.values[kept] / ordered.values[kept].sum(), strict=True):
        text = tokenizer.decode(token, skip_special_tokens=True)
        expected[text] = expected.get(text, 0.0) + float(share)
    assert set(response.text) <= set(expected)
    for text, share in expected.items():
        error = (share * (1 - share) / 4000) ** 0.5
        assert abs(response.text.count(text) / 4000 - share) < 5 * error, text


def test_a_continuation_without_context_has_the_same_likelihood_in_a_wide_batch(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    short, long = tokenizer.encode("Only this"), tokenizer.encode("A much longer text than the first one")
    evaluator = backend(model_folder, 2)
    requests = [Scored(None, 0, [], short), Scored(None, 0, long, short)]
    (alone,), (beside, _) = evaluator._score_batch(requests[:1]), evaluator._score_batch(requests)
    assert beside[0] == pytest.approx(alone[0], abs=2e-4)


@pytest.fixture(scope="module")
def longrope_folder(model_folder, tmp_path_factory):
    """Its rotary frequencies change for the whole batch when one row is longer than 32 tokens."""
    folder = tmp_path_factory.mktemp("models") / "longrope"
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [9.0] * 8,
            "original_max_position_embeddings": 32, "factor": 4.0}  # fmt: skip
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, rope_parameters=rope, eos_token_id=3, pad_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_rotary_frequencies_that_follow_the_longest_row_are_computed_row_by_row(longrope_folder):
    docs = [document(text, 8) for text in ("w" * 60, "a short one", "another")]
    found = answers(longrope_folder, docs)
    assert found[0] == found[1] == found[2]
    choices = [Doc(query=doc.query, choices=[" a", " word"], gold_index=0) for doc in docs]
    first, second = (backend(longrope_folder, size).loglikelihood(choices) for size in (1, 16))
    for one, other in zip(first, second, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


@pytest.mark.compat
def test_a_real_model_gives_the_same_answers_at_every_batch_size():
    """SmolLM2-135M-Instruct; 30 s on two cores: greedy and sampled answers at three batch sizes."""
    folder = real_model()
    questions = ["3+4=", "The capital of France is", "Once upon a time", "def add(a, b):\n", "Water boils at"]
    docs = [document(f"{'Read this. ' * (4 * n)}{questions[n % 5]}", 12) for n in range(10)]
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(folder)([doc.query for doc in docs])["input_ids"]]
    window = max(lengths) + 3
    greedy = answers(folder, docs, max_length_tokens=window)
    assert greedy[0] == greedy[1] == greedy[2]
    assert 0 < greedy[0][1] <= sum(length + 12 > window for length in lengths) < len(docs)
    assert [text for (text,) in greedy[0][0][::4]] == [alone(folder, doc, window) for doc in docs[::4]]
    sampled = answers(folder, docs, Sampling(temperature=0.6, top_p=0.95), max_length_tokens=window)
    assert sampled[0] == sampled[1] == sampled[2] and sampled[0][0] != greedy[0][0]
