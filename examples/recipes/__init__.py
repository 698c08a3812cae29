"""The recipes, by their names on the command line. A new one is a file here and an entry below."""

from examples.overrides import likely
from examples.recipe import Recipe, RecipeError
from examples.recipes import (
    asterisk_tacotron2,
    cifar_resnet50,
    cifar_vgg19,
    cifar_vit_mim,
    fashion_mnist_convnet,
    fashion_mnist_mlp,
    imagenet_resnet50,
    ljspeech_tacotron2,
    mnist_linear,
    sotu_transformer_xl,
    wikitext_transformer_xl,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        mnist_linear.RECIPE,
        fashion_mnist_mlp.RECIPE,
        fashion_mnist_convnet.RECIPE,
        *cifar_vgg19.RECIPES,
        *cifar_resnet50.RECIPES,
        imagenet_resnet50.RECIPE,
        *cifar_vit_mim.RECIPES,
        wikitext_transformer_xl.RECIPE,
        sotu_transformer_xl.RECIPE,
        ljspeech_tacotron2.RECIPE,
        asterisk_tacotron2.RECIPE,
    )
}


def find(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in RECIPES:
        raise RecipeError(
            f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}{likely(name, RECIPES)}"
        )
    return RECIPES[name]
