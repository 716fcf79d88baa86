"""From raw sources to tokenised, shuffled shards with manifests.

`python -m datapipes.prepare RECIPE` prepares every source of a recipe. `registry` says what the sources are, `pipeline`
what happens to one of them (on datatrove's executors), `shards` what lies on disk afterwards and how it is verified.
`python -m check.audit RECIPE` shows what the recipe takes from them.
"""
