"""Trains a recurrent network to forecast next year's sunspots.

    python examples/train_forecaster.py                            # trains on 251 years, 58 are held out
    python examples/train_forecaster.py --resume runs/lstm-sunspots

Writes metrics.csv, checkpoint.pt, curve.png and forecast.png into runs/NAME/.

The program is tinynet/programs/forecaster.py; `tinynet train forecaster` runs it too.
"""

import start_up  # noqa: F401, before the slow imports

# isort: split
import sys

from tinynet.programs.forecaster import main

if __name__ == "__main__":
    sys.exit(main())
