"""Trains a character-level language model and generates text with it.

    python examples/train_text_model.py                            # Python's documentation, 500 steps
    python examples/train_text_model.py --prompt "The for statement"
    python examples/train_text_model.py --resume runs/lstm-text --epochs 10

Writes metrics.csv, checkpoint.pt, curve.png and samples.txt into runs/NAME/.

The program is tinynet/programs/text_model.py; `tinynet train text-model` runs it too.
"""

import start_up  # noqa: F401, before the slow imports

# isort: split
import sys

from tinynet.programs.text_model import main

if __name__ == "__main__":
    sys.exit(main())
