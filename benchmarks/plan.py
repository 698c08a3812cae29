"""A run of 1 and of 70 billion parameters on paper: the computed tables of docs/scaling.md.

    python -m benchmarks.plan

Everything follows from the shapes of two decoder-only transformers and from public figures of two
kinds of hardware. Nothing here is measured or compiled; `benchmarks.scaling` does that.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Decoder(NamedTuple):
    """A decoder-only transformer: attention with shared keys and values, gated feed-forward layers."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int
    tied: bool

    @property
    def kernels(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the kernels of one layer; a group is what leaves one input."""
        attention, shared = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "query": (self.width, attention),
            "key": (self.width, shared),
            "value": (self.width, shared),
            "out": (attention, self.width),
            "gate": (self.width, self.hidden),
            "up": (self.width, self.hidden),
            "down": (self.hidden, self.width),
        }

    def params(self) -> dict[str, Any]:
        """Abstract parameters, float32."""
        layer: dict[str, Any] = {k: {"kernel": _abstract(*s)} for k, s in self.kernels.items()}
        layer |= {k: {"scale": _abstract(self.width)} for k in ("norm", "hidden_norm")}
        tree = {f"layer{i}": layer for i in range(self.layers)}
        tree["embedding"] = {"embedding": _abstract(self.vocabulary, self.width)}
        tree["norm"] = {"scale": _abstract(self.width)}
        if not self.tied:
            tree["head"] = {"kernel": _abstract(self.width, self.vocabulary)}
        return tree

    @property
    def size(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params()))

    def activations(self, tokens: int) -> float:
        """Bytes, roughly: bfloat16, the input of every layer kept, one layer recomputed with its gradients,

        and the logits of at most 1,024 tokens at a time in float32 with their gradients.
        """
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_size
        one_layer = 5 * self.width + attention + 3 * self.hidden
        logits = 8 * min(tokens, 1024) * self.vocabulary
        return 2 * tokens * (self.layers * self.width + 2 * one_layer) + logits


def _abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


class Hardware(NamedTuple):
    """Public figures of one chip; see docs/scaling.md for the sources.

    Attributes:
        memory: bytes.
        memory_rate: bytes per second.
        flops: bfloat16, dense, per second.
        island: how many chips the fast links join.
        fast, slow: bytes per second that one chip sends over the links inside and between islands.
    """

    name: str
    memory: float
    memory_rate: float
    flops: float
    island: int
    fast: float
    slow: float


# Shapes as published: Llama 3.2 1B and Llama 3 70B.
MODELS = {
    "1B": Decoder("1B", 16, 2048, 32, 8, 64, 8192, 128_256, True),
    "70B": Decoder("70B", 80, 8192, 64, 8, 128, 28_672, 128_256, False),
}
HARDWARE = {
    "v5e": Hardware("v5e", 16e9, 819e9, 197e12, 256, 200e9, 3.125e9),
    "H100": Hardware("H100", 80e9, 3.35e12, 989e12, 8, 450e9, 50e9),
}
SCHEMES = ("replicated", "state sharded", "all sharded")
RUNS = (
    ("1B", "v5e", 8, 4096),
    ("1B", "v5e", 256, 4096),
    ("1B", "H100", 8, 8192),
    ("1B", "H100", 64, 8192),
    ("70B", "v5e", 256, 2048),
    ("70B", "H100", 64, 8192),
    ("70B", "v5e", 1024, 2048),
    ("70B", "H100", 512, 8192),
)
EFFICIENCY = 0.5  # of the peak, in matrix products
BATCH = 4_194_304  # tokens
FLOPS_PER_PARAMETER = 8  # and token: 2 forward, 4 backward, 2 to recompute the layers
ITERATIONS = 5  # decompositions of a matrix per step, as measured in benchmarks/RESULTS.md
PIECES = (5, 3)  # arrays that its owner gathers (b, D, W, two to start from) and gives back
PASSES = 8  # parameter-sized float32 arrays that the kernel reads or writes


def memory(model: Decoder, scheme: str, chips: int, tokens: int) -> dict[str, float]:
    """Bytes on one chip.

    Parameters and gradients are float32, as the optimizer takes them, and so are V, U and W^0. Where parameters are
    cut, the largest kernel is whole for a while, twice in bfloat16 (the next one is on its way), and its gradient.
    """
    size = 4.0 * model.size
    cut_state = 3 * size / (1 if scheme == "replicated" else chips)
    cut = chips if scheme == "all sharded" else 1
    largest = max(math.prod(shape) for shape in model.kernels.values())
    parts = {
        "parameters": size / cut,
        "gradients": size / cut,
        "V, U, W^0": cut_state,
        "gathered": 8.0 * largest if cut > 1 else 0.0,
        "activations": model.activations(tokens),
    }
    return parts | {"total": sum(parts.values())}


def collectives(model: Decoder, scheme: str) -> dict[str, float]:
    """Kind -> bytes of the whole arrays that one step moves.

    Gradients and updates are float32; where parameters are cut, they are gathered in bfloat16 for the forward pass and
    again for the backward pass, in which the layers are computed a second time.
    """
    size = model.size
    if scheme == "replicated":
        return {"all-reduce": 4.0 * size}
    gathered = 2 * 2.0 * size if scheme == "all sharded" else 4.0 * size
    return {"reduce-scatter": 4.0 * size, "all-gather": gathered}


def seconds_of_collectives(moved: dict[str, float], hardware: Hardware, chips: int) -> float:
    """Rings inside islands, then, with what is left to each chip, between them; an all-reduce goes round twice."""
    size = sum(n * (2 if kind == "all-reduce" else 1) for kind, n in moved.items())
    inside = min(chips, hardware.island)
    islands = chips / inside
    fast = size * (inside - 1) / inside / hardware.fast
    slow = size / inside * (islands - 1) / islands / hardware.slow
    return fast + slow


def seconds_of_products(model: Decoder, hardware: Hardware, tokens: float) -> float:
    """Forward, backward and recomputation at half the peak."""
    return FLOPS_PER_PARAMETER * model.size * tokens / (EFFICIENCY * hardware.flops)


def seconds_of_update(model: Decoder, scheme: str, hardware: Hardware, chips: int) -> float:
    """What the memory needs to move the arrays of the update."""
    cut = 1 if scheme == "replicated" else chips
    return PASSES * 4 * model.size / cut / hardware.memory_rate


def least_tokens(model: Decoder, scheme: str, hardware: Hardware, chips: int) -> float:
    """Tokens per chip and step at which the products take as long as the collectives, which may run meanwhile."""
    moved = seconds_of_collectives(collectives(model, scheme), hardware, chips)
    return moved / seconds_of_products(model, hardware, 1)


def decomposition_flops(rows: int, columns: int) -> float:
    """Of thresholding one matrix: its smaller Gram matrix, eigenvectors (9 n^3, roughly), two products."""
    small, large = sorted((rows, columns))
    return 6.0 * large * small**2 + 9.0 * small**3


def rank_table() -> str:
    """Markdown: what the nuclear norm adds to a step, every matrix decomposed by one chip."""
    rows = []
    for name, kind, chips, tokens in RUNS:
        model, hardware = MODELS[name], HARDWARE[kind]
        shapes = list(model.kernels.values())
        work = sorted((decomposition_flops(*s) for s in shapes * model.layers), reverse=True)
        busiest = ITERATIONS * sum(work[::chips])  # dealt out from the largest on
        products = FLOPS_PER_PARAMETER * model.size * tokens
        entries = model.layers * sum(map(math.prod, shapes))
        sent = {
            "all-gather": 4.0 * PIECES[0] * entries,
            "reduce-scatter": 4.0 * PIECES[1] * entries,
        }
        seconds = seconds_of_collectives(sent, hardware, chips)
        largest = 4 * sum(PIECES) * max(map(math.prod, shapes))
        cells = [
            f"{busiest / 1e12:.3g}",
            f"{products / 1e12:.3g}",
            f"{sum(sent.values()) / 1e9:.0f}",
        ]
        cells += [f"{1e3 * seconds:.3g}", f"{largest / 1e9:.2f}"]
        rows.append(
            [name, f"{chips} x {kind}", str(len(work)), str(-(-len(work) // chips)), *cells]
        )
    titles = ["model", "chips", "matrices", "on the busiest chip", "Tflop of its decompositions"]
    titles += [
        "Tflop of its products",
        "GB sent besides",
        "ms of that",
        "GB for the largest matrix",
    ]
    return _markdown(titles, rows)


def memory_table() -> str:
    """Markdown: bytes per chip."""
    parts = ["parameters", "gradients", "V, U, W^0", "gathered", "activations", "total"]
    rows = []
    for name, kind, chips, tokens in RUNS:
        for scheme in SCHEMES:
            model, hardware = MODELS[name], HARDWARE[kind]
            found = memory(model, scheme, chips, tokens)
            share = found["total"] / hardware.memory
            verdict = f"{share:.0%}" if share <= 1 else f"{share:.0%}: too much"
            cells = [f"{found[part] / 1e9:.2f}" for part in parts]
            rows.append([name, f"{chips} x {kind}", f"{tokens:,}", scheme, *cells, verdict])
    titles = ["model", "chips", "tokens per chip", "scheme", *parts, "of the chip's memory"]
    return _markdown(titles, rows)


def time_table() -> str:
    """Markdown: bytes moved per step, and how long the parts of a step take."""
    rows = []
    for name, kind, chips, tokens in RUNS:
        for scheme in SCHEMES:
            model, hardware = MODELS[name], HARDWARE[kind]
            if memory(model, scheme, chips, tokens)["total"] > hardware.memory:
                continue
            moved = collectives(model, scheme)
            parts = [
                seconds_of_collectives(moved, hardware, chips),
                seconds_of_products(model, hardware, tokens),
                seconds_of_update(model, scheme, hardware, chips),
            ]
            least = least_tokens(model, scheme, hardware, chips)
            gigabytes = ", ".join(f"{kind} {n / 1e9:.1f}" for kind, n in moved.items())
            times = [f"{1e3 * part:.3g}" for part in parts]
            row = [name, f"{chips} x {kind}", scheme, gigabytes, *times]
            rows.append([*row, f"{least:,.0f}", f"{BATCH / least:,.0f}"])
    titles = ["model", "chips", "scheme", "GB per step", "collectives ms", "products ms"]
    titles += ["update ms", "least tokens per chip", f"chips at {BATCH:,} tokens"]
    return _markdown(titles, rows)


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main() -> None:
    for model in MODELS.values():
        kernels = len(model.kernels) * model.layers
        print(f"{model.name}: {model.size:,} parameters, {kernels} kernels in layers")
    print(f"\n{memory_table()}\n\n{time_table()}\n\n{rank_table()}")


if __name__ == "__main__":
    main()
