"""The command line: `tinynet inspect`, `tinynet predict` and `tinynet export`."""

from __future__ import annotations

import argparse
import errno
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

from tinynet import signals, streams

DTYPES = ("fp32", "bf16", "fp16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    streams.open_closed()
    output, errors = streams.lenient(sys.stdout), streams.lenient(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors), signals.raised():
        try:
            status = _run(sys.argv[1:] if arguments is None else list(arguments))
        except KeyboardInterrupt as error:
            number = signals.signal_of(error)
            print(f"tinynet: {signals.message(number)}", file=sys.stderr)
            status = 128 + number
        finally:
            failure = streams.failure(output)
            streams.failure(errors)
        if failure is not None and failure.errno != errno.EPIPE:  # a closed pipe, as with `| head`, is no error
            print(f"tinynet: standard output cannot be written: {failure.strerror}", file=sys.stderr, flush=True)
            return 2
        return status


def _run(arguments: list[str]) -> int:
    parser = _parser()
    mark = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:mark])
    options.script_arguments = arguments[mark + 1 :]
    return options.run(options, parser)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tinynet", description="Deep-learning layers on Triton kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="report the kernel launches of a program, without a GPU",
        description="Compile a training step or a script for GPUs that the machine need not have, and report every "
        "kernel launch. Times are lower bounds computed from published peaks, not measurements.",
    )
    inspect.add_argument("script", nargs="?", help="a Python script to run; its arguments follow --")
    inspect.add_argument(
        "--model", help="inspect one training step of this model of tinynet.models, such as cnn or forecaster"
    )
    inspect.add_argument("--batch-size", type=_positive, default=256)
    inspect.add_argument("--dtype", choices=DTYPES, default="bf16")
    inspect.add_argument("--target", default="sm_90", help="one or more, separated by commas (default: sm_90)")
    inspect.add_argument("--json", type=Path, help="write the whole report to this JSON file")
    inspect.add_argument("--html", type=Path, help="write the report to this HTML page")
    inspect.set_defaults(run=_inspect)
    run_help = "folder of an image classifier's run, or its checkpoint"
    predict = commands.add_parser("predict", help="print the classes' probabilities of images")
    predict.add_argument("path", type=Path, metavar="RUN", help=run_help)
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files of any size, grey or color")
    predict.add_argument("--top", type=_positive, default=3, help="how many classes to print (default: 3)")
    predict.set_defaults(run=_predict)
    export = commands.add_parser("export", help="write a trained image classifier for other programs")
    export.add_argument("path", type=Path, metavar="RUN", help=run_help)
    export.add_argument("--to", choices=("safetensors", "onnx"), required=True, help="the file's format")
    export.add_argument("--out", type=Path, help="the file to write (default: model.FORMAT beside the checkpoint)")
    export.set_defaults(run=_export)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number


def _inspect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Returns exit status 0 if all targets accept every launch, or 1 if there is an error."""
    from tinynet_engines.offline import inspect
    from tinynet_engines.offline.html import write_html
    from tinynet_engines.offline.report import write_json
    from tinynet_engines.offline.targets import TARGETS

    targets = [name.strip() for name in options.target.split(",")]
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        parser.error(f"--target: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    if (options.script is None) == (options.model is None):
        parser.error("give either a script or --model")
    if options.model is None:
        title, program = options.script, _script(options, parser)
    else:
        title = f"{options.model}: a training step, batch {options.batch_size}, {options.dtype}"
        program = _training_step(options, parser)
    reports = []
    for name in targets:
        with inspect(name) as report:
            program()
        print(report.table(), end="\n\n")
        reports.append(report)
    try:
        if options.json:
            write_json(reports, options.json)
        if options.html:
            write_html(reports, options.html, title)
    except OSError as error:
        parser.error(f"{error.filename or 'the report'} cannot be written: {error.strerror}")
    return 1 if any(report.errors for report in reports) else 0


def _script(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Callable[[], None]:
    """Returns a function that runs the script as a main program."""
    path = Path(options.script)
    if not path.is_file():
        parser.error(f"no script {options.script}")

    def run() -> None:
        saved = sys.argv, list(sys.path)
        sys.argv = [str(path), *options.script_arguments]
        sys.path.insert(0, str(path.parent))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as finished:
            if finished.code not in (None, 0):
                raise
        finally:
            sys.argv, sys.path[:] = saved

    return run


def _training_step(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Callable[[], None]:
    """Returns a function that runs one training step of a model on tensors without memory."""
    import torch

    from tinynet.models.steps import STEPS, training_step

    if options.model not in STEPS:
        parser.error(f"--model: expected one of {', '.join(STEPS)}, got {options.model!r}")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
    return partial(training_step, options.model, options.batch_size, dtype)


def _predict(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Prints one line for each image: the most probable classes."""
    import torch

    from tinynet.data import DataError
    from tinynet.train import CheckpointError, Classifier

    try:
        classifier = Classifier.load(options.path)
        read = [classifier.read(path) for path in options.images]
    except (CheckpointError, DataError) as error:
        parser.error(str(error))
    probabilities = classifier.probabilities(torch.stack([pixels for pixels, _ in read]))
    for path, (_, is_inverted), row in zip(options.images, read, probabilities, strict=True):
        best = row.topk(min(options.top, len(row)))
        classes = [f"{classifier.class_names[index]} {100 * row[index]:.1f} %" for index in best.indices.tolist()]
        print(f"{path}: {', '.join(classes)}{' (inverted)' if is_inverted else ''}")
    return 0


def _export(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Writes the classifier's weights, or its whole computation, into a file."""
    import json

    import torch

    import tinynet
    from tinynet.train import CheckpointError, Classifier, export_weights

    folder = options.path if options.path.is_dir() else options.path.parent
    path = options.out or folder / f"model.{options.to}"
    try:
        classifier = Classifier.load(options.path)
        if options.to == "safetensors":
            about = {"class_names": classifier.class_names, "image_shape": classifier.image_shape}
            pixels = {"mean": classifier.mean.flatten().tolist(), "std": classifier.std.flatten().tolist()}
            metadata = {name: json.dumps(value) for name, value in {**about, **pixels}.items()}
            export_weights(classifier.model, path, metadata)
        else:
            tinynet.export(classifier.model, torch.zeros(1, *classifier.image_shape), path)  # pyright: ignore
    except (CheckpointError, ImportError) as error:
        parser.error(str(error))
    except AttributeError:
        parser.error(f"--to {options.to}: this version of tinynet has no export of computations")
    except OSError as error:
        parser.error(f"{path} cannot be written: {error.strerror or error}")
    print(path)
    return 0
