"""Runnable recipes for the tasks of the paper, over one small training loop.

A recipe is data (`recipe.py`, `recipes/`): model, loader, loss, regularizer, hyperparameters.
`methods.py` turns a method's hyperparameters into an optax transformation, `loop.py` trains,
`report.py` writes what a run leaves behind, `train.py` and `compare.py` are the commands.
"""
