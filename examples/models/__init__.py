"""The models of the paper in Flax NNX, one file per family.

What they have in common, and what a training loop may rely on:

- Every constructor takes `dtype`, the type computed in; parameters are float32 whatever it is, and
  what goes into a loss comes out in float32. Inputs are channels-last.
- Leaves called `kernel` are what the paper regularizes, with their inputs on axis -2; biases, norms,
  embeddings and learned tokens have other names. `rj.kernels(regularizer)` is thus the right rule.
- `model.train()` and `model.eval()` switch dropout and batch norm. Batch statistics are
  `nnx.BatchStat`, dropout keys `nnx.RngState`: `nnx.split(model, nnx.Param, ...)` takes the
  parameters apart from them.
- `nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0)))` builds any of them without allocating it.
"""
