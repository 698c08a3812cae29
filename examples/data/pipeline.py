"""Grain pipelines: a source with random access, a sharded shuffle, transformations, batches.

Everything random is a function of the seed and the position, so a pipeline's whole state is the
number of batches already taken, and a run that resumes sees the batches it would have seen.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import jax
import numpy as np

from examples.data.base import Batch, Dataset, Stream

Example = tuple[Any, Any]
"""Inputs and targets of one example: arrays, or trees of arrays."""


class Shard(NamedTuple):
    """The part of each pass that one host reads.

    Attributes:
        host: which one, from 0.
        hosts: how many there are.
    """

    host: int = 0
    hosts: int = 1


def this_process() -> Shard:
    return Shard(jax.process_index(), jax.process_count())


class Source(Protocol):
    """Records with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    transform: Callable[[Any, np.random.Generator], Example],
    shard: Shard | None = None,
    stack: Callable[[Sequence[Example]], Batch] | None = None,
) -> grain.MapDataset[Batch]:
    """One pass of full batches in random order; `repeat` draws order and transformations anew.

    Args:
        source: records, with random access.
        batch_size: examples a batch, of this host.
        seed: of the order and of the transformations.
        transform: (record, random numbers) -> example.
        shard: the part of the pass to read; shards are disjoint, of one size, and follow one
            shuffle of the whole set. The default is this JAX process's part.
        stack: examples -> batch; the default stacks their arrays.
    """
    shard = shard or this_process()
    order = grain.MapDataset.source(source).seed(seed).shuffle()
    # Shards of one size: hosts that take steps together have to run out of batches together.
    part = order[shard.host : len(source) - len(source) % shard.hosts : shard.hosts]
    return part.random_map(transform).batch(
        batch_size, drop_remainder=True, batch_fn=stack or stack_examples
    )


def batches_in_order(
    source: Source,
    batch_size: int,
    transform: Callable[[Any], Example],
    stack: Callable[[Sequence[Example]], Batch] | None = None,
    shard: Shard | None = None,
) -> grain.MapDataset[Batch]:
    """All records in order; the last batch is filled up with the last example at weight 0.

    Args:
        source: records, with random access.
        batch_size: examples a batch, of this host.
        transform: record -> example.
        stack: examples -> batch; the default stacks their arrays.
        shard: whose rows of the batches of all hosts; the default is this JAX process's.
    """
    shard = shard or this_process()
    batches = -(-len(source) // (batch_size * shard.hosts))
    last = len(source) - 1

    def position(index: int) -> int:
        batch, row = divmod(index, batch_size)
        return (batch * shard.hosts + shard.host) * batch_size + row

    def example(index: int) -> tuple[Example, bool]:
        return transform(source[min(position(index), last)]), position(index) <= last

    def stack_with_weights(examples: Sequence[tuple[Example, bool]]) -> Batch:
        rows, real = zip(*examples, strict=True)
        batch = (stack or stack_examples)(rows)
        return batch._replace(weights=batch.weights * np.array(real, np.float32))

    rows = grain.MapDataset.range(batches * batch_size).map(example)
    return rows.batch(batch_size, batch_fn=stack_with_weights)


def stack_examples(examples: Sequence[Example]) -> Batch:
    """Examples of one shape, stacked, at weight 1."""
    inputs, targets = (
        jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
        for parts in zip(*examples, strict=True)
    )
    return Batch(inputs, targets, np.ones(len(examples), np.float32))


def iterate(
    batches: grain.MapDataset[Batch], threads: int, buffer: int = 16
) -> grain.DatasetIterator[Batch]:
    """An iterator with a state; batches are made ahead in `threads` threads."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer if threads else 0)
    return iter(batches.to_iter_dataset(options))


class Rows:
    """Inputs and targets of a set in memory, as a source of examples."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Example:
        return self.inputs[index], self.targets[index]


def as_stream(dataset: Dataset) -> Stream:
    """A set in host memory, fed to the device batch by batch instead of kept there."""
    train = Rows(dataset.train_inputs, dataset.train_targets)
    test = Rows(dataset.test_inputs, dataset.test_targets)
    unchanged: Callable[[Example], Example] = lambda example: example
    return Stream(
        train=lambda size, seed: training_batches(train, size, seed, lambda example, _: example),
        train_in_order=lambda size: batches_in_order(train, size, unchanged),
        test=lambda size: batches_in_order(test, size, unchanged),
        train_examples=len(train),
        test_examples=len(test),
        source=f"{dataset.source}, streamed",
        threads=1,
    )
