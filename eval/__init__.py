"""Evaluation: suites of benchmarks, run by lighteval on local data, with typed results and one comparison table.

`evaluate` runs suites on a model; `data` puts what they need on disk (our small editions, or the real sets from the
hub), so that evaluating itself never needs a network; `report` compares models, `curve` the checkpoints of a run.
"""
