"""Recipes: the typed description of every run.

`load_recipe` reads a YAML file (with `extends:` and `${VAR:-default}`), applies `section.key=value` overrides,
validates everything in one place and returns a frozen `Recipe`; `load_as` does the same for other schemas. This
package needs neither torch nor nanotron, so that a preflight takes a fraction of a second and every package may import
it.
"""

from foundation.recipe.architecture import ModelConfig
from foundation.recipe.errors import Problem, RecipeError
from foundation.recipe.loading import load_as, load_recipe
from foundation.recipe.schema import DataStage, Recipe
from foundation.recipe.section import Section

__all__ = ["DataStage", "ModelConfig", "Problem", "Recipe", "RecipeError", "Section", "load_as", "load_recipe"]
