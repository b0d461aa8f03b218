"""Standard output and error that can't fail: a program's work is not lost because nobody reads what it says.

This file imports the standard library alone, so that a program can use it before its other imports, which take seconds.
"""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


def open_closed() -> None:
    """Opens the null device as each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next file that is opened gets the free number, and with it what is written to the standard stream.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number: this one
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def lenient(stream: TextIO) -> TextIO:
    """Returns a stream that writes where `stream` does, but never fails.

    After a write that failed (nobody reads, the device is full) everything is written to the null device, and
    `failure` says why. Characters that the encoding lacks are written as escapes. A stream without a descriptor, such
    as a StringIO, is returned as it is.
    """
    try:
        stream.fileno()
        buffer = stream.buffer
    except (AttributeError, OSError):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = _LenientRaw(stream, getattr(buffer, "raw", buffer))  # unbuffered streams have no buffer between
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=bool(stream.line_buffering),
        write_through=bool(getattr(stream, "write_through", False)),
    )


def failure(stream: TextIO) -> OSError | None:
    """Flushes a stream; returns the error that ended its output, or None."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _LenientRaw) else None


class _LenientRaw(io.RawIOBase):
    """Writes to another raw stream until it fails, then to the null device."""

    def __init__(self, stream: TextIO, raw: Any) -> None:
        self.error: OSError | None = None
        self._raw = raw
        self._stream = stream  # which closes its raw stream once nobody holds it

    def write(self, data: Any, /) -> int | None:
        try:
            return self._raw.write(data)
        except OSError as error:
            self.error = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def writable(self) -> bool:
        return True
