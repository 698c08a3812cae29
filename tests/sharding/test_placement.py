"""Where the state lies: a share on each device, beside what other transformations keep; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ramda_jax as rj
from benchmarks import shapes
from ramda_jax import state as states
from tests.sharding.meshes import DEVICES, auto_mesh, cut_as, is_laid


@pytest.mark.parametrize("name", ["vgg19", "resnet50", "transformer_xl", "vit", "fashion_mlp"])
def test_a_device_of_eight_holds_an_eighth_of_the_state_and_no_more_than_2_percent_besides(name):
    params = shapes.abstract_params(name)
    tx = rj.ramda(1e-2, shapes.regularizer(name, 1e-3), placement=rj.Placement("data", auto_mesh()))
    state, shardings = jax.eval_shape(tx.init, params), rj.state_sharding(tx, params)
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True))
    all_bytes = sum(x.size * x.dtype.itemsize for x, _ in pairs)
    shard = lambda x, s: np.prod(s.shard_shape(x.shape), dtype=float) * x.dtype.itemsize
    assert sum(shard(x, s) for x, s in pairs) <= (1 / 8 + 0.02) * all_bytes


def test_other_transformations_in_a_chain_keep_their_state_with_the_parameters():
    mesh = auto_mesh()
    params = {"a": {"kernel": jnp.ones((16, 4))}, "b": {"kernel": jnp.ones((8, 4))}}
    ours = rj.ramda(0.1, rj.GroupLasso(0.1), placement=rj.Placement("data", mesh))
    labels = {"a": {"kernel": "ours"}, "b": {"kernel": "theirs"}}
    tx = optax.chain(
        optax.trace(0.9), optax.partition({"ours": ours, "theirs": optax.adam(1e-3)}, labels)
    )
    params = jax.device_put(params, NamedSharding(mesh, P()))
    shardings = rj.state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert cut_as(shardings[0].trace["a"]["kernel"]) == P()
    # Asked for, because the compiler may lay what is not asked for as it likes.
    state = jax.jit(tx.update, out_shardings=(None, shardings))(params, state, params)[1]
    assert is_laid(state, shardings)
    (mine,) = states.find_states(state)
    assert cut_as(mine.method.anchor["a"]["kernel"]) == P("data")


def test_without_a_placement_the_state_lies_as_the_parameters_do():
    mesh = auto_mesh()
    params = {"kernel": jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P("data")))}
    for psi, warm in (
        (rj.GroupLasso(0.1), P("data")),
        (rj.NuclearNorm(0.1), P(None, "data")),
    ):
        found = rj.state_sharding(rj.ramda(0.1, psi), params)
        assert cut_as(found.method.grad_sum["kernel"]) == P("data")
        assert cut_as(found.solver.warm[0]) == warm
        assert cut_as(found.count) == P()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda mesh: rj.Placement("model", mesh), "no axis 'model'"),
        (lambda mesh: rj.Placement(3, mesh), r"Placement\.axis must be"),
        (lambda mesh: rj.Placement("data", "cpu"), r"Placement\.mesh must be"),
        (lambda mesh: rj.Placement("data", params={"kernel": P()}), "needs a mesh"),
        (lambda mesh: rj.Placement("data", mesh, {"kernel": "data"}), "at 'kernel' must be"),
        (lambda mesh: rj.ramda(0.1, None, placement=mesh), "placement must be None or a Placement"),
        (
            lambda mesh: rj.ramda(
                0.1, None, placement=rj.Placement("data", mesh, {"bias": P()})
            ).init({"kernel": jnp.ones((8, 2))}),
            "says nothing of 'kernel'",
        ),
        (
            lambda mesh: rj.state_sharding(rj.ramda(0.1, None), {"kernel": jnp.ones((8, 2))}),
            "needs a mesh",
        ),
        (
            lambda mesh: rj.state_sharding(
                rj.ramda(0.1, None, placement=rj.Placement("model")), {"kernel": jnp.ones(8)}, mesh
            ),
            "no axis 'model'",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(auto_mesh())


def test_a_whole_state_inside_pmap_is_refused():
    tx = rj.ramda(0.1, rj.GroupLasso(0.1), placement=rj.Placement("data"))
    params = {"kernel": jnp.ones((8, 2))}
    stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * DEVICES), tree)
    with pytest.raises(
        ValueError, match=r"'kernel' has shape \(8, 2\) where \(1, 2\) was expected"
    ):
        jax.pmap(tx.update, axis_name="data")(stack(params), stack(tx.init(params)), stack(params))


def test_cut_parameters_inside_pmap_are_refused():
    where = rj.Placement("data", auto_mesh(), {"kernel": P()})
    tx = rj.ramda(0.1, rj.GroupLasso(0.1), placement=where)
    with pytest.raises(ValueError, match="inside shard_map or pmap parameters are whole"):
        jax.pmap(tx.init, axis_name="data")({"kernel": jnp.ones((DEVICES, 8, 2))})
