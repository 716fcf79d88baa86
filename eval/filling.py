"""Prompts of an exact length: how much filling fits into a number of tokens."""

from collections.abc import Callable
from typing import Any


def fill_to_length(build: Callable[[int], str], tokenizer: Any, limit_tokens: int) -> tuple[str, int]:
    """`build(amount)` with the largest amount whose text has at most `limit_tokens` tokens, and its token count.

    Lengths grow nearly in proportion to the amount, so interpolating between the bounds takes a handful of
    tokenisations where bisection takes one per bit.

    Raises:
        ValueError: if not even `build(0)` fits.
    """

    def length(amount: int) -> int:
        # verbose: else transformers warns of every text that is longer than the model's window, as trials are
        return len(tokenizer.encode(build(amount), add_special_tokens=False, verbose=False))

    low, low_tokens = 0, length(0)
    if low_tokens > limit_tokens:
        raise ValueError(f"the question alone has {low_tokens} tokens")
    high, high_tokens = 1, length(1)
    while high_tokens <= limit_tokens:
        # Aim 2 % above the limit, at most 64 times as far: the first estimates come from few units.
        slope = max((high_tokens - low_tokens) / (high - low), 0.1)
        aimed = high + int((1.02 * limit_tokens - high_tokens) / slope) + 1
        low, low_tokens = high, high_tokens
        high = min(max(aimed, high + 1), 64 * high)
        high_tokens = length(high)
    while high - low > 1:
        share = (limit_tokens - low_tokens) / max(high_tokens - low_tokens, 1)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        tokens = length(middle)
        if tokens <= limit_tokens:
            # What is left after a good guess is one unit: look there first.
            low, low_tokens = middle, tokens
            if low + 1 < high and (above := length(low + 1)) > limit_tokens:
                high, high_tokens = low + 1, above
        else:
            high, high_tokens = middle, tokens
    return build(low), low_tokens
