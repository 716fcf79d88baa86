"""Reasoning text is taken out of an answer before it is scored; an answer that never leaves its reasoning is wrong."""

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Answer:
    """What is scored. `text` is empty if the reasoning was not closed."""

    text: str
    unclosed: bool


def split_answer(generated: str, prompt: str = "") -> Answer:
    """The text after the last reasoning block.

    `prompt` is looked at only for its end: a template may open the block itself, so that the generated text starts
    inside it. A stray closing tag ends reasoning as well.
    """
    starts_inside = prompt.rstrip().endswith(OPEN)
    _, close, after = generated.rpartition(CLOSE)
    rest = after if close else generated
    if OPEN in rest or (starts_inside and not close):
        return Answer("", unclosed=True)
    # Only line breaks go: the indentation of a code completion belongs to the answer.
    return Answer(rest.lstrip("\n") if close else rest, unclosed=False)
