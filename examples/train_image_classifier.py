"""Trains an image classifier and draws pictures of the result.

    python examples/train_image_classifier.py                             # a CNN on 4,000 handwritten digits
    python examples/train_image_classifier.py --model mlp --data digits
    python examples/train_image_classifier.py --resume runs/cnn-mnist5k   # continues from its checkpoint

Writes metrics.csv, checkpoint.pt, curve.png, confusion.png, filters.png and samples.png into runs/NAME/.
"""

import start_up  # noqa: F401, before the slow imports

# isort: split
import sys
from collections.abc import Sequence

import tinynet
from tinynet import nn, optim
from tinynet.data import IMAGE_DATA, ImageBatches, load_images
from tinynet.models import build
from tinynet.train import DTYPES, Trainer, accuracy, make_deterministic, warm_up_and_cosine
from tinynet.train.options import RunParser
from tinynet.train.report import IMAGE_PICTURES, write_image_report
from tinynet.train.run import run_training

LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 5e-4
WARM_UP = 0.1  # fraction of all steps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = RunParser("train_image_classifier", "Train an image classifier.", epochs=15, batch_size=64, lr=0.05)
    parser.add_argument("--model", choices=["cnn", "mlp"], default="cnn", help="the model to train")
    parser.add_argument("--data", choices=IMAGE_DATA, default="mnist5k", help="the data set to train on")
    options = parser.parse_run(arguments)
    make_deterministic(options.seed)

    with parser.report_errors(), tinynet.engine(options.engine):
        data = load_images(options.data)
        batches = ImageBatches(data, options.batch_size, seed=options.seed, shift=data.shift, device=options.device)
        model = build(options.model, image_shape=data.image_shape, classes=data.classes).to(options.device)
        total_steps = options.steps or options.epochs * len(batches)
        optimizer = optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
        trainer = Trainer(
            model,
            batches,
            nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING),
            optimizer,
            warm_up_and_cosine(optimizer, total_steps, round(WARM_UP * total_steps)),
            measures={"accuracy": accuracy},
            dtype=DTYPES[options.dtype],
            unit="images",
            config=parser.config(options),
        )
        return run_training(
            parser,
            options,
            trainer,
            total_steps,
            model=options.model,
            data=data,
            folder_name=f"{options.model}-{options.data}",
            report_names=IMAGE_PICTURES,
            report=lambda folder: write_image_report(folder, trainer, data),
            summary=lambda: f"test accuracy {100 * trainer.rows[-1]['test_accuracy']:.2f} %",
        )


if __name__ == "__main__":
    sys.exit(main())
