"""Model merging: the soup of several APO checkpoints, and the linear merge with a mid-training checkpoint.

mergekit does the arithmetic, lazily; this package refuses what mergekit would merge wrongly (`checkpoint`), writes the
result atomically (`average`), recomputes it in float64 (`verify`), picks the weights (`soup`, `sweep`) and says in a
manifest what went in. `python -m merge RECIPE` runs both stages, `python -m merge.sweep RECIPE` draws the curve over
mixing weights.
"""
