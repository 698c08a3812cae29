"""Every primitive of jax.lax has a rule, or is known to have none: a JAX that brings others is noticed."""

import jax

from ramda_jax.network.flat import names
from ramda_jax.network.flow import Flow, _Walker

# What flows through these is not followed: `describe` says so. Collectives, and what mixes all entries of what it reads.
WITHOUT = names(
    """after_all all_gather all_to_all approx_top_k custom_linear_solve dce_sink fft pmax pmin ppermute psum
    ragged_all_to_all select_and_gather_add select_and_scatter select_and_scatter_add stage"""
)


def test_every_primitive_has_a_rule_or_is_known_to_have_none():
    every = {getattr(jax.lax, name).name for name in dir(jax.lax) if name.endswith("_p")}
    walker = _Walker(Flow())
    unknown = {name for name in every if walker.rule(name) is None}
    assert unknown <= WITHOUT
