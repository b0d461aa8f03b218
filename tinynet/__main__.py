"""`python -m tinynet`: the command line."""

import sys

from tinynet.cli import main

sys.exit(main())
