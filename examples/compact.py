"""A trained model made smaller: what `python -m examples.train RECIPE ... --compact` ends with.

The structured point is compacted (`rj.compact`), evaluated whole and compact on the same batches,
timed whole and compact in turns, and exported: `compact.json` and `compact.zip`, which
`rj.load_compact` reads.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import ramda_jax as rj
from examples import classification, report
from examples.data import Batch, Dataset, Stream
from examples.data.pipeline import as_stream, iterate
from examples.folder import writing
from examples.loop import Fit
from examples.recipe import RecipeError
from examples.task import Task, add, make_model
from examples.timing import seconds_per_call, spread

SIZES = (1, 128)
"""Examples a call, of which latencies are measured."""

_TURNS = 15
_SECONDS = 0.05  # that a turn takes at least, however short a call
_PARAMS = "params/"


class Variables(NamedTuple):
    """What a model is called with besides its inputs; floating-point arrays of both are cut.

    Attributes:
        params: the parameters.
        model_state: batch statistics, dropout keys.
    """

    params: nnx.State
    model_state: nnx.State


@dataclass(frozen=True)
class Options:
    """What can be asked for.

    Attributes:
        new_statistics: from how many training batches the batch norms' statistics are estimated
            anew, at the structured point; 0 keeps those of training.
        multiple_of: numbers of channels are rounded up to multiples of it.
    """

    new_statistics: int = 0
    multiple_of: int = 1


class Smaller(NamedTuple):
    """A compact model.

    Attributes:
        one: for one example a call.
        many: for more; the same, unless the model is another program for one example alone.
    """

    one: rj.Compact
    many: rj.Compact

    def of(self, examples: int) -> rj.Compact:
        """For so many examples."""
        return self.one if examples == 1 else self.many


class Calls(NamedTuple):
    """The same model twice, each of (inputs, memory) -> (outputs, memory).

    Attributes:
        whole: as it was trained.
        compact: as it was cut.
    """

    whole: Callable[[Any, Any], Any]
    compact: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Comparison:
    """The same model evaluated whole and compact.

    Attributes:
        whole: loss, metrics and what derives from the loss, by name.
        compact: the same of the compact model.
        error: largest |difference| of their outputs, over the largest output.
        examples: how many were evaluated.
        ties: of a classifier: examples whose two largest outputs are no farther apart than twice the
            largest difference in that example, so that rounding decides.
        changed: of these, with another class.
    """

    whole: Mapping[str, float]
    compact: Mapping[str, float]
    error: float
    examples: int
    ties: int | None
    changed: int | None


@dataclass(frozen=True)
class Latency:
    """Seconds a call, whole and compact in turns.

    Attributes:
        examples: of a call.
        whole: of each turn.
        compact: of each turn.
    """

    examples: int
    whole: Sequence[float]
    compact: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Whole over compact, of each turn."""
        return [a / b for a, b in zip(self.whole, self.compact, strict=True)]


def compact_run(
    out: Path,
    task: Task,
    dataset: Dataset | Stream,
    fit: Fit,
    console: Console,
    options: Options,
) -> dict[str, Any]:
    """Compacts what a run came to; leaves `compact.json` and `compact.zip` in its folder, and returns the
    content of the former.

    Args:
        out: the folder.
        task: the run's.
        dataset: of the run.
        fit: what the run came to.
        console: to print on.
        options: what was asked for.

    Raises:
        RecipeError: there is nothing to compact, or the compact model is another one.
    """
    stream = as_stream(dataset) if isinstance(dataset, Dataset) else dataset
    model_state = fit.model_state
    if options.new_statistics:
        batches = training_batches(task, stream, options.new_statistics)
        model_state = new_statistics(task, fit.structured, model_state, batches)
    variables = Variables(fit.structured, model_state)
    size = task.run.settings.eval_batch_size
    first = next(test_batches(stream, size)).inputs
    begun = time.perf_counter()
    small = compacted(task, variables, first, options.multiple_of)
    seconds = time.perf_counter() - begun
    compared = compare(task, variables, small, test_batches(stream, size))
    _refuse_another_model(task, compared)
    latencies = [latency(task, variables, small, rows(first, n)) for n in SIZES]
    content = summary(small.one, compared, latencies, seconds, options)
    with writing(out / "compact.json") as path:
        report.write_json(path, content)
    console.print(table(content))
    for reason in content["reasons"]:
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    try:
        with writing(out / "compact.zip") as path:
            small.one.export(path)
    except ImportError as error:
        console.print(f"Not exported: {error}", markup=False, soft_wrap=True)
        console.print(f"compact.json is in {out}", soft_wrap=True)
        return content
    words = "compact.json and compact.zip, which rj.load_compact reads (one example a call),"
    console.print(f"{words} are in {out}", soft_wrap=True)
    return content


def compacted(task: Task, variables: Variables, inputs: Any, multiple_of: int = 1) -> Smaller:
    """The model in evaluation with less, seen with the first of these inputs."""

    def apply(variables: Variables, inputs: Any, memory: Any) -> Any:
        # Arrays alone: a file holds no classes for its reader to need.
        return jax.tree.leaves(task.predict(*variables, inputs, memory))

    def cut(examples: int) -> rj.Compact:
        example = rows(inputs, examples)
        return rj.compact(apply, variables, example, task.memory(examples), multiple_of=multiple_of)

    try:
        one = cut(1)
        try:
            jax.eval_shape(one.apply, one.params, rows(inputs, 2), task.memory(2))
        except ValueError:  # indexing along an axis, say, has a way of its own for one example
            return Smaller(one, cut(2))
        return Smaller(one, one)
    except ValueError as error:  # the library's message says which parameter, and why
        raise RecipeError(f"--compact: {error}") from error


def rows(inputs: Any, count: int) -> Any:
    """So many examples, from the first; where there are fewer, over and over."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[np.arange(count) % len(x)]), inputs)


def test_batches(stream: Stream, size: int) -> Iterator[Batch]:
    """The test set in order."""
    yield from iterate(stream.test(size), stream.threads)


def training_batches(task: Task, stream: Stream, count: int) -> Iterator[Batch]:
    """So many training batches, augmented as in training."""
    settings, augment = task.run.settings, task.run.recipe.augment
    batches = stream.train(settings.batch_size, settings.seed).repeat()
    key = jax.random.key(settings.seed)
    for number, batch in enumerate(islice(iterate(batches, stream.threads), count)):
        if augment:
            batch = batch._replace(inputs=augment(jax.random.fold_in(key, number), batch.inputs))
        yield batch


def new_statistics(
    task: Task, params: nnx.State, model_state: nnx.State, batches: Iterator[Batch]
) -> nnx.State:
    """The model's state with the batch norms' means and variances of these parameters.

    Those of training are averages over the last steps, of the training iterate. These are the means
    of those of the batches; dropout is off.

    Raises:
        RecipeError: the model has no batch norm, or there is no batch.
    """
    model = nnx.eval_shape(lambda: make_model(task.run, 0))
    model.eval()
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
    if not norms:
        raise RecipeError("--new-statistics: expected a model with batch norms, it has none")
    for norm in norms:
        norm.use_running_average, norm.momentum = False, 0.0  # the statistics of the last batch
    graph = nnx.graphdef(model)

    @jax.jit
    def of_batch(inputs: Any, memory: Any) -> nnx.State:
        after = task.call(graph, params, model_state, inputs, memory)[1]
        return nnx.filter_state(after, nnx.BatchStat)

    total, count = None, 0
    for batch in batches:
        memory = task.memory(len(jax.tree.leaves(batch.inputs)[0]))
        found, count = of_batch(batch.inputs, memory), count + 1
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise RecipeError("--new-statistics: expected at least one training batch")
    return nnx.merge_state(model_state, jax.tree.map(lambda x: x / count, total))


def calls(task: Task, variables: Variables, small: Smaller, examples: int) -> Calls:
    """Both models for so many examples a call, compiled when they are first called."""
    cut = small.of(examples)
    trees: list[Any] = []
    whole = jax.jit(lambda variables, *args: task.predict(*variables, *args))

    def compact(inputs: Any, memory: Any) -> Any:
        if not trees:
            found = jax.eval_shape(task.predict, *variables, inputs, memory)
            trees.append(jax.tree.structure(found))
        return jax.tree.unflatten(trees[0], program(cut.params, inputs, memory))

    program = jax.jit(cut.apply)
    return Calls(lambda *args: whole(variables, *args), compact)


def compare(
    task: Task, variables: Variables, small: Smaller, batches: Iterator[Batch]
) -> Comparison:
    """Evaluates both models on the same batches; a memory runs through them, of each its own."""
    recipe = task.run.recipe
    classifies = classification.correct in recipe.metrics.values()
    both = calls(task, variables, small, task.run.settings.eval_batch_size)
    sums = jax.jit(task.sums)
    differences = jax.jit(lambda *args: _differences(classifies, *args))
    memories: list[Any] = []
    totals: list[Any] = []
    found: list[Mapping[str, Any]] = []
    for batch in batches:
        batch = jax.tree.map(jnp.asarray, batch)
        memories = memories or [task.memory(len(batch.weights))] * 2
        pairs = zip(both, memories, strict=True)
        outputs, memories = map(
            list, zip(*(call(batch.inputs, m) for call, m in pairs), strict=True)
        )
        parts = [sums(output, batch) for output in outputs]
        totals = list(map(add, totals, parts)) if totals else parts
        found.append(jax.device_get(differences(*outputs, batch.weights)))
    if not totals:
        raise RecipeError("--compact: expected at least one batch to evaluate")
    error, scale = (max(float(row[name]) for row in found) for name in ("error", "scale"))
    number = lambda name: sum(int(row[name]) for row in found)
    whole, compact = ({k: float(v) for k, v in task.means(t).items()} for t in totals)
    return Comparison(
        whole,
        compact,
        error / scale if scale else error,
        number("examples"),
        number("ties") if classifies else None,
        number("changed") if classifies else None,
    )


def _differences(
    classifies: bool, whole: Any, compact: Any, weights: jax.Array
) -> dict[str, jax.Array]:
    """How far apart two outputs of the examples of positive weight are."""
    real = weights > 0
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    floats = lambda tree: [x for x in jax.tree.leaves(tree) if floating(x)]
    by_row = lambda x: jnp.where(real, jnp.max(jnp.abs(x.reshape(len(x), -1)), axis=1), 0)
    pairs = list(zip(floats(whole), floats(compact), strict=True))
    errors = [by_row(a.astype(jnp.float32) - b) for a, b in pairs]
    found = {
        "error": jnp.max(jnp.stack(errors)),
        "scale": jnp.max(jnp.stack([by_row(a.astype(jnp.float32)) for a, _ in pairs])),
        "examples": jnp.sum(real),
    }
    if classifies:
        top = jax.lax.top_k(whole, 2)[0]
        found["ties"] = jnp.sum(real & (top[:, 0] - top[:, 1] <= 2 * errors[0]))
        found["changed"] = jnp.sum(
            real & (jnp.argmax(whole, axis=-1) != jnp.argmax(compact, axis=-1))
        )
    return found


def _refuse_another_model(task: Task, compared: Comparison) -> None:
    """Rounding differs between the two, and nothing else may."""
    allowed = math.sqrt(jnp.finfo(task.run.settings.compute_dtype).eps)
    if not compared.error <= allowed:
        raise RecipeError(
            f"--compact: the outputs of the compact model differ by {compared.error:.1e} of the largest, "
            f"where rounding explains {allowed:.0e}; please report the recipe and its settings"
        )


def latency(task: Task, variables: Variables, small: Smaller, inputs: Any) -> Latency:
    """Seconds of a call with these inputs. The two take turns, since a machine that slows down slows
    both; a turn is as many calls as take a twentieth of a second.
    """
    examples = len(jax.tree.leaves(inputs)[0])
    both, memory = calls(task, variables, small, examples), task.memory(examples)
    for call in both:
        jax.block_until_ready(call(inputs, memory))  # compiled
    seconds = lambda call: seconds_per_call(call, inputs, memory, at_least=_SECONDS)
    turns = [tuple(map(seconds, both)) for _ in range(_TURNS)]
    return Latency(examples, *zip(*turns, strict=True))


def summary(
    small: rj.Compact,
    compared: Comparison,
    latencies: Sequence[Latency],
    seconds: float,
    options: Options,
) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    cut = small.report()
    whole = [a.before for path, a in cut.arrays.items() if path.startswith(_PARAMS)]
    products = cut.flops_before / cut.flops if cut.flops else math.inf
    return {
        "parameters": {
            "whole": sum(map(math.prod, whole)),
            "compact": sum(np.size(x) for x in jax.tree.leaves(small.params.params)),
        },
        "flops": {"whole": cut.flops_before, "compact": cut.flops, "ratio": products},
        "figures": {"whole": dict(compared.whole), "compact": dict(compared.compact)},
        "largest_relative_difference": compared.error,
        "examples": compared.examples,
        "ties": compared.ties,
        "changed_classes": compared.changed,
        "latency": [
            {
                "examples": found.examples,
                "seconds": {"whole": spread(found.whole), "compact": spread(found.compact)},
                "ratio": spread(found.ratios),
                "ratio_over_products": statistics.median(found.ratios) / products,
            }
            for found in latencies
        ],
        **asdict(options),
        "compaction_seconds": seconds,
        "arrays": {path: asdict(a) for path, a in cut.arrays.items()},
        "reasons": list(cut.reasons),
        "device": jax.devices()[0].device_kind,
        "versions": report.versions(),
    }


def table(content: Mapping[str, Any]) -> Table:
    """The summary for the terminal: a row per figure."""
    shown = Table("", "whole", "compact", "ratio", title="The structured point, compacted")
    pair = lambda part, pattern: [f"{part[name]:{pattern}}" for name in ("whole", "compact")]
    parameters = content["parameters"]
    ratio = parameters["whole"] / max(parameters["compact"], 1)
    shown.add_row("parameters", *pair(parameters, ",d"), f"{ratio:.2f}")
    shown.add_row("FLOPs of an example", *pair(content["flops"], ",d"), _times(content["flops"]))
    figures = content["figures"]
    for name, whole in figures["whole"].items():
        shown.add_row(f"test {name}", f"{whole:.6f}", f"{figures['compact'][name]:.6f}")
    for found in content["latency"]:
        seconds = [_milliseconds(found["seconds"][name]) for name in ("whole", "compact")]
        ratio = found["ratio"]
        words = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        shown.add_row(f"milliseconds, {found['examples']} a call", *seconds, words)
        over = f"{found['ratio_over_products']:.2f}"
        shown.add_row("    time ratio / FLOPs ratio", "", "", over)
    shown.add_row("largest difference", "", f"{content['largest_relative_difference']:.1e}")
    if content["ties"] is not None:
        of = f" of {content['examples']:,}"
        shown.add_row("ties, decided by rounding", "", f"{content['ties']}{of}")
        shown.add_row("    of these another class", "", f"{content['changed_classes']}{of}")
    return shown


def _times(part: Mapping[str, float]) -> str:
    return f"{part['ratio']:.2f}"


def _milliseconds(seconds: Mapping[str, float]) -> str:
    low, middle, high = (1e3 * seconds[name] for name in ("low", "median", "high"))
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
