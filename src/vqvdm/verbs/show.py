"""`vqvdm recipe show` and `vqvdm recipe list`: what a recipe says, and which there are."""

from __future__ import annotations

from vqvdm.recipe import Recipe
from vqvdm.recipe_io import packaged_names


def show(recipe: str, *overrides: str) -> None:
    """Print every number of a recipe as YAML, after its overrides.

    Parameters
    ----------
    recipe
        A packaged name (see `vqvdm recipe list`), a YAML file, or the folder of a run.
    overrides
        Changes as key=value with dotted keys, such as tokenizer.training.steps=500.
    """
    print(Recipe.load(recipe, overrides, check_models=True).to_yaml(), end="")


def names() -> None:
    """Print the packaged recipes, one a line."""
    width = max(map(len, packaged_names()))
    for name in packaged_names():
        print(f"{name:<{width}}  {Recipe.load(name).description}")
