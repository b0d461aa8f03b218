"""`python -m benchmarks`."""

import sys

from tinynet import streams

from .command import main

if __name__ == "__main__":
    streams.protect()
    sys.exit(main())
