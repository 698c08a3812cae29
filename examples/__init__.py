"""Runnable recipes for the tasks of the paper, over one small training loop.

| file | what it is |
| --- | --- |
| `recipe.py`, `recipes/`, `models/` | what a task is: data, model, loss, regularizer, hyperparameters |
| `overrides.py` | `field=value` on a command line |
| `methods.py` | a method's hyperparameters -> an optax transformation |
| `data/`, `download.py` | files on disk -> batches; public archives -> files on disk |
| `task.py` | a run as pure functions: first state, training step, evaluation of a batch |
| `parallel.py` | how a step runs on the devices there are |
| `in_memory.py`, `streaming.py` | the two ways to make epochs of steps |
| `loop.py`, `checkpoint.py` | epochs, their figures, and checkpoints between them |
| `digests.py`, `folder.py`, `interrupt.py`, `quiet.py` | what a run may meet: damage, full disks, other runs, signals |
| `report.py`, `plots.py` | what a run leaves behind |
| `compact.py`, `timing.py` | the trained model made smaller, compared, timed, exported |
| `classification.py`, `language.py`, `speech.py` | losses and metrics; text drawn from a model |
| `griffin_lim.py` | spectrograms -> sound |
| `train.py`, `compare.py`, `search.py`, `path.py`, `generate.py` | the commands |
"""
