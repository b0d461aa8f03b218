"""Trains an image classifier and draws pictures of the result.

    python examples/train_image_classifier.py                                 # on 4,000 handwritten digits
    python examples/train_image_classifier.py --fast                          # the same in a quarter of the time
    python examples/train_image_classifier.py --model mlp --data digits
    python examples/train_image_classifier.py --data path/                    # images of one's own, a folder per class
    python examples/train_image_classifier.py --resume runs/convnet-mnist5k   # continues from its checkpoint

Writes metrics.csv, checkpoint.pt, curve.png, confusion.png, filters.png and samples.png into runs/NAME/. After that,
`tinynet predict runs/NAME image.png` prints the probabilities of an image's classes.

The program is tinynet/programs/image_classifier.py; `tinynet train image-classifier` runs it too.
"""

import start_up  # noqa: F401, before the slow imports

# isort: split
import sys

from tinynet.programs.image_classifier import main

if __name__ == "__main__":
    sys.exit(main())
