"""Do the tests notice? Mutants of the mathematical core (Cosmic Ray), a sample of each file, against the tests beside it.

    pip install cosmic-ray
    python -m tests.mutation OUT.jsonl [--share 0.05] [--seed 0] [--only secular newton]

Works in a copy of the repository. What survives the near tests meets the far ones. Mutants of annotations are no mutants
and are left out, as are those of checks and texts of errors. A run that was ended goes on where it was; what met
only near tests (--near) meets the others in a run without it. Most mutants leave most programs as they are: those are
compiled once.
"""

import argparse
import ast
import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# More is an endless loop.
NEAR_SECONDS, FAR_SECONDS = 600, 3600

_EFFORT, _ITERATES = "tests/solvers/test_effort.py", "tests/solvers/test_iterates.py"
_NUMERICS = "tests/test_numerics.py"
_SOLVERS = [_ITERATES, "tests/solvers/test_secular.py", "tests/solvers/test_solvers.py", _EFFORT]
_SPLITTING = [_ITERATES, "tests/solvers/test_splitting.py", _EFFORT]
_PROXES = ["tests/regularizers"]
_REFERENCE = ["tests/test_against_reference.py"]
_STAGES = ["tests/test_stages.py", "tests/test_deployable.py"]
# Of every file: the tests beside it, and its own examples. They are run in this order, up to the first failure.
_BESIDE = {
    "solvers/secular.py": [*_SOLVERS, "tests/test_derivative.py"],
    "solvers/newton.py": _SOLVERS,
    "solvers/scores.py": [_ITERATES, "tests/test_targets.py", *_SOLVERS],
    "solvers/capped.py": [_ITERATES, "tests/solvers/test_capped.py", _EFFORT],
    "solvers/closed_form.py": [*_REFERENCE, "tests/solvers/test_solvers.py"],
    "solvers/first_order.py": [*_SPLITTING, "tests/solvers/test_solvers.py"],
    "solvers/proximal_gradient.py": [_ITERATES, "tests/solvers/test_solvers.py", _EFFORT],
    "solvers/splitting.py": _SPLITTING,
    "solvers/douglas_rachford.py": _SPLITTING,
    "regularizers/elementwise.py": _PROXES,
    "regularizers/group.py": _PROXES,
    "regularizers/spectral.py": [*_PROXES, *_SPLITTING, "tests/test_assignment.py"],
    "methods/adam.py": _REFERENCE,
    "methods/dual_averaging.py": _REFERENCE,
    "methods/prox_adamw.py": _REFERENCE,
    "methods/prox_sgd.py": _REFERENCE,
    "methods/prox_ssi.py": _REFERENCE,
    "methods/ramda.py": [*_REFERENCE, "tests/test_madgrad.py"],
    "methods/rmda.py": _REFERENCE,
    "schedules.py": _STAGES,
    "targets.py": ["tests/test_targets.py"],
    "structure.py": ["tests/test_structure.py"],
    "_numerics.py": [_NUMERICS, *_PROXES, *_SOLVERS, "tests/test_deployable.py"],
}
NEAR = {name: [*tests, f"ramda_jax/{name}"] for name, tests in _BESIDE.items()}
FAR = [
    "tests/test_against_reference.py", "tests/test_blocks.py", "tests/test_transformations.py",
    "tests/test_deployable.py", "tests/test_targets.py", "tests/test_state.py", "tests/test_bad_input.py",
    "tests/test_optax_contract.py", "tests/test_trees.py", "tests/test_overflow.py", "tests/test_derivative.py",
    "tests/regularizers", "tests/solvers", "tests/sharding", "tests/backends", "ramda_jax",
]  # fmt: skip


class _Bare(ast.NodeTransformer):
    """Leaves out what does not run when the program does what it should: annotations, and what is raised."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> Any:
        return ast.Pass()


def bare(code: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(code)))


def mutants(path: Path) -> list[Any]:
    """All that Cosmic Ray has for a file."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    with (
        tempfile.TemporaryDirectory() as folder,
        use_db(f"{folder}/db", WorkDB.Mode.create) as db,
    ):
        init([path], db, {})
        return [item.mutations[0] for item in db.work_items]


def differs(mutation: Any, code: str) -> bool:
    """Whether it is another program."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    operator = plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    changed = mutate_code(code, operator, mutation.occurrence)
    try:
        return changed is not None and bare(changed) != bare(code)
    except SyntaxError:
        return False


def command(tests: list[str]) -> list[str]:
    return [
        sys.executable,
        *["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"],
        *tests,
    ]


def judged(mutation: Any, near: list[str], far: bool) -> dict[str, Any]:
    """What became of a mutant."""
    from cosmic_ray.mutating import mutate_and_test

    row: dict[str, Any] = {}
    rounds = [(near, NEAR_SECONDS)]
    if far:
        rounds += [([test for test in FAR if test not in near], FAR_SECONDS)]
    for tests, seconds in rounds:
        result = mutate_and_test([mutation], shlex.join(command(tests)), seconds)
        outcome = result.test_outcome.value if result.test_outcome else result.worker_outcome.value
        row = {
            "outcome": outcome,
            "by": tests if outcome == "killed" else [],
            "far": far,
            "diff": result.diff,
        }
        if outcome != "survived":
            break
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="files whose name without .py is one of these")
    parser.add_argument("--near", action="store_true", help="only near tests: more mutants an hour")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {tuple(row["key"]): row for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv"))
        os.chdir(copy)
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        total, chosen = 0, []
        for name in NEAR:
            path = copy / "ramda_jax" / name
            if arguments.only and path.stem not in arguments.only:
                continue
            every, code = mutants(path), path.read_text()
            random.Random(f"{arguments.seed} {name}").shuffle(every)
            number = max(1, round(arguments.share * len(every)))
            sample = itertools.islice((m for m in every if differs(m, code)), number)
            chosen += [(name, mutation) for mutation in sample]
            total += len(every)
        print(f"{len(chosen)} of {total} mutants", flush=True)
        # So that a run that is ended early has seen something of every file.
        random.Random(arguments.seed).shuffle(chosen)
        # What fails without a mutant kills every one.
        tests = {test for name, _ in chosen for test in NEAR[name]} | set(
            () if arguments.near else FAR
        )
        subprocess.run(command(sorted(tests)), check=True)
        for name, mutation in chosen:
            key = (name, mutation.operator_name, mutation.occurrence)
            settled = key in done and (
                done[key]["outcome"] != "survived" or arguments.near or done[key]["far"]
            )
            if settled:
                continue
            row = {
                "key": key,
                "line": mutation.start_pos[0],
                **judged(mutation, NEAR[name], not arguments.near),
            }
            done[key] = row
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"  {row['outcome']}: {name}:{row['line']} {key[1]}", flush=True)
    counts = Counter(row["outcome"] for row in done.values())
    print(f"of {len(done)}: {dict(counts)}")
    for row in done.values():
        if row["outcome"] == "survived":
            print(f"\n{row['key']}\n{row['diff']}")


if __name__ == "__main__":
    main()
