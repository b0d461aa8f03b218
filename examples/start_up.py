"""Imported by the training programs before all other imports, which take seconds.

From then on, Ctrl-C and SIGTERM end the program with a one-line message, and a failing standard output does not end it.
"""

import sys

from tinynet import signals, streams

signals.exit_at_once()
streams.open_closed()
sys.stdout, sys.stderr = streams.lenient(sys.stdout), streams.lenient(sys.stderr)
