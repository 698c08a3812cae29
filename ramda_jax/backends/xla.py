"""All blocks together, one loop for the groups of all of them: whatever the partitioner can cut."""

from ramda_jax import solvers
from ramda_jax.step import Inputs, Job, Outputs, step


def run(job: Job, inputs: Inputs) -> Outputs:
    """b and D are recomputed in every pass: no parameter-sized temporaries, a pass over the accumulators per iteration."""
    return step(job, inputs, solvers.together)
