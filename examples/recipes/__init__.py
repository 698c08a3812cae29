"""The recipes, by their names on the command line. A new one is a file here and an entry below."""

from examples.recipe import Recipe, RecipeError
from examples.recipes import fashion_mnist_convnet, fashion_mnist_mlp, mnist_linear

RECIPES: dict[str, Recipe] = {
    module.RECIPE.name: module.RECIPE
    for module in (mnist_linear, fashion_mnist_mlp, fashion_mnist_convnet)
}


def find(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise RecipeError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]
