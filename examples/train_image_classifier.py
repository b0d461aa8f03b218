"""Trains an image classifier and draws what it learned.

    python examples/train_image_classifier.py                             # a CNN on 4,000 handwritten digits
    python examples/train_image_classifier.py --model mlp --data digits
    python examples/train_image_classifier.py --resume runs/cnn-mnist5k   # goes on from its checkpoint

Writes metrics.csv, checkpoint.pt, curve.png, confusion.png, filters.png and samples.png into runs/NAME/.
"""

import sys
from collections.abc import Sequence

import tinynet
from tinynet import nn, optim
from tinynet.data import IMAGE_DATA, ImageBatches, load_images
from tinynet.engines.dispatch import describe
from tinynet.models import build
from tinynet.train import DTYPES, Trainer, accuracy, make_deterministic, warm_up_and_cosine
from tinynet.train.options import RunParser
from tinynet.train.report import write_image_report
from tinynet.train.trainer import CHECKPOINT_NAME, METRICS_NAME

LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 5e-4
WARM_UP = 0.1  # of all steps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = RunParser("train_image_classifier", "Train an image classifier.", epochs=15, batch_size=64, lr=0.05)
    parser.add_argument("--model", choices=["cnn", "mlp"], default="cnn", help="what to train")
    parser.add_argument("--data", choices=IMAGE_DATA, default="mnist5k", help="what to train on")
    options = parser.parse_run(arguments)
    make_deterministic(options.seed)

    with parser.sentences(), tinynet.engine(options.engine):
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
        if options.resume is not None:
            trainer.resume(options.resume)
            if trainer.progress.step >= total_steps:
                parser.error(f"{options.resume} has done its {trainer.progress.step} steps: give more with --epochs")
        trainer.folder = parser.make_folder(options.out, f"{options.model}-{options.data}", options.resume)

        weights = sum(parameter.numel() for parameter in model.parameters())
        print(f"{options.model} with {weights:,} weights on {data}")
        print(describe(options.device), flush=True)
        is_complete = trainer.fit(total_steps)
        files = [METRICS_NAME, CHECKPOINT_NAME, *write_image_report(trainer.folder, trainer, data)]

    percent, steps = 100 * trainer.rows[-1]["test_accuracy"], trainer.progress.step
    print(f"test accuracy {percent:.2f} % after {steps:,} steps, {trainer.progress.seconds:.1f} s of training")
    print(f"{trainer.folder}: {', '.join(files)}")
    if not is_complete:
        print(f"stopped at step {steps:,} of {total_steps:,}: --resume {trainer.folder} goes on from there")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
