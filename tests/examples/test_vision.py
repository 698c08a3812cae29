"""Models and losses of the image tasks: sizes, what a masked image model sees, what counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from examples import classification
from examples.methods import ProxAdamW, ProxSSI
from examples.models import vit
from examples.models.layers import max_pool_2x2
from examples.recipes import RECIPES, cifar_vit_mim

# VGG19: 20,040,522 in the widespread version for CIFAR-10, whose convolutions have biases (5,504)
# that their batch norms make idle. ResNet50: torchvision's for ImageNet; for CIFAR those of the
# widespread version with a 3 x 3 stem. No count of the masked image model is published: it is that
# of the layers in paper.md, with patches of 4 x 4.
COUNTS = {
    "cifar_vgg19": 20_040_522 - 5_504,
    "cifar100_vgg19": 20_040_522 - 5_504 + 90 * 513,
    "cifar_resnet50": 23_520_842,
    "cifar100_resnet50": 23_705_252,
    "imagenet_resnet50": 25_557_032,
    "cifar_vit_mim": (
        (48 * 192 + 192)  # patches
        + 2 * 192  # class and mask tokens
        + 65 * 192  # positions
        + 4 * (4 * (192 * 192 + 192) + (192 * 768 + 768) + (768 * 192 + 192) + 4 * 192)  # blocks
        + 2 * 192  # the last norm
        + (192 * 48 + 48)  # decoder
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_has_as_many_parameters_as_the_published_one(name):
    model = nnx.eval_shape(lambda: RECIPES[name].model(nnx.Rngs(0), jnp.float32))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in params) == COUNTS[name]


@pytest.mark.parametrize("sides", [(8, 6), (7, 5)])
def test_pooling_is_that_of_flax_with_its_gradient(sides):
    x, weights = jax.random.normal(jax.random.key(0), (2, 3, *sides, 4))
    pool = lambda x: nnx.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(max_pool_2x2(x), pool(x))
    part = weights[:, : sides[0] // 2, : sides[1] // 2]
    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) * part))(x) for pool in (max_pool_2x2, pool)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_prox_ssi_takes_the_values_of_prox_adamw():
    pairs = [
        (recipe.methods["prox_ssi"], recipe.methods["prox_adamw"])
        for recipe in RECIPES.values()
        if "prox_ssi" in recipe.methods
    ]
    assert pairs
    for ssi, adamw in pairs:
        assert isinstance(ssi, ProxSSI)
        assert isinstance(adamw, ProxAdamW)
        assert (ssi.learning_rate, ssi.strength) == (adamw.learning_rate, adamw.strength)


def test_smoothing_is_cross_entropy_with_smoothed_labels():
    logits = jnp.array(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    labels = jnp.array([0, 3, 1, 2, 2])
    expected = optax.softmax_cross_entropy(logits, 0.9 * jax.nn.one_hot(labels, 4) + 0.1 / 4)
    smoothed = classification.smoothed_cross_entropy(0.1)
    np.testing.assert_allclose(smoothed(logits, labels), expected, rtol=1e-5)
    assert np.isnan(smoothed(logits, labels + 2)).sum() == 3  # classes that do not exist


# Masked image modelling


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


def test_training_hides_other_patches_each_time_and_evaluation_the_same(images):
    first, second = (cifar_vit_mim.hide(jax.random.key(seed), images) for seed in (0, 1))
    for hidden in (first, second, cifar_vit_mim.prepare(images)):
        assert (hidden.mask.sum(axis=1) == math.ceil(0.6 * 64)).all()
    assert (first.mask != second.mask).any()
    assert (first.images != second.images).any()
    assert (cifar_vit_mim.prepare(images).mask == cifar_vit_mim.prepare(images).mask).all()
    np.testing.assert_allclose(cifar_vit_mim.prepare(images).images, images / 127.5 - 1, atol=1e-6)
    assert (cifar_vit_mim.prepare(first).mask == first.mask).all()


def test_a_masked_image_model_does_not_see_what_is_hidden(images):
    model = cifar_vit_mim.Model(features=8, layers=1, heads=2, hidden=8)(nnx.Rngs(0), jnp.float32)
    inputs = cifar_vit_mim.prepare(images)
    hidden = vit.pixel_mask(inputs.mask, 4)
    fill = nnx.jit(lambda model, images: model(images, inputs.mask))
    pixels = fill(model, inputs.images)
    assert pixels.shape == images.shape
    assert (fill(model, jnp.where(hidden, 7.0, inputs.images)) == pixels).all()
    assert (fill(model, jnp.where(hidden, inputs.images, 7.0)) != pixels).any()


def test_only_hidden_pixels_count(images):
    wanted = cifar_vit_mim.prepare(images)
    hidden = vit.pixel_mask(wanted.mask, 4)
    loss = cifar_vit_mim.RECIPES[0].loss
    right = jnp.where(hidden, wanted.images, 99.0)
    np.testing.assert_array_equal(loss(cifar_vit_mim.Filled(right, wanted), None), 0)
    off = cifar_vit_mim.Filled(wanted.images + 0.25 * hidden, wanted)
    np.testing.assert_allclose(loss(off, None), 0.25, rtol=1e-5)


def test_patches_are_put_where_they_belong():
    mask = np.zeros((1, 64), bool)
    mask[0, 8 * 2 + 5] = True  # third row of patches, sixth column
    pixels = np.asarray(vit.pixel_mask(mask, 4))[0, :, :, 0]
    assert pixels.sum() == 16
    assert pixels[8:12, 20:24].all()
