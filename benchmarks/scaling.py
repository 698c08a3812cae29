"""What a step costs on many devices: bytes of state on each, what they send each other, time.

    python -m benchmarks.scaling [--devices 1 2 4 8] [--topologies v5e:2x4 v6e:2x4 v5e:16x16]
                                 [--models wide_mlp tiny_nuclear] [--json FILE]

Two steps of RAMDA are compiled, donated and data-parallel under `jax.jit` (`benchmarks/programs.py`).
`update` is the optimizer alone: gradients come in as the backward pass leaves them. `training` is the
whole step: forward and backward on a batch that is cut over the devices, and the update. The models 1B
and 70B are those of `benchmarks.plan`, for TPUs only.

Devices are fake ones of the CPU, on which steps are timed as well (they share this machine's cores, so
times show the work of all devices together, not the speed of any), and TPUs, for which the compiler of
the extra `tpu` works without the hardware. Collectives are read from the compiled program, MB are those
of whole arrays (`benchmarks/hlo.py`); `in loops` are those that a loop of the solver would repeat.
"""

import argparse
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import ramda_jax as rj
from benchmarks import hlo, measure, plan, programs
from benchmarks.train import TASKS, Task, classify
from examples.models.mlp import MLP

TPU_WITHOUT_HARDWARE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Every kernel has an axis that 256 devices can cut; TPU compilers take minutes for large decompositions.
TINY = {"tiny": (512, 256, 256, 10), "tiny_nuclear": (256, 16, 256, 10)}


WIDE = (2048, 4096, 4096, 10)


def _mlp(widths: tuple[int, ...], regularizer: Any) -> Task:
    return Task(lambda rngs: MLP(widths, rngs=rngs), classify, widths[:1], 0, regularizer, 1e-3)


MODELS = TASKS | {
    "tiny": _mlp(TINY["tiny"], rj.GroupLasso),
    "tiny_nuclear": _mlp(TINY["tiny_nuclear"], rj.NuclearNorm),
    "wide_mlp": _mlp(WIDE, rj.GroupLasso),
}
DEFAULTS = ("wide_mlp", "tiny_nuclear")
STEPS = ("update", "training")
STATES = programs.STATES[:2]
TRAINED = (
    "fashion_mlp",
    "tiny",
    "tiny_nuclear",
    "wide_mlp",
)  # the others would take minutes to compile


def prepare(devices: int) -> None:
    """Give the CPU so many fake devices and the TPU's compiler what it would ask the hardware. Before JAX starts."""
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    os.environ.update(TPU_WITHOUT_HARDWARE)
    jax.config.update("jax_platforms", "cpu")


def cpu_mesh(devices: int) -> Mesh:
    return _mesh(jax.devices("cpu")[:devices])


def tpu_mesh(topology: str) -> Mesh:
    return _mesh(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def _mesh(devices: Any) -> Mesh:
    return Mesh(np.array(devices), (programs.AXIS,), axis_types=(AxisType.Auto,))


def cases(
    name: str, mesh: Mesh, steps: Sequence[str], states: Sequence[str]
) -> Iterator[tuple[dict[str, str], programs.Program]]:
    """(what it is, the program) of the steps and placements of one model."""
    for state in states if mesh.size > 1 else ("replicated",):
        label = {"model": name, "state": state}
        if name in plan.MODELS:
            yield label | {"step": "update"}, _decoder(plan.MODELS[name], mesh, state)
            continue
        task = MODELS[name]
        if "update" in steps:
            make_params = lambda task=task: nnx.state(task.make(nnx.Rngs(0)), nnx.Param)
            psi = task.regularizer(task.strength)
            yield label | {"step": "update"}, programs.update(make_params, psi, mesh, state)
        if "training" in steps and name in TRAINED:
            yield label | {"step": "training"}, programs.training(task, mesh, state)


def _decoder(model: plan.Decoder, mesh: Mesh, state: str) -> programs.Program:
    make_params = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.params())
    return programs.update(make_params, rj.GroupLasso(1e-6), mesh, state)


def rows(
    name: str, where: str, mesh: Mesh, args: argparse.Namespace, rounds: int
) -> list[dict[str, Any]]:
    """A report of each case on one mesh; its steps take turns, if there are rounds."""
    found, contenders = [], []
    for label, program in cases(name, mesh, args.steps, args.states):
        executable, facts = programs.compiled(program)
        found.append({**label, "where": where, "devices": mesh.size, **facts})
        if rounds:
            step = programs.Running(program, executable)
            contenders.append(measure.Contender(label["step"], step))
    measure.take_turns(contenders, rounds, warmup=2)
    for row, contender in zip(found, contenders, strict=False):
        row["seconds"] = measure.spread(contender.seconds)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """A Markdown table of reports."""
    kinds = [k for k in hlo.KINDS if any(k in row["collectives"] for row in found)]
    titles = ["model", "devices", "step", "state", "state MB per device"]
    titles += [
        *(f"{kind}: MB" for kind in kinds),
        "in loops",
        "temporary MB",
        "ms per step [quartiles]",
        "compilation s",
    ]
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for row in found:
        cells = [row["model"], row["where"], row["step"], row["state"], _mb(row["state_bytes"])]
        cells += [_collective(row["collectives"].get(kind)) for kind in kinds]
        cells += [str(row["in_loops"]), _mb(row["temporary_bytes"])]
        cells += [measure.milliseconds(row["seconds"]) if "seconds" in row else "-"]
        lines.append("| " + " | ".join([*cells, f"{row['compile_seconds']:.1f}"]) + " |")
    return "\n".join(lines)


def _mb(size: float) -> str:
    if size >= 1e9:
        return f"{size / 1e6:,.0f}"
    return f"{size / 1e6:.3g}" if size >= 1e4 else "< 0.01"


def _collective(one: dict[str, int] | None) -> str:
    return "-" if one is None else f"{one['count']}: {_mb(one['bytes'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--topologies", nargs="*", default=["v5e:2x4", "v6e:2x4", "v5e:16x16"])
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *plan.MODELS], default=DEFAULTS)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--states", nargs="+", choices=programs.STATES, default=STATES)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps on the CPU; 0: none")
    measure.add_output_argument(parser)
    args = parser.parse_args()
    prepare(max(args.devices, default=1))
    environment = measure.environment()
    print(", ".join(f"{k} {v}" for k, v in environment.items()), flush=True)
    if args.topologies and importlib.util.find_spec("libtpu") is None:
        print("No TPU topologies: the TPU compiler (extra `tpu`) is not installed.", flush=True)
        args.topologies = []
    found = []
    for name in args.models:
        mine = []
        for devices in args.devices if name in MODELS else ():  # the others would not fit
            mine += rows(name, f"{devices} x CPU", cpu_mesh(devices), args, args.rounds)
        for topology in args.topologies:
            mine += rows(name, topology, tpu_mesh(topology), args, 0)
        print(f"\n{table(mine)}", flush=True)
        found += mine
    measure.write(args.json, {"environment": environment, "rows": found})


if __name__ == "__main__":
    main()
