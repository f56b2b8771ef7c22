"""What is asked for: recipe, loss, run, plan; and the recipes that are shipped."""

from mlbench.recipes.plan import Files, Plan, Request, make_plan
from mlbench.recipes.reading import load_recipe, recipe_names
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec

__all__ = [
    "Files",
    "LossSpec",
    "Plan",
    "Recipe",
    "Request",
    "RunSpec",
    "load_recipe",
    "make_plan",
    "recipe_names",
]
