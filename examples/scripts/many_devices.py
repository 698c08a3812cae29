"""Many devices: a batch and the optimizer's state cut over all there are. Eight fake ones on a CPU:

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m examples.scripts.many_devices
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import ramda_jax as rj

STEPS = 100


def apply(params, x):
    x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return x @ params["second"]["kernel"] + params["second"]["bias"]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()


def dense(rng, m, n):
    return {
        "kernel": rng.normal(size=(m, n)).astype("float32") / m**0.5,
        "bias": np.zeros(n, "float32"),
    }


def main():
    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype("float32"), labels
    rng = np.random.default_rng(0)
    params = {"first": dense(rng, 64, 128), "second": dense(rng, 128, 10)}

    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows_cut = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    # One line more than on one device: how the state is cut. Each device then solves the groups of its part.
    placement = rj.Placement("data", mesh)
    method = rj.ramda(
        regularizer=rj.GroupLasso(1e-3), placement=placement, **rj.stages(1e-2, total_steps=STEPS)
    )
    params = jax.device_put(params, everywhere)
    state = jax.jit(method.init, out_shardings=rj.state_sharding(method, params))(params)

    @jax.jit
    def step(params, state, x, y):
        gradients = jax.grad(loss)(params, x, y)
        updates, state = method.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        rows = rng.integers(1200, size=16 * devices)
        batch = jax.device_put((x[rows], y[rows]), rows_cut)
        params, state = step(params, state, *batch)

    # The parameters are on every device, the state's arrays are not:
    held = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state))
    whole = sum(a.nbytes for a in jax.tree.leaves(state))
    print(f"{devices} devices, each holds {held:,} of {whole:,} bytes of the optimizer's state")
    accuracy = float((apply(params, jnp.asarray(x[1200:])).argmax(-1) == y[1200:]).mean())
    print(f"test accuracy {accuracy:.3f}")
    sparsity = rj.summary(params, rj.GroupLasso(1e-3))["group_sparsity"]
    print(f"{sparsity:.0%} of the inputs zero")
    return accuracy, sparsity, held / whole


if __name__ == "__main__":
    main()
