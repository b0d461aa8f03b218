"""Standard output and error that cannot fail, so that a closed pipe or a full disk does not end a program.

This file imports only the standard library, so that a program can use it before its slow imports.
"""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


def open_closed() -> None:
    """Opens the null device for each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next file to be opened would get that number, and what is written to the standard stream would end up
    in the file.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # uses the lowest free number: this one
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def protect() -> None:
    """Makes this program's standard streams exist and never fail: what a program calls first, before it prints."""
    open_closed()
    sys.stdout, sys.stderr = lenient(sys.stdout), lenient(sys.stderr)


def lenient(stream: TextIO) -> TextIO:
    """Returns a stream that writes where `stream` does, but never fails.

    After a failed write (the pipe is closed, the disk is full), all further output goes to the null device, and
    `failure` returns the error. Characters that the encoding lacks are written as escapes. A stream without a
    descriptor, such as a StringIO, is returned unchanged.
    """
    try:
        stream.fileno()
        buffer = stream.buffer
    except (AttributeError, OSError):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = _LenientRaw(stream, getattr(buffer, "raw", buffer))  # an unbuffered stream's buffer is its raw stream
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
    """Writes to another raw stream until a write fails, then to the null device."""

    def __init__(self, stream: TextIO, raw: Any) -> None:
        self.error: OSError | None = None
        self._raw = raw
        self._stream = stream  # kept alive: its destructor closes the raw stream

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
