"""Ctrl-C and SIGTERM, which schedulers send: both end a program, with one sentence and exit code 128 + the signal.

This file imports the standard library alone, so that a program can use it before its other imports, which take seconds.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# `timeout` and `make` pass on a SIGTERM that has already reached the whole process group: one request, two signals.
SECONDS_OF_ONE_REQUEST = 1.0
_has_raised = False  # a signal of this process: who caught the exception has said the sentence

Handler = Callable[[int, FrameType | None], None]
AnyHandled = TypeVar("AnyHandled", bound="Handled")


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises, as Ctrl-C raises KeyboardInterrupt."""


def interruption(number: int) -> KeyboardInterrupt:
    """The exception that a signal stands for."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised the exception; a program that it ends has exit code 128 + the signal."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def sentence(number: int) -> str:
    """Says what ended a program."""
    return "interrupted by SIGTERM" if number == signal.SIGTERM else "interrupted by Ctrl-C"


class Handled:
    """While entered, Ctrl-C and SIGTERM call a handler.

    In a thread other than the main one, which gets no signals, it does nothing.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self: AnyHandled) -> AnyHandled:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Gives the signals back to their previous handlers."""
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While entered, Ctrl-C raises KeyboardInterrupt and SIGTERM raises Terminated, once a second at most."""
    last = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        global _has_raised
        nonlocal last
        now = time.monotonic()
        if now - last > SECONDS_OF_ONE_REQUEST:
            last = now
            _has_raised = True
            raise interruption(number)

    with Handled(handle):
        yield


def exit_at_once() -> None:
    """From here on Ctrl-C and SIGTERM say their sentence and end the process where it is.

    This is for the imports at the beginning of a program: nothing is lost, and an exception may not get through them.
    It holds again after the last `raised`, while the process ends.
    """

    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            if not _has_raised:
                os.write(2, os.fsencode(f"{Path(sys.argv[0]).stem}: {sentence(number)}\n"))
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)
