"""The folders in which tinynet keeps compiled kernels and downloads."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cache:
    """A folder of files that are created again when they are missing.

    Attributes:
        name: what is in it.
        folder: where it is; other programs' files may be there too.
        pattern: of the names of its entries, which are files or folders.
    """

    name: str
    folder: Path
    pattern: str

    def entries(self) -> Iterator[Path]:
        """Yields the files and folders that belong to the cache."""
        try:
            with os.scandir(self.folder) as found:
                yield from (Path(each.path) for each in found if re.fullmatch(self.pattern, each.name))
        except OSError:
            return

    def size(self) -> int:
        """Returns the number of bytes in it."""
        return sum(_size(entry) for entry in self.entries())

    def clear(self) -> int:
        """Removes all entries that can be removed, and returns their size in bytes."""
        removed = 0
        for entry in self.entries():
            size = _size(entry)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            removed += size
        return removed


def compiled_by_cpu_engine() -> Cache:
    """The CPU engine's shared objects, one per kernel, dtypes and constants."""
    from tinynet_engines.cpu.toolchain import cache_directory

    return Cache("kernels compiled for this CPU", cache_directory(), r"[0-9a-f]{64}\.so")


def compiled_by_triton() -> Cache:
    """Triton's own cache, which all programs with Triton kernels share."""
    from triton import knobs

    return Cache("kernels compiled by Triton", Path(knobs.cache.dir), r"[A-Z2-7]{52}")


def downloads() -> Cache:
    """Data sets that torchvision downloaded."""
    from tinynet.data.images import download_folder

    return Cache("downloaded data sets", download_folder(), "MNIST|FashionMNIST|cifar-10.*")


def shown(size: int) -> str:
    """Returns a size with its unit."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; those that vanish meanwhile count nothing."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(_size(Path(each.path)) for each in os.scandir(path))
        return path.lstat().st_size
    except OSError:
        return 0
