"""The backend against direct transformers computations."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.engine import Doc
from eval.model import TransformersModel, cut_at
from eval.recipe import Backend, Sampling


@pytest.fixture(scope="module")
def reference(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)


def backend(folder, batch_size=3, **more):
    return TransformersModel(folder, Backend(dtype="float32", device="cpu", batch_size=batch_size, **more))


DOCS = [
    Doc(
        query="Question: What do bees make?\nAnswer:",
        choices=[" Honey", " A very long other thing", " Wool"],
        gold_index=0,
    ),
    Doc(query="Two", choices=[" plus two equals four", " x"], gold_index=1),
    Doc(query="The other father there", choices=["er", " other"], gold_index=1),
]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_log_likelihoods_equal_a_forward_pass_per_choice(model_folder, reference, batch_size):
    model, tokenizer = reference
    responses = backend(model_folder, batch_size).loglikelihood(DOCS)
    for doc, response in zip(DOCS, responses, strict=True):
        for choice, logprob in zip(doc.choices, response.logprobs, strict=True):
            prompt, whole = tokenizer.encode(doc.query), tokenizer.encode(doc.query + choice)
            with torch.no_grad():
                scores = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            expected = sum(float(scores[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))
            assert logprob == pytest.approx(expected, abs=2e-4)


def test_a_context_that_does_not_fit_is_cut_on_the_left_and_counted(model_folder, reference):
    model, tokenizer = reference
    evaluator = backend(model_folder, max_length_tokens=16)
    (response,) = evaluator.loglikelihood([DOCS[0]])
    whole = tokenizer.encode(DOCS[0].query + " Wool")[-16:]
    with torch.no_grad():
        scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    assert response.logprobs[2] == pytest.approx(sum(float(scores[i - 1, whole[i]]) for i in range(11, 16)), abs=2e-4)
    assert evaluator.over_length == 1


def test_greedy_text_equals_generate_without_a_batch(model_folder, reference):
    model, tokenizer = reference
    docs = [Doc(query=doc.query, choices=[""], gold_index=0, generation_size=12) for doc in DOCS]
    responses = backend(model_folder).greedy_until(docs)
    for doc, response in zip(docs, responses, strict=True):
        ids = tokenizer(doc.query, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=3, pad_token_id=1)
        assert response.text == [tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)]
        assert response.input == doc.query


def test_sampling_is_repeatable_and_varied(model_folder):
    doc = Doc(query="Question:", choices=[""], gold_index=0, generation_size=8, num_samples=4)
    texts = []
    for _ in range(2):
        evaluator = backend(model_folder)
        evaluator.start_task("plain", Sampling(temperature=1.0), lambda *arguments: None)
        texts.append(evaluator.greedy_until([doc])[0].text)
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_a_prompt_without_room_gets_no_answer_and_is_counted(model_folder):
    evaluator = backend(model_folder, max_length_tokens=16)
    long, short = (Doc(query=text, choices=[""], gold_index=0, generation_size=4) for text in ("word " * 20, "word"))
    responses = evaluator.greedy_until([long, short])
    assert responses[0].text == [""] and len(responses[1].text[0]) > 0 and evaluator.over_length == 1


def test_stop_sequences_cut_each_row_alone(model_folder):
    plain = Doc(query="Question:", choices=[""], gold_index=0, generation_size=12)
    whole = backend(model_folder).greedy_until([plain])[0].text[0]
    stop = whole[5:6]
    stopping = Doc(query="Question:", choices=[""], gold_index=0, generation_size=12, stop_sequences=[stop])
    stopped, free = (response.text[0] for response in backend(model_folder).greedy_until([stopping, plain]))
    assert stopped == whole[: whole.index(stop)] and free == whole
    assert cut_at("a\nQuestion: b", ["Question:", "\n"]) == "a"


def test_autograd_still_works_after_lighteval_was_imported():
    weight = torch.ones(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad is not None
