"""The recipes, by their names on the command line. A new one is a file here and an entry below."""

from examples.recipe import Recipe, RecipeError
from examples.recipes import mnist_linear

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (mnist_linear.RECIPE,)}


def find(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise RecipeError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
