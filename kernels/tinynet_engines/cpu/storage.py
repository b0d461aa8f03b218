"""Folders for compiled kernels: writable, allowing execution, and temporary if no other will do."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
_ENOUGH = 1 << 20  # bytes: several kernels


class StorageError(OSError):
    """No folder can hold compiled kernels."""


def is_usable(directory: str | Path, execute: bool = True) -> bool:
    """Whether files can be written to a folder (created if absent) and, with `execute`, be loaded from there."""
    if not str(directory) or str(directory).startswith("~"):  # the home folder is unknown
        return False
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if execute and os.statvfs(directory).f_flag & os.ST_NOEXEC:
            return False
        with tempfile.TemporaryFile(dir=directory) as probe:
            os.posix_fallocate(probe.fileno(), 0, _ENOUGH)
    except OSError:
        return False
    return True


@functools.lru_cache
def temporary() -> Path:
    """A usable folder of this process, removed at its end.

    Raises:
        StorageError: no temporary folder is usable.
    """
    places = [*filter(None, [os.environ.get("TMPDIR")]), *_TEMPORARY]
    for place in places:
        if os.path.isdir(place) and is_usable(place):
            directory = tempfile.mkdtemp(prefix="tinynet-cpu-", dir=place)
            atexit.register(_remove, directory, os.getpid())
            return Path(directory)
    raise StorageError(
        f"compiled kernels need a writable folder that allows execution, and none of {', '.join(places)} is one: "
        "name one in TINYNET_CPU_CACHE or TMPDIR"
    )


def _remove(directory: str, process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        shutil.rmtree(directory, ignore_errors=True)


def leave_triton_cache() -> None:
    """Make Triton use the temporary folder for its cache from here on.

    Raises:
        StorageError: no temporary folder is usable.
    """
    from triton import knobs

    knobs.cache.dir = str(temporary() / "triton")
