"""From raw sources to tokenised, shuffled shards with manifests.

`smollm3 data RECIPE` prepares every source of a recipe. `registry` says what the sources are, `pipeline`
what happens to one of them (on datatrove's executors), `shards` what lies on disk afterwards and how it is verified.
`smollm3 audit RECIPE` shows what the recipe takes from them.
"""
