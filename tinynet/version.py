"""The version of the installed package, which is that of a tag of the repository."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tinynet-triton")
except PackageNotFoundError:  # run from its sources
    VERSION = "0+unknown"
