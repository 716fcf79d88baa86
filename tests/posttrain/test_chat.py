"""The terminal chat and the sampling below it."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from posttrain import chat
from posttrain.chat import Session
from posttrain.generate import ChatModel, ModelError, Sampling, _CharacterStreamer
from posttrain.training import set_chat_defaults
from smollm3.command_line import main


@pytest.fixture(scope="module")
def chat_folder(base_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    model = AutoModelForCausalLM.from_pretrained(base_model)
    set_chat_defaults(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Scripted(ChatModel):
    """Replies with what the test says, in pieces as a model would."""

    replies: list[str]

    def stream(self, prompt: str, sampling: Sampling, on_text) -> str:  # type: ignore[no-untyped-def]
        self.prompts.append(prompt)
        reply = self.replies.pop(0)
        for start in range(0, len(reply), 3):
            on_text(reply[start : start + 3])
        return reply


def scripted(chat_folder: Path, *replies: str) -> tuple[Session, "Scripted", io.StringIO]:
    model = Scripted.load(str(chat_folder))
    object.__setattr__(model, "replies", list(replies))
    object.__setattr__(model, "prompts", [])
    output = io.StringIO()
    return Session(model, Sampling(), Console(file=output, width=100)), model, output


def test_modes_and_history(chat_folder: Path) -> None:
    session, model, output = scripted(chat_folder, "<think>\nhm\n</think>\nHello", "Fine")
    assert session.say("Hi").thinking == "hm"
    assert session.command("/no_think")
    assert session.say("And you?").mode == "no_think"
    first, second = model.prompts
    assert "Reasoning mode: /think" in first and first.endswith("<|im_start|>assistant\n")
    assert "Reasoning mode: /no_think" in second and second.endswith("<think>\n\n</think>\n")
    assert "<|im_start|>assistant\n<think>\nhm\n</think>\nHello<|im_end|>" in second
    assert "Hello" in output.getvalue() and "Fine" in output.getvalue()


def test_commands(chat_folder: Path) -> None:
    session, model, _ = scripted(chat_folder, "a", "b")
    session.say("one")
    assert session.command("/system Be kind.") and session.command("/reset") and session.command("/help")
    assert not session.command("/unknown") and not session.command("/think about it") and not session.command("hello")
    session.say("two")
    assert "one" not in model.prompts[1].partition("Instructions")[2] and "Be kind." in model.prompts[1]


def test_tool_calls_are_shown(chat_folder: Path, tmp_path: Path) -> None:
    calls = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
    calls += "<tool_call>\n{oops\n</tool_call>"
    session, model, output = scripted(chat_folder, calls + "<code>\nprint(1)\n</code>")
    (tmp_path / "tools.json").write_text('[{"name": "get_time"}]')
    session.tools = chat.load_tools(tmp_path / "tools.json")
    session.say("What time is it in Oslo?")
    assert '{"name": "get_time"}' in model.prompts[0]
    shown = output.getvalue()
    assert "tool call: get_time" in shown and '"city": "Oslo"' in shown
    assert "malformed tool call" in shown and "python call" in shown


def test_streamed_text_is_what_generate_says(chat_folder: Path) -> None:
    """Greedy: the pieces add up to transformers' own decoding of its own generation."""
    chat_model = ChatModel.load(str(chat_folder))
    prompt = chat_model.prompt([{"role": "user", "content": "Hi"}])
    pieces: list[str] = []
    text = chat_model.stream(prompt, Sampling(temperature=0, max_new_tokens=12), pieces.append)
    inputs = chat_model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = chat_model.model.generate(**inputs, do_sample=False, max_new_tokens=12)[0].tolist()
    expected = [token_id for token_id in output[inputs["input_ids"].shape[1] :] if token_id != chat_model.end_of_turn]
    assert "".join(pieces) == text == chat_model.tokenizer.decode(expected)


def test_characters_are_never_split(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces: list[str] = []
    streamer = _CharacterStreamer(tokenizer, 4, pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
    text = "日本 🙂 é"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)  # several tokens to a character
    for token_id in [*ids, 4]:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    assert "".join(pieces) == text and "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_bytes_that_never_become_a_character_are_not_held_back(tokenizer: PreTrainedTokenizerBase) -> None:
    """Decoding all of them again with each one more would take time with the square of their number."""
    pieces: list[str] = []
    streamer = _CharacterStreamer(tokenizer, 4, pieces.append)
    streamer.put(torch.tensor([[1]]))  # the prompt
    continuation_byte = tokenizer("\u0080", add_special_tokens=False)["input_ids"][-1]
    for _ in range(2000):
        streamer.put(torch.tensor([continuation_byte]))
        assert len(streamer.pending) <= 16
    streamer.end()
    assert "".join(pieces) == "\N{REPLACEMENT CHARACTER}" * 2000


def test_markup_in_a_call_is_text(chat_folder: Path) -> None:
    session, _, output = scripted(chat_folder, "<code>\nprint(a[i]) [/x] [bold]\n</code><tool_call>[/x]</tool_call>")
    session.say("Hi")
    assert "print(a[i]) [/x] [bold]" in output.getvalue()


def test_calls_in_an_unclosed_think_block_are_not_shown_as_calls(chat_folder: Path) -> None:
    call = '<tool_call>\n{"name": "delete", "arguments": {}}\n</tool_call>'
    session, _, output = scripted(chat_folder, f"<think>\nI could {call}")
    reply = session.say("Hi")
    assert reply.tool_calls == [] and "tool call: delete" not in output.getvalue()


def test_batched_replies_equal_single_ones(chat_folder: Path) -> None:
    """Left padding and sorting by length change nothing."""
    chat_model = ChatModel.load(str(chat_folder))
    greedy = Sampling(temperature=0, max_new_tokens=6)
    prompts = [chat_model.prompt([{"role": "user", "content": text}]) for text in ("a longer question", "b", "c d")]
    alone = [chat_model.sample([prompt], greedy, 1)[0] for prompt in prompts]
    assert chat_model.sample(prompts, greedy, 3) == alone
    assert chat_model.sample(prompts, greedy, 2) == alone


def test_the_longest_prompt_of_a_batch_does_not_limit_the_others(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_model = ChatModel.load(str(chat_folder))
    greedy = Sampling(temperature=0, max_new_tokens=12)
    prompts = [
        chat_model.prompt([{"role": "user", "content": text}]) for text in ("a much longer question", "b", "c d")
    ]
    longest = max(len(ids) for ids in chat_model.tokenizer(prompts, add_special_tokens=False)["input_ids"])
    monkeypatch.setattr(chat_model.model.config, "max_position_embeddings", longest + 2)
    alone = [chat_model.sample([prompt], greedy, 1)[0] for prompt in prompts]
    assert chat_model.sample(prompts, greedy, 3) == chat_model.sample(prompts, greedy, 2) == alone
    assert len(alone[1][0]) > len(alone[0][0])


def test_a_full_conversation_is_refused_and_kept(chat_folder: Path) -> None:
    session = Session(ChatModel.load(str(chat_folder)), Sampling(), Console(file=io.StringIO()))
    with pytest.raises(ModelError, match=r"512 positions.*/reset"):
        session.say("w " * 400)
    assert session.turns == []


def test_one_shot_command(chat_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", str(chat_folder), "--prompt=Hi", "--max-new-tokens=5", "--temperature=0", "--no-think"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert len(first) > 1
    assert main(arguments) == 0
    assert capsys.readouterr().out == first


def test_bad_input_exits_with_one_message(
    base_model: Path, chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tools.json").write_text("{}")
    table = [
        (["/no/such/model"], "There is no model folder /no/such/model"),
        ([str(base_model)], "has no chat template"),
        ([str(chat_folder), "--tools", "/no/tools.json"], "/no/tools.json cannot be read"),
        ([str(chat_folder), "--tools", str(tmp_path / "tools.json")], "must hold a JSON list"),
    ]
    for arguments, message in table:
        assert main(["chat", *arguments, "--prompt", "Hi"]) == 2
        assert message in capsys.readouterr().err


def test_released_defaults(chat_folder: Path) -> None:
    assert (Sampling().temperature, Sampling().top_p) == (0.6, 0.95)
    saved = json.loads((chat_folder / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.95, True)
    assert AutoTokenizer.from_pretrained(chat_folder).eos_token == "<|im_end|>"
