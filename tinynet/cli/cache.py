"""`tinynet cache`: what is stored on disk, and removing compiled kernels."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from tinynet.cli import caches


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "cache",
        help="remove compiled kernels",
        description="`clear` removes kernels that were compiled for this CPU; they are compiled again when they are "
        "needed. `tinynet env` shows the caches and their sizes.",
    )
    parser.add_argument("action", choices=["clear"], help="what to do")
    parser.add_argument("--triton", action="store_true", help="also clear Triton's cache, which other programs share")
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    cleared = [caches.compiled_by_cpu_engine()]
    if options.triton:
        try:
            cleared.append(caches.compiled_by_triton())
        except ImportError:
            parser.error("--triton: Triton is not installed")
    for cache in cleared:
        try:
            print(f"removed {caches.shown(cache.clear())} of {cache.name} from {cache.folder}")
        except OSError as error:
            parser.error(f"{error.filename} cannot be removed: {error.strerror}")
    return 0
