"""`tinynet bench`: the benchmarks, with their own options.

They are the folder benchmarks/ of the repository, and `tinynet.benchmarks` in the wheel.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import tinynet

PACKAGE = Path(tinynet.__file__).parent


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    # Without prefix characters nothing is an option here: all that is given goes to the benchmarks' own parser.
    parser = commands.add_parser(
        "bench", help="compare the kernels' speed with PyTorch's", prefix_chars="\0", add_help=False
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=_run)


def benchmarks_module(name: str) -> Any:
    """Imports a module of the benchmarks, from wherever they are."""
    if (PACKAGE / "benchmarks").is_dir():
        package = "tinynet.benchmarks"
    else:
        package = "benchmarks"
        sys.path.insert(0, str(PACKAGE.parent))
    return importlib.import_module(f"{package}.{name}")


def _run(options: argparse.Namespace) -> int:
    return benchmarks_module("command").main(options.arguments, prog="tinynet bench")
