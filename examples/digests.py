"""What a checkpoint is verified by: a SHA-256 of every array, and one of the notes that hold them.

No file system and no array format is asked whether it kept every bit; an array that was cut over
devices has the digest of the whole, so that a run may go on with another number of them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

Records = dict[str, dict[str, Any]]
"""Path of an array -> its dtype, shape and SHA-256, as JSON."""


class DamageError(Exception):
    """What was read is not what was written."""


def of_arrays(arrays: Mapping[str, jax.Array]) -> Records:
    """The records of arrays; every process has to take part where they are cut over several."""
    return {path: {**kind(array), "sha256": _of_bytes(array)} for path, array in arrays.items()}


def kind(array: jax.Array) -> dict[str, Any]:
    """Dtype and shape, as in a record."""
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def verify(arrays: Mapping[str, jax.Array], records: Records) -> None:
    """Compares arrays that were read with the records of those that were written.

    Raises:
        DamageError: they differ.
    """
    for path, record in of_arrays(arrays).items():
        if record != records[path]:
            raise DamageError(f"the array {path} is not the one that was written")


def seal(content: Any) -> dict[str, Any]:
    """JSON together with its digest."""
    return {"sha256": _of_json(content), "content": content}


def unseal(sealed: Any) -> Any:
    """The content of what `seal` has made.

    Raises:
        DamageError: it is not.
    """
    if not isinstance(sealed, dict) or sealed.keys() != {"sha256", "content"}:
        raise DamageError("its notes are not those that were written")
    if sealed["sha256"] != _of_json(sealed["content"]):
        raise DamageError("its notes are not those that were written")
    return sealed["content"]


def _of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _of_bytes(array: jax.Array) -> str:
    # In rows, whatever the layout on the device, and as plain bytes: NumPy gives out no buffer of
    # the types that it does not know, such as bfloat16.
    plain = np.ascontiguousarray(_on_host(array)).reshape(-1).view(np.uint8)
    return hashlib.sha256(plain.data).hexdigest()


def _on_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
