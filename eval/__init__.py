"""Evaluation: suites of benchmarks, run by lighteval on local data, with typed results and one comparison table.

`python -m eval RECIPE --model FOLDER [--suite NAME]` evaluates; `python -m eval.data RECIPE --edition small|full` puts
the data of a recipe's suites on disk (our small editions, or the real sets from the hub), so that evaluating itself
never needs a network; `python -m eval.report FOLDER...` compares models.
"""
