"""The flags that every training example takes, and what is wrong with them in a sentence."""

import argparse
import math
import os
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from tinynet import dispatch, signals
from tinynet.data import DataError
from tinynet.train.checkpoint import CheckpointError, read_checkpoint
from tinynet.train.files import WriteError
from tinynet.train.trainer import CHECKPOINT_NAME, DTYPES, TrainingError

# A resumed run may train longer and run elsewhere, but it computes what the checkpoint's run did.
NOT_OF_THE_RUN = ("device", "engine", "out", "resume")
FREE_ON_RESUME = ("epochs", "steps")


class RunParser(argparse.ArgumentParser):
    """An argument parser for a training run, whose errors are one sentence and exit code 2.

    Args:
        name: of the program; a checkpoint of another program is refused.
        description: the first line of the help.
        epochs, batch_size, lr: the defaults of these flags.
    """

    def __init__(self, name: str, description: str, *, epochs: int, batch_size: int, lr: float) -> None:
        super().__init__(
            prog=name,
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        self._folder: Path | None = None
        add = self.add_argument
        add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one")
        add("--dtype", choices=DTYPES, default="fp32", help="what to compute in, by autocast")
        add("--engine", choices=dispatch.NAMES, default="auto", help="who computes; auto: kernels where they run")
        add("--epochs", type=positive_int, default=epochs, help="passes over the train set")
        add("--steps", type=positive_int, default=None, help="optimizer steps, instead of epochs")
        add("--batch-size", type=positive_int, default=batch_size, help="samples a step")
        add("--lr", type=positive_float, default=lr, help="the highest learning rate")
        add("--seed", type=seed, default=0, help="of weights, order and augmentation")
        add("--out", type=Path, default=None, help="folder of the run; a new one in runs/ if not given")
        add("--resume", type=Path, default=None, help="checkpoint, or folder of a run, to go on from")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")

    def parse_run(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses the flags of a run; with --resume, those of the checkpoint hold where none is given.

        Returns:
            The flags by name, with `device` a torch.device that exists, and `resume` a file or None.
        """
        options = self.parse_args(arguments)
        given = self._given(arguments)
        if {"epochs", "steps"} <= given:
            self.error("--epochs and --steps both say how long to train: give one of them")
        if options.resume is not None:
            self._take_over_checkpoint(options, given)
        options.device = self._existing_device(options.device)
        if options.engine == "kernels":
            reason = dispatch.unavailable_reason(options.device.type)
            if reason is not None:
                self.error(f"--engine kernels: {reason}")
        return options

    def config(self, options: argparse.Namespace, without: Sequence[str] = ()) -> dict[str, Any]:
        """What a checkpoint says about its run: the program and the flags that a resumed run takes over.

        Args:
            options: the flags of the run.
            without: names of the program's own flags that change nothing in the training.
        """
        left_out = {*NOT_OF_THE_RUN, *without}
        flags = {name: value for name, value in vars(options).items() if name not in left_out}
        return {"program": self.prog, **flags}

    def make_folder(self, out: Path | None, default_name: str, resumed: Path | None) -> Path:
        """Makes the run's folder: `out`, or else the first of runs/NAME, runs/NAME-2, ... that is not there.

        A folder with a checkpoint other than the resumed one is refused.
        """
        try:
            out = out or _new_folder(default_name)
            checkpoint = out / CHECKPOINT_NAME
            if checkpoint.exists() and (resumed is None or not checkpoint.samefile(resumed)):
                self.error(f"--out {out} holds a checkpoint: go on with --resume {out}, or name another folder")
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            self.error(f"--out {out} is a file, or lies in one, and not a folder")
        except OSError as error:
            self.error(f"--out {out} cannot be made: {error.strerror}")
        if not os.access(out, os.W_OK):
            self.error(f"--out {out} cannot be written to")
        self._folder = out
        return out

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """Turns what a person can fix into a sentence and exit code 2 (1 where the training itself failed).

        Ctrl-C ends the program with a sentence and exit code 130, SIGTERM with 143.
        """
        with signals.raised():
            try:
                yield
            except (CheckpointError, DataError) as error:
                self.error(str(error))
            except (TrainingError, WriteError) as error:
                self.exit(1, f"{self.prog}: {error}\n")
            except KeyboardInterrupt as error:
                number = signals.signal_of(error)
                self.exit(128 + number, f"{self.prog}: {signals.sentence(number)}{self._way_on()}\n")

    def _way_on(self) -> str:
        """How an interrupted run goes on, where it has a checkpoint to go on from."""
        if self._folder is None or not (self._folder / CHECKPOINT_NAME).exists():
            return ""
        return f"; --resume {self._folder} goes on from its last checkpoint"

    def _given(self, arguments: Sequence[str] | None) -> set[str]:
        """The flags that are on the command line."""
        absent = object()
        names = vars(self.parse_args([]))
        parsed = self.parse_args(arguments, argparse.Namespace(**dict.fromkeys(names, absent)))
        return {name for name, value in vars(parsed).items() if value is not absent}

    def _take_over_checkpoint(self, options: argparse.Namespace, given: set[str]) -> None:
        if os.path.isdir(options.resume):
            options.resume = options.resume / CHECKPOINT_NAME
        with self.sentences():
            config = self._read_config(options.resume)
        if "epochs" in given:
            config["steps"] = None
        for name, value in config.items():
            if name not in given:
                setattr(options, name, value)
            elif getattr(options, name) != value and name not in FREE_ON_RESUME:
                flag = "--" + name.replace("_", "-")
                self.error(
                    f"{flag} {getattr(options, name)} differs from the {value} of {options.resume}: "
                    "leave it out, or start a new run"
                )
        options.out = options.out or options.resume.parent

    def _read_config(self, path: Path) -> dict[str, Any]:
        """The flags that a checkpoint's run had, each of them one that this program takes.

        Raises:
            CheckpointError: no checkpoint, or one of another program, or a flag that this program would refuse.
        """
        config = read_checkpoint(path).get("config")
        program = config.pop("program", None) if isinstance(config, dict) else None
        if not isinstance(config, dict) or not isinstance(program, str):
            raise CheckpointError(f"--resume {path} is a checkpoint of another program")
        if program != self.prog:
            raise CheckpointError(f"--resume {path} is a checkpoint of {program}")
        flags = {action.dest: action for action in self._actions if action.dest not in NOT_OF_THE_RUN}
        for name, value in config.items():
            if name not in flags or not _can_be(flags[name], value):
                raise CheckpointError(f"{path} is damaged: config.{name} is {reprlib.repr(value)}")
        return config

    def _existing_device(self, name: str) -> torch.device:
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(name)
        except RuntimeError:
            self.error(f"--device {name} is no device: try auto, cpu or cuda")
        if device.type == "cuda" and not torch.cuda.is_available():
            self.error(f"--device {name}: PyTorch {torch.__version__} sees no GPU here")
        try:
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError, ImportError):
            self.error(f"--device {name} is not on this machine, or PyTorch {torch.__version__} cannot use it")
        return device


def _new_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that is not there."""
    number, folder = 1, Path("runs") / name
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _can_be(flag: argparse.Action, value: Any) -> bool:
    """Whether a flag can have given the value."""
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


def positive_int(text: str) -> int:
    """Parses a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """Parses a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def seed(text: str) -> int:
    """Parses a whole number of at least 0 and below 2^31."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**31 - 1}, got {text!r}")
    return value
