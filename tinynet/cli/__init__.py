"""The command line: `tinynet COMMAND`, one file per command.

This file imports only the standard library, and each command imports what it needs when it runs, so that `--help` and
mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

import tinynet
from tinynet import signals, streams
from tinynet.cli import bench, cache, env, export, inspect, predict, train

COMMANDS = (train, predict, export, inspect, bench, env, cache)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0: success. 1: the command ran, and what it reports is a failure. 2: bad input, or output that cannot be written.
    128 + the signal's number: Ctrl-C or SIGTERM.
    """
    streams.open_closed()
    output, errors = streams.lenient(sys.stdout), streams.lenient(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors), signals.raised():
        try:
            status = _run(sys.argv[1:] if arguments is None else list(arguments))
        except KeyboardInterrupt as error:
            number = signals.signal_of(error)
            print(f"tinynet: {signals.message(number)}", file=sys.stderr)
            status = 128 + number
        finally:
            failure = streams.failure(output)
            streams.failure(errors)
        if failure is not None and failure.errno != errno.EPIPE:  # a closed pipe, as with `| head`, is no error
            print(f"tinynet: standard output cannot be written: {failure.strerror}", file=sys.stderr, flush=True)
            return 2
        return status


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tinynet", description="Deep-learning layers on Triton kernels.")
    parser.add_argument("--version", action="version", version=f"tinynet {tinynet.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    # argparse takes no positional arguments after options: those of an inspected script, after --, are cut off here.
    mark = arguments.index("--") if arguments[:1] == ["inspect"] and "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:mark])
    options.script_arguments = arguments[mark + 1 :]
    return options.run(options)
