"""Words, for comparing texts: lower-cased, without punctuation; scripts without spaces give one word per character.

Numbers stay what they are. (datatrove's defaults fold all numbers into one, which makes texts of mathematics or code
that differ in their numbers into duplicates, and need spaCy for English.)
"""

import re

from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

NORMALISATION = TextNormConfig(norm_numbers=False)
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class PlainWords(WordTokenizer):
    """`words_of` in the form in which datatrove's MinHash takes it."""

    def word_tokenize(self, text: str) -> list[str]:
        return words_of(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError
