"""The merge recipe: what is averaged, with which weights, and where the result goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from foundation.recipe import Section, load_as


class Ingredient(Section):
    path: str = Field(description="Folder of a transformers checkpoint; a pattern (apo/checkpoint-*) gives several.")
    weight: float | None = Field(None, gt=0, description="Share in a weighted soup; only with method: weighted.")


class Soup(Section):
    method: Literal["uniform", "weighted", "greedy"] = Field(
        "uniform", description="Equal weights, given weights, or greedy selection by the evaluation suites."
    )
    checkpoints: list[Ingredient] = Field(min_length=1, description="The checkpoints that are averaged.")
    parent: str | None = Field(
        None, description="The checkpoint that tokenizer, chat template and configs are copied from; default: the last."
    )
    output: str = Field(description="Folder of the soup.")

    @model_validator(mode="after")
    def _weights_fit_the_method(self) -> Self:
        weights = [ingredient.weight for ingredient in self.checkpoints]
        if self.method != "weighted" and any(weight is not None for weight in weights):
            raise ValueError(f"weights are given but method is {self.method}; set method: weighted or remove them")
        if self.method == "weighted":
            if any(weight is None for weight in weights):
                raise ValueError("method: weighted needs a weight for every checkpoint")
            total = sum(weight for weight in weights if weight is not None)
            if abs(total - 1) > 1e-6:
                raise ValueError(f"the weights sum to {total:g}; they must sum to 1")
        return self


class Linear(Section):
    mid_training: str = Field(description="Checkpoint of the mid-training, with its long context intact.")
    soup_weight: float = Field(
        0.9, ge=0, le=1, description="Share of the soup; the mid-training checkpoint has the rest."
    )
    output: str = Field(description="Folder of the merged model.")


class Evaluation(Section):
    recipe: str = Field(description="Evaluation recipe, for greedy selection and the sweep.")
    suites: list[str] = Field(min_length=1, description="Suites whose scores decide.")


class Sweep(Section):
    soup_weights: list[float] = Field(
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0], min_length=2, description="Shares of the soup that are evaluated."
    )
    output: str = Field(description="Folder of the sweep's JSON and plot.")

    @model_validator(mode="after")
    def _weights_are_shares(self) -> Self:
        if any(not 0 <= weight <= 1 for weight in self.soup_weights):
            raise ValueError("every weight lies between 0 and 1")
        if len(set(self.soup_weights)) < len(self.soup_weights):
            raise ValueError("a weight is given twice")
        return self


class MergeRecipe(Section):
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Of the written weights; sums are float32.")
    max_shard_bytes: int = Field(
        2_000_000_000, ge=100_000, description="Largest weight file; memory use follows it (mergekit holds one shard)."
    )
    soup: Soup
    linear: Linear | None = None
    evaluation: Evaluation | None = None
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _evaluation_is_there_if_needed(self) -> Self:
        if self.soup.method == "greedy" and self.evaluation is None:
            raise ValueError("soup.method: greedy needs the section evaluation (recipe and suites)")
        if self.sweep is not None and (self.evaluation is None or self.linear is None):
            raise ValueError("sweep needs the sections linear and evaluation")
        return self


def load_merge_recipe(path: str | Path, overrides: Sequence[str] = ()) -> MergeRecipe:
    """Read and validate a merge recipe; `extends:`, `${VAR:-default}` and overrides work as in every recipe.

    Raises:
        RecipeError: naming every wrong key with file, line and fix.
    """
    return load_as(MergeRecipe, path, overrides)
