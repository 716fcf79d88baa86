"""The cleaning that every source gets. What is specific to a source is a step of its own."""

import re

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

_UNWANTED = re.compile("[\x00\ud800-\udfff\ufeff]")  # NUL, halves of surrogate pairs, byte order marks


class Clean(BaseFilter):
    """Makes the text valid Unicode with Unix line ends, and drops documents shorter than `min_characters`."""

    name = "Clean"

    def __init__(self, min_characters: int) -> None:
        super().__init__()
        self.min_characters = min_characters

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        doc.text = clean_text(doc.text)
        return True if len(doc.text.strip()) >= self.min_characters else (False, "too_short")


def clean_text(text: str) -> str:
    return _UNWANTED.sub("", text.replace("\r\n", "\n"))
