"""What the official SmolLM3 template makes of system texts, and where ours decides otherwise on purpose.

The facts were measured by rendering each text with the chat_template of huggingface/alignment-handbook's
recipes/smollm3/sft/sft.yaml (commit 61d7a82), not with ours. docs/chat_template.md gives the reasons of what differs.
"""

from posttrain.template import EMPTY_THINK_BLOCK

Decision = tuple[str, str, str | None]
"""Mode with enable_thinking true, with false, and the instructions that are left, None for the default ones."""

SYSTEM_TEXTS: dict[str, Decision] = {
    "/no_think": ("no_think", "no_think", None),
    "/think": ("think", "think", None),
    "Be kind. /no_think": ("no_think", "no_think", "Be kind."),
    "/no_think Be kind.": ("no_think", "no_think", "Be kind."),
    "Be /no_think kind.": ("no_think", "no_think", "Be  kind."),
    "Be kind.\n/no_think": ("no_think", "no_think", "Be kind."),
    "Be kind.\n/no_think\nBe brief.": ("no_think", "no_think", "Be kind.\n\nBe brief."),
    "/think /no_think": ("no_think", "no_think", None),
    "/no_think /think": ("no_think", "no_think", None),
    "Be kind. /no_think.": ("no_think", "no_think", "Be kind. ."),
    "/no_think, and be kind.": ("no_think", "no_think", ", and be kind."),
    "Be kind; /no_think!": ("no_think", "no_think", "Be kind; !"),
    "Be kind./no_think": ("no_think", "no_think", "Be kind."),
    'Mode: "/no_think".': ("no_think", "no_think", 'Mode: "".'),
    "(/no_think)": ("no_think", "no_think", "()"),
    "Be kind.\t/no_think": ("no_think", "no_think", "Be kind."),
    "Be kind.\r\n/no_think\r\n": ("no_think", "no_think", "Be kind."),
    "简短/no_think": ("no_think", "no_think", "简短"),
    "Files lie in /thinking": ("think", "think", "Files lie in ing"),
    "See a/think": ("think", "think", "See a"),
    "/no_think/": ("no_think", "no_think", "/"),
    "-/no_think": ("no_think", "no_think", "-"),
    "/No_Think": ("think", "no_think", "/No_Think"),
    "/NO_THINK": ("think", "no_think", "/NO_THINK"),
    "Reason in <think></think>.": ("think", "think", "Reason in <think><>."),
    "Only this. /system_override": ("think", "no_think", "OVERRIDE Only this."),
    "/system_override": ("think", "no_think", "OVERRIDE "),
    "/system_override /no_think Only this.": ("no_think", "no_think", "OVERRIDE   Only this."),
    "/system_override.": ("think", "no_think", "OVERRIDE ."),
    "Be kind.": ("think", "no_think", "Be kind."),
    " Be kind. \n": ("think", "no_think", "Be kind."),
    "\n\nBe kind.": ("think", "no_think", "Be kind."),
    "": ("think", "no_think", None),
    "/think\n": ("think", "think", None),
    "x /no_think_y": ("no_think", "no_think", "x _y"),
    "/no_think<br>": ("no_think", "no_think", "<br>"),
    "/no_thinking": ("no_think", "no_think", "ing"),
    "use /no_think, never /think": ("no_think", "no_think", "use , never"),
    "/no_think\t": ("no_think", "no_think", None),
    "Line one\r\n/think": ("think", "think", "Line one"),
    "/no_think—kurz": ("no_think", "no_think", "—kurz"),
    "Sois bref, /no_think; merci": ("no_think", "no_think", "Sois bref, ; merci"),
    "[/no_think]": ("no_think", "no_think", "[]"),
    "/no_think:": ("no_think", "no_think", ":"),
    "a  /no_think  b": ("no_think", "no_think", "a    b"),
    "/think/no_think": ("no_think", "no_think", None),
}

OURS: dict[str, Decision] = {
    "Be /no_think kind.": ("no_think", "no_think", "Be kind."),
    "Files lie in /thinking": ("think", "no_think", "Files lie in /thinking"),
    "See a/think": ("think", "no_think", "See a/think"),
    "/no_think/": ("think", "no_think", "/no_think/"),
    "Reason in <think></think>.": ("think", "no_think", "Reason in <think></think>."),
    "/system_override /no_think Only this.": ("no_think", "no_think", "OVERRIDE Only this."),
    "x /no_think_y": ("think", "no_think", "x /no_think_y"),
    "/no_thinking": ("think", "no_think", "/no_thinking"),
    "a  /no_think  b": ("no_think", "no_think", "a   b"),
    "/think/no_think": ("think", "no_think", "/think/no_think"),
}


def expected_of(text: str, thinking: bool) -> tuple[str, str | None]:
    """Mode and instructions that our template has to decide on."""
    with_thinking, without, instructions = OURS.get(text, SYSTEM_TEXTS[text])
    return (with_thinking if thinking else without), instructions


def decided(rendered: str) -> tuple[str, str | None]:
    """Mode and instructions, read out of a text of ours with its generation prompt."""
    mode = "no_think" if rendered.endswith(EMPTY_THINK_BLOCK) else "think"
    system = rendered.removeprefix("<|im_start|>system\n").partition("<|im_end|>\n<|im_start|>user\n")[0]
    metadata, heading, instructions = system.partition("## Instructions\n")
    if not heading:
        return mode, f"OVERRIDE {metadata}"
    assert f"Reasoning mode: /{mode}\n" in metadata
    return mode, None if instructions.startswith("You are a helpful assistant. ") else instructions
