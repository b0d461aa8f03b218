"""Trains a recurrent network to classify surnames by language.

    python examples/train_name_classifier.py                       # 3,974 names in 13 languages
    python examples/train_name_classifier.py --cell lstm
    python examples/train_name_classifier.py --resume runs/gru-names

Writes metrics.csv, checkpoint.pt, curve.png and confusion.png into runs/NAME/.

The program is tinynet/programs/name_classifier.py; `tinynet train name-classifier` runs it too.
"""

import start_up  # noqa: F401, before the slow imports

# isort: split
import sys

from tinynet.programs.name_classifier import main

if __name__ == "__main__":
    sys.exit(main())
