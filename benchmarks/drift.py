"""How far the float32 accumulators of dual averaging drift from exact sums.

    python -m benchmarks.drift [--steps 10000000]

V = sum of s_t g_t and U = sum of s_t g_t^2 with s_t = sqrt(t) and g = 0.1 + noise, in float32 as a state has them, beside
the same in float64; largest relative difference of eight entries. The metric is the cube root of U.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

ENTRIES, CHUNK = 8, 100_000


def step(sums: Any, t: jax.Array) -> tuple[Any, None]:
    key, *own = sums
    key, draw = jax.random.split(key)
    g = 0.1 + jax.random.normal(draw, (ENTRIES,), jnp.float32)
    s = jnp.sqrt(t).astype(jnp.float32)
    terms = (s * g, s * g * g)
    exact = (s.astype(jnp.float64) * g, s.astype(jnp.float64) * g * g)
    return (key, *(x + term for x, term in zip(own, (*terms, *exact), strict=True))), None


@jax.jit
def chunk(sums: Any, first: jax.Array) -> Any:
    return jax.lax.scan(step, sums, first + jnp.arange(1.0, CHUNK + 1))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000_000)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    zeros = [jnp.zeros(ENTRIES, dtype) for dtype in ("float32", "float32", "float64", "float64")]
    sums = (jax.random.key(0), *zeros)
    for first in range(0, args.steps, CHUNK):
        sums = chunk(sums, jnp.float64(first))
        done = first + CHUNK
        if done in (args.steps, *(10**k for k in range(5, 12))):
            _, v, u, v_exact, u_exact = sums
            off = lambda x, exact: f"{float(jnp.max(jnp.abs(x / exact - 1))):.1e}"
            print(
                f"{done:>12,} steps: V {off(v, v_exact)}, U {off(u, u_exact)}, "
                f"cube root of U {off(jnp.cbrt(u.astype(jnp.float64)), jnp.cbrt(u_exact))}"
            )


if __name__ == "__main__":
    main()
