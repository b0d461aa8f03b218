"""What a program here does before its other imports, which take seconds: it imports this file first.

From then on Ctrl-C and SIGTERM end it with a sentence, and nothing that happens to its standard output does.
"""

import sys

from tinynet import signals, streams

signals.exit_at_once()
streams.open_closed()
sys.stdout, sys.stderr = streams.lenient(sys.stdout), streams.lenient(sys.stderr)
