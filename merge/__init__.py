"""Model merging: the soup of several APO checkpoints, and the linear merge with a mid-training checkpoint.

mergekit does the arithmetic, lazily; this package refuses what mergekit would merge wrongly (`checkpoint`), writes the
result atomically (`average`), recomputes it in float64 (`verify`), picks the weights (`soup`, `sweep`) and says in a
manifest what went in. `run` does both stages, `sweep` draws the curve over mixing weights; scores come from whatever
the caller gives (`scores`).
"""
