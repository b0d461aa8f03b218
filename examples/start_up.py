"""Imported by the training programs before all other imports, which take seconds.

From then on, Ctrl-C and SIGTERM end the program with a one-line message, and a failing standard output does not end it.
"""

from tinynet import signals, streams

signals.exit_at_once()
streams.protect()
