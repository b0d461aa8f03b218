"""Ctrl-C and SIGTERM, as sent by schedulers: both end a program with a one-line message and exit code 128 + signal.

This file imports only the standard library, so that a program can use it before its slow imports.
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
# `timeout` and `make` forward a SIGTERM that the whole process group has already received: two signals, one request.
SECONDS_OF_ONE_REQUEST = 1.0
_has_raised = False  # whether a signal has raised an exception; whoever caught it has printed the message

Handler = Callable[[int, FrameType | None], None]
AnyHandled = TypeVar("AnyHandled", bound="Handled")


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, as KeyboardInterrupt is raised by Ctrl-C."""


def interruption(number: int) -> KeyboardInterrupt:
    """Returns the exception that a signal raises."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """Returns the signal that raised the exception. The exit code of a program ended by it is 128 + the signal."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


def message(number: int) -> str:
    """Returns the message that says which signal ended a program."""
    return "interrupted by SIGTERM" if number == signal.SIGTERM else "interrupted by Ctrl-C"


class Handled:
    """A context manager in which Ctrl-C and SIGTERM call a handler.

    It does nothing outside the main thread, because only the main thread handles signals.
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
        """Restores the previous handlers."""
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """A context in which Ctrl-C raises KeyboardInterrupt and SIGTERM raises Terminated, at most once per second."""
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


def exit_at_once(program: str | None = None) -> None:
    """From here on, Ctrl-C and SIGTERM print their message and end the process immediately.

    The message begins with the program's name, by default that of its file.

    This is for the imports at the beginning of a program: no work is lost there, and some imports suppress exceptions.
    The handlers are active again after the last `raised` block, while the process exits.
    """

    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            if not _has_raised:
                os.write(2, os.fsencode(f"{program or Path(sys.argv[0]).stem}: {message(number)}\n"))
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)
