"""SIGINT and SIGTERM: training ends where it can go on from, and a second signal ends it at once.

Elsewhere than in the training loop a signal is an exception, as Python's KeyboardInterrupt is. In
the loop it waits for the end of the epoch, or between steps for a few seconds at most.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Senders that signal a process and then its group (as `timeout` does) mean one signal by two.
_SAME_SECONDS = 0.5


class Interrupted(BaseException):
    """A signal has ended the run; no `except Exception` on the way is to stop it.

    Args:
        number: of the signal.
        words: where it ended, and how to go on.
    """

    def __init__(self, number: int, words: str = "") -> None:
        name = f"interrupted by {signal.Signals(number).name}"
        super().__init__(f"{name} {words}".strip())
        self.number, self.status = number, 128 + number


@dataclass
class _Pending:
    """Of this process.

    Attributes:
        number: of the signal that waits to be heeded; 0 is none.
        since: when it came.
        patience: seconds that steps go on after it, towards the end of their epoch; None where
            a signal does not wait.
    """

    number: int = 0
    since: float = 0.0
    patience: float | None = None


_pending = _Pending()


@contextmanager
def handled() -> Iterator[None]:
    """Signals as this module has them, for the length of a command; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that the caller has this process ignore (as `nohup` does) stays ignored.
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    handlers = {number: signal.signal(number, _on_signal) for number in heeded}
    wakeup = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(readable,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writable)
        _pending.number = 0


def _on_signal(number: int, frame: object) -> None:
    if _pending.patience is None:
        raise Interrupted(number)
    if not _pending.number:
        _pending.number, _pending.since = number, time.monotonic()


def _watch(readable: int) -> None:
    """Ends the process at a second signal. Python runs handlers between two instructions of the main
    thread, so not while that waits for a device or a compiler; a thread hears of signals at once.
    """
    first = 0.0
    with os.fdopen(readable, "rb", buffering=0) as signals:
        while byte := signals.read(1):
            number, now = byte[0], time.monotonic()
            if number not in SIGNALS:
                continue
            if not first:
                first = now
                _announce(number)
            elif now - first > _SAME_SECONDS:
                os._exit(128 + number)


def _announce(number: int) -> None:
    if _pending.patience is not None:
        name = signal.Signals(number).name
        print(f"{name}: ending after this step or epoch; again to end at once", file=sys.stderr)


@contextmanager
def deferred(patience: float) -> Iterator[None]:
    """Signals wait to be asked for.

    Args:
        patience: seconds that `between_steps` lets steps go on.
    """
    _pending.patience = patience
    try:
        yield
    finally:
        _pending.patience = None


def between_steps() -> None:
    """To be called where a step ends in the midst of an epoch.

    Raises:
        Interrupted: a signal has waited for the end of the epoch long enough. Several processes
            only end between epochs, where they can agree on it.
    """
    if not _pending.number or _pending.patience is None or jax.process_count() > 1:
        return
    if time.monotonic() - _pending.since >= _pending.patience:
        raise Interrupted(_pending.number)


def waiting() -> int:
    """Number of a signal that one of the processes has got, 0 if none has; all have to ask."""
    if jax.process_count() == 1:
        return _pending.number
    return int(np.max(multihost_utils.process_allgather(np.int32(_pending.number))))
