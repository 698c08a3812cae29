"""What Orbax and TensorStore print of a failure that they raise as well: hundreds of lines, from
several threads, around the one that helps.
"""

import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def quiet_orbax() -> None:
    """Silences it for the rest of the process, as its threads go on after the failure is raised."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: not _of_orbax(record))
    # What was to read the other arrays, when one of them has failed.
    warnings.filterwarnings("ignore", r"coroutine '\w+' was never awaited", RuntimeWarning)
    sys.excepthook = _without(_loop_closed, sys.excepthook)
    sys.unraisablehook = _without(
        lambda kind, error, *_: _loop_closed(kind, error) or _raised_by_orbax(error),
        sys.unraisablehook,
    )


def _of_orbax(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "orbax" in record.pathname or (record.name == "asyncio" and _raised_by_orbax(error))


def _raised_by_orbax(error: BaseException | None) -> bool:
    """Whether an error that no one waits for is one of reading or writing arrays."""
    if error is None:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    of_arrays = any(word in str(error) for word in ("OCDBT", "TensorStore"))
    return of_arrays or any("orbax" in frame.filename for frame in frames)


def _loop_closed(kind: Any, error: BaseException | None, *_: Any) -> bool:
    """What TensorStore's threads come upon when the first of many arrays has failed."""
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _without(unwanted: Callable[..., bool], hook: Callable[..., Any]) -> Callable[..., Any]:
    def filtered(*arguments: Any) -> None:
        # An unraisable error comes as one object, another one as type, error and traceback.
        first = arguments[0]
        parts = arguments if len(arguments) > 1 else (first.exc_type, first.exc_value)
        if not unwanted(*parts):
            hook(*arguments)

    return filtered
