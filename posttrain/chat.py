"""Talk to a model in the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.text import Text
from transformers.utils import logging

from foundation.json_text import loads
from foundation.terminal import Terminal
from posttrain.generate import ChatModel, ModelError, Sampling
from posttrain.template import EMPTY_THINK_BLOCK, Reply, parse_reply

HELP = """/think, /no_think   reasoning on or off from here
/system TEXT        set the system message
/reset              forget the conversation
/quit               leave (or Ctrl-D); Ctrl-C stops a reply"""


class Session:
    """A conversation: its messages, its mode, and how replies are shown."""

    def __init__(
        self,
        chat_model: ChatModel,
        sampling: Sampling,
        console: Terminal,
        *,
        thinking: bool = True,
        system: str = "",
        tools: list[Any] | None = None,
    ) -> None:
        self.chat_model = chat_model
        self.sampling = sampling
        self.console = console
        self.thinking = thinking
        self.system = system
        self.tools = tools
        self.turns: list[dict[str, str]] = []

    def command(self, line: str) -> bool:
        """Carry out a slash command; False if `line` is none and has to be said to the model."""
        word, _, rest = line.partition(" ")
        if word in ("/think", "/no_think") and not rest:
            self.thinking = word == "/think"
            self.console.print(f"reasoning {'on' if self.thinking else 'off'}", style="dim")
        elif word == "/system":
            self.system = rest.strip()
            self.console.print("system message set" if self.system else "system message removed", style="dim")
        elif word == "/reset":
            self.turns.clear()
            self.console.print("conversation forgotten", style="dim")
        elif word == "/help":
            self.console.print(HELP, style="dim")
        else:
            return False
        return True

    def say(self, text: str) -> Reply:
        """Send a user message, stream the reply, remember both.

        Raises:
            ModelError: the conversation no longer fits the model; it is left as it was.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": text}]
        prompt = self.chat_model.prompt(messages, enable_thinking=self.thinking, xml_tools=self.tools)
        said: list[str] = []
        printer = _ThinkingPrinter(self.console)

        def show(piece: str) -> None:
            said.append(piece)
            printer.write(piece)

        try:
            self.chat_model.stream(prompt, self.sampling, show)
        except KeyboardInterrupt:
            self.console.print(" [stopped]", style="dim")
        self.console.print()
        content = "".join(said)
        self.turns += [messages[-1], {"role": "assistant", "content": content}]
        # The template has said the empty think block already when reasoning is off.
        reply = parse_reply(f"{EMPTY_THINK_BLOCK}{content}" if prompt.endswith(EMPTY_THINK_BLOCK) else content)
        self._show_calls(reply)
        return reply

    def _show_calls(self, reply: Reply) -> None:
        for call in reply.tool_calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False, indent=2)
            self._show_call(arguments, f"tool call: {call.name}", "yellow")
        for code in reply.code:
            self._show_call(code, "python call", "yellow")
        for block in reply.malformed_calls:
            self._show_call(block, "malformed tool call", "red")

    def _show_call(self, text: str, title: str, colour: str) -> None:
        # As Text: a panel reads markup in its title, in time with the square of its length, and `[/x]` is an error.
        self.console.print(Panel(Text(text), title=Text(title), border_style=colour))


class _ThinkingPrinter:
    """Prints streamed text, dim while the model thinks."""

    def __init__(self, console: Terminal) -> None:
        self.console = console
        self.thinking = False

    def write(self, piece: str) -> None:
        self.thinking = self.thinking or "<think>" in piece
        style = "dim italic" if self.thinking else ""
        self.console.print(piece, end="", style=style, soft_wrap=True)
        self.thinking = self.thinking and "</think>" not in piece


def load_tools(path: Path | None) -> list[Any] | None:
    """A JSON list of function schemas.

    Raises:
        ModelError: the file is absent or holds no list.
    """
    if path is None:
        return None
    try:
        tools = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The tools file {path} cannot be read: {error}") from None
    if not isinstance(tools, list):
        raise ModelError(f"The tools file {path} must hold a JSON list of function schemas.")
    return tools


def chat(
    model: str, sampling: Sampling, *, thinking: bool, system: str, tools: Path | None, prompt: str | None
) -> None:
    """Talk until the user leaves or, with a `prompt`, print the reply to it alone.

    Raises:
        ModelError: `model` cannot chat, or `tools` is no list of function schemas.
    """
    console, functions = Terminal(), load_tools(tools)
    logging.disable_progress_bar()
    session = Session(ChatModel.load(model), sampling, console, thinking=thinking, system=system, tools=functions)
    if prompt is not None:
        session.say(prompt)
        return
    console.print(f"{model}   /help lists the commands", style="dim")
    _converse(session)


def _converse(session: Session) -> None:
    while True:
        try:
            line = session.console.input(Text("> ", "bold cyan")).strip()
        except (EOFError, KeyboardInterrupt):
            session.console.print()
            return
        if line == "/quit":
            return
        if not line or session.command(line):
            continue
        try:
            session.say(line)
        except ModelError as error:
            session.console.print(str(error), style="red")
