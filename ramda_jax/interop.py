"""What other libraries must be told of this library's nodes: `jax.export`, and Flax's serialization.

Imported for its effect. What is static in a state is written as JSON, so that reading it back runs nothing: classes are
looked up among the regularizers and solvers that are defined, never imported by name.
"""

import dataclasses
import importlib.abc
import importlib.util
import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from jax import export
from jax.sharding import Mesh, PartitionSpec

from ramda_jax.methods.adam import AdamState
from ramda_jax.methods.dual_averaging import Clock
from ramda_jax.methods.prox_sgd import ProxSgdState
from ramda_jax.methods.ramda import RamdaState
from ramda_jax.methods.rmda import RmdaState
from ramda_jax.regularizers import Regularizer
from ramda_jax.sharding.placement import ParamSpecs, Placement, mesh_from_parts, mesh_to_parts
from ramda_jax.solvers import Solver
from ramda_jax.state import Entry, Plan, ProximalState, SolverState
from ramda_jax.subproblem import Block, Member, View
from ramda_jax.targets import TargetState

# Plans as JSON.

_CLASSES = (Plan, Entry, Block, Member, View, Placement, ParamSpecs)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _known() -> dict[str, type]:
    """The classes of which a plan may hold instances, by name."""
    found: list[type] = [*_CLASSES]
    pending: list[type] = [Regularizer, Solver]
    while pending:
        cls = pending.pop()
        found.append(cls)
        pending.extend(cls.__subclasses__())
    return {_name(cls): cls for cls in found}


def plan_to_bytes(plan: Plan) -> bytes:
    """A plan as JSON.

    Raises:
      TypeError: for a regularizer or solver with a static field that is neither a number, a text nor a tuple of them.
    """
    return json.dumps(_encode(plan)).encode()


def plan_from_bytes(text: bytes | bytearray) -> Plan:
    """The inverse of `plan_to_bytes`; a mesh whose devices are not here is left out.

    Raises:
      ValueError: naming a class that is not defined here.
    """
    return _decode(json.loads(bytes(text)), _known())


def _encode(x: Any) -> Any:
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, Mesh):
        return {"mesh": _encode(mesh_to_parts(x))}
    if isinstance(x, PartitionSpec):
        return {"spec": [_encode(entry) for entry in x]}
    if dataclasses.is_dataclass(x):
        fields = {f.name: _encode(getattr(x, f.name)) for f in dataclasses.fields(x)}
        return {"class": _name(type(x)), "fields": fields}
    if isinstance(x, (Entry, ParamSpecs)):
        return {"class": _name(type(x)), "items": [_encode(y) for y in x]}
    if isinstance(x, tuple):
        return {"tuple": [_encode(y) for y in x]}
    raise TypeError(f"{x!r} in the static part of a state cannot be serialized.")


def _decode(x: Any, known: dict[str, type]) -> Any:
    if not isinstance(x, dict):
        return x
    again = lambda ys: [_decode(y, known) for y in ys]
    if "mesh" in x:
        return mesh_from_parts(*_decode(x["mesh"], known))
    if "spec" in x:
        return PartitionSpec(*again(x["spec"]))
    if "tuple" in x:
        return tuple(again(x["tuple"]))
    if x["class"] not in known:
        raise ValueError(
            f"a state was made with {x['class']}, which is not defined here: import it."
        )
    cls = known[x["class"]]
    if "items" in x:
        return cls(*again(x["items"])) if cls is Entry else cls(again(x["items"]))
    fields = {name: _decode(value, known) for name, value in x["fields"].items()}
    if cls is Placement and fields["mesh"] is None:
        fields["params"] = None  # how parameters are cut says nothing without a mesh
    return cls(**fields)


for _cls in (
    ProximalState,
    SolverState,
    TargetState,
    Clock,
    RamdaState,
    RmdaState,
    ProxSgdState,
    AdamState,
):
    export.register_namedtuple_serialization(_cls, serialized_name=_name(_cls))
export.register_pytree_node_serialization(
    Plan,
    serialized_name=_name(Plan),
    serialize_auxdata=plan_to_bytes,
    deserialize_auxdata=plan_from_bytes,
)

# Flax.


def _tell_flax(serialization: ModuleType) -> None:
    """Let Flax's serialization pass over plans: they hold no arrays."""
    serialization.register_serialization_state(
        Plan, lambda plan: {}, lambda plan, state: plan, override=True
    )


class _FlaxFinder(importlib.abc.MetaPathFinder):
    """Tells Flax as soon as it is imported: it is no dependency, and users import it before or after this library."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if fullname != "flax.serialization":
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(fullname)
        run = spec.loader.exec_module

        def run_and_tell(module: ModuleType) -> None:
            run(module)
            _tell_flax(module)

        spec.loader.exec_module = run_and_tell
        return spec


if "flax.serialization" in sys.modules:
    _tell_flax(sys.modules["flax.serialization"])
else:
    sys.meta_path.insert(0, _FlaxFinder())
