"""The command-line options that the training programs share, and their error messages."""

import argparse
import os
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from tinynet import dispatch, signals
from tinynet.arguments import positive_float, positive_int, seed
from tinynet.data import DataError
from tinynet.graphs import GraphError
from tinynet.train.checkpoint import CheckpointError, read_checkpoint
from tinynet.train.files import WriteError
from tinynet.train.trainer import CHECKPOINT_NAME, DTYPES, TrainingError

# A resumed run may train longer and on another device; all other options must be those of the checkpoint.
NOT_IN_CHECKPOINT = ("device", "engine", "graph", "out", "resume")
MAY_CHANGE_ON_RESUME = ("epochs", "steps")


class RunParser(argparse.ArgumentParser):
    """An argument parser for a training run, whose errors are one line and exit code 2.

    Args:
        name: the program's name; it is saved in checkpoints, and those of other programs are rejected.
        description: the first line of the help.
        prog: how the program was called, for the help and messages; None for its name.
        epochs, batch_size, lr: defaults of these options; None where they depend on others.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        epochs: int | None,
        batch_size: int | None,
        lr: float | None,
        prog: str | None = None,
    ) -> None:
        super().__init__(
            prog=prog or name,
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        self._name = name
        self._folder: Path | None = None
        add = self.add_argument
        add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
        add("--dtype", choices=DTYPES, default="fp32", help="dtype of the computation, with autocast")
        add("--engine", choices=dispatch.NAMES, default="auto", help="what computes; auto: kernels if they can run")
        add("--epochs", type=positive_int, default=epochs, help="passes over the training set")
        add("--steps", type=positive_int, default=None, help="number of optimizer steps, instead of --epochs")
        add("--batch-size", type=positive_int, default=batch_size, help="samples per step")
        add("--lr", type=positive_float, default=lr, help="maximum learning rate")
        add("--graph", action="store_true", help="record the training step once and replay it: the same losses, faster")
        add("--seed", type=seed, default=0, help="random seed of weights, order and augmentation")
        add("--out", type=Path, default=None, help="folder of the run; if not given, a new folder in runs/")
        add("--resume", type=Path, default=None, help="checkpoint, or folder of a run, to continue")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")

    def parse_run(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses the options of a run; with --resume, the defaults are the options of the checkpoint.

        Returns:
            The options by name; `device` is an available torch.device, and `resume` a file or None.
        """
        options = self.parse_args(arguments)
        given = self._given(arguments)
        if {"epochs", "steps"} <= given:
            self.error("--epochs and --steps both set the length of the training: give only one")
        if options.resume is not None:
            self._load_options(options, given)
        options.device = self._existing_device(options.device)
        if options.engine == "kernels":
            reason = dispatch.unavailable_reason(options.device.type)
            if reason is not None:
                self.error(f"--engine kernels: {reason}")
        return options

    def config(self, options: argparse.Namespace, without: Sequence[str] = ()) -> dict[str, Any]:
        """Returns what to save in a checkpoint: the program's name and the options that a resumed run must share.

        Args:
            options: the options of the run.
            without: names of options that do not affect the training.
        """
        left_out = {*NOT_IN_CHECKPOINT, *without}
        flags = {name: value for name, value in vars(options).items() if name not in left_out}
        return {"program": self._name, **flags}

    def make_folder(self, out: Path | None, default_name: str, resumed: Path | None) -> Path:
        """Creates the run's folder: `out`, or the first of runs/NAME, runs/NAME-2, ... that does not exist.

        A folder that contains a checkpoint other than the resumed one is an error.
        """
        try:
            out = out or _new_folder(default_name)
            checkpoint = out / CHECKPOINT_NAME
            if checkpoint.exists() and (resumed is None or not checkpoint.samefile(resumed)):
                self.error(
                    f"--out {out} contains a checkpoint: continue it with --resume {out}, or choose another folder"
                )
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            self.error(f"--out {out} is not a folder: it is a file, or inside a file")
        except OSError as error:
            self.error(f"--out {out} cannot be created: {error.strerror}")
        if not os.access(out, os.W_OK):
            self.error(f"--out {out} cannot be written to")
        self._folder = out
        return out

    @contextmanager
    def report_errors(self) -> Iterator[None]:
        """Turns errors that the user can fix into a one-line message and exit code 2 (1 if the training failed).

        Ctrl-C ends the program with a one-line message and exit code 130, SIGTERM with 143.
        """
        with signals.raised():
            try:
                yield
            except (CheckpointError, DataError) as error:
                self.error(str(error))
            except (GraphError, TrainingError, WriteError) as error:
                self.exit(1, f"{self.prog}: {error}\n")
            except KeyboardInterrupt as error:
                number = signals.signal_of(error)
                self.exit(128 + number, f"{self.prog}: {signals.message(number)}{self._resume_hint()}\n")

    def _resume_hint(self) -> str:
        """Says how to continue an interrupted run, if it has a checkpoint."""
        if self._folder is None or not (self._folder / CHECKPOINT_NAME).exists():
            return ""
        return f"; --resume {self._folder} continues from its last checkpoint"

    def _given(self, arguments: Sequence[str] | None) -> set[str]:
        """Returns the names of the options given on the command line."""
        absent = object()
        names = vars(self.parse_args([]))
        parsed = self.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names, absent)))
        return {name for name, value in vars(parsed).items() if value is not absent}

    def _load_options(self, options: argparse.Namespace, given: set[str]) -> None:
        if os.path.isdir(options.resume):
            options.resume = options.resume / CHECKPOINT_NAME
        with self.report_errors():
            config = self._read_config(options.resume)
        if "epochs" in given:
            config["steps"] = None
        for name, value in config.items():
            if name not in given:
                setattr(options, name, value)
            elif getattr(options, name) != value and name not in MAY_CHANGE_ON_RESUME:
                flag = "--" + name.replace("_", "-")
                self.error(
                    f"{flag} {getattr(options, name)} differs from the value {value} in {options.resume}: "
                    "omit it, or start a new run"
                )
        options.out = options.out or options.resume.parent

    def _read_config(self, path: Path) -> dict[str, Any]:
        """Reads the options of a checkpoint's run and checks that this program accepts them.

        Raises:
            CheckpointError: no checkpoint, one of another program, or an option that this program does not accept.
        """
        config = read_checkpoint(path).get("config")
        program = config.pop("program", None) if isinstance(config, dict) else None
        if not isinstance(config, dict) or not isinstance(program, str):
            raise CheckpointError(f"--resume {path} is a checkpoint of another program")
        if program != self._name:
            raise CheckpointError(f"--resume {path} is a checkpoint of {program}")
        flags = {action.dest: action for action in self._actions if action.dest not in NOT_IN_CHECKPOINT}
        for name, value in config.items():
            if name not in flags or not _is_valid(flags[name], value):
                raise CheckpointError(f"{path} is damaged: config.{name} is {reprlib.repr(value)}")
        return config

    def _existing_device(self, name: str) -> torch.device:
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
        except RuntimeError:
            self.error(f"--device {name} is not a device: try auto, cpu or cuda")
        if device.type == "cuda" and not torch.cuda.is_available():
            self.error(f"--device {name}: PyTorch {torch.__version__} finds no GPU on this machine")
        try:
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError, ImportError):
            self.error(f"--device {name} does not exist on this machine, or PyTorch {torch.__version__} cannot use it")
        return device


def _new_folder(name: str) -> Path:
    """Returns the first of runs/NAME, runs/NAME-2, ... that does not exist."""
    number, folder = 1, Path("runs") / name
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _is_valid(flag: argparse.Action, value: Any) -> bool:
    """Whether an option accepts the value."""
    if value is None:
        return flag.default is None
    if not isinstance(value, str | int | float):
        return False
    parse = flag.type if callable(flag.type) else str
    try:
        is_parsed = parse(str(value)) == value
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return is_parsed and (flag.choices is None or value in flag.choices)
