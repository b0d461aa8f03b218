"""`tinynet train PROGRAM`: the training programs, with their own options."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from tinynet import signals
from tinynet.programs import PROGRAMS


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "train",
        help="train a model on data included in tinynet, or on images of your own",
        description="Train a model. `tinynet train PROGRAM --help` lists the program's options.",
        epilog="Programs: " + "; ".join(f"{name}: {what}" for name, (_, what) in PROGRAMS.items()) + ".",
    )
    parser.add_argument("program", choices=PROGRAMS, metavar="PROGRAM", help=", ".join(PROGRAMS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's options")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    prog = f"tinynet train {options.program}"
    signals.exit_at_once(prog)  # some of the imports suppress exceptions
    program = importlib.import_module(PROGRAMS[options.program][0])
    return program.main(options.arguments, prog=prog)
