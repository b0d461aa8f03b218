"""Checkpoints: everything needed to resume a run, in one file that is written atomically."""

import math
import os
import reprlib
import zipfile
from pathlib import Path
from typing import Any

import torch

from tinynet.train.files import WriteError, replacing

FORMAT = "tinynet checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another program or model, or cannot be written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically: a crash leaves either the old file or the new one.

    Args:
        path: the file to write, in an existing folder.
        state: tensors, numbers, strings, and nested lists and dicts of them.

    Raises:
        CheckpointError: the file cannot be written; the old file is unchanged.
    """
    try:
        with replacing(path) as part, open(part, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except WriteError as error:
        raise CheckpointError(f"the checkpoint {error}") from error
    except RuntimeError as error:  # torch.save raises this after the OSError of a full disk
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"the checkpoint {path} cannot be written: {reason}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU without executing code that the file may contain.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of tinynet.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with open(path, "rb") as file:
            damaged = zipfile.ZipFile(file).testzip()  # torch.load does not verify the checksums
            file.seek(0)
            state = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch, zipfile and pickle raise various errors
        raise CheckpointError(f"{path} cannot be read as a checkpoint: it is truncated, or not a checkpoint") from error
    if damaged:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {damaged} in it is damaged")
    if not isinstance(state, dict) or not _is(state.get("format"), FORMAT):
        raise CheckpointError(f"{path} is not a checkpoint of tinynet")
    if not _is(state.get("version"), VERSION):
        version = reprlib.repr(state.get("version"))
        raise CheckpointError(
            f"{path} is a checkpoint of version {version}, but this version of tinynet reads version {VERSION}"
        )
    return state


def check_like(name: str, saved: Any, fresh: Any) -> None:
    """Checks that a value of a checkpoint has the same structure as the value of a new run.

    Args:
        name: the value's name, for the error message.
        saved: the value from the checkpoint.
        fresh: the value of a new run, as in a `state_dict`; `saved` may have more dict keys.

    Raises:
        ValueError: a different type or length, a missing key, or a number that is not finite.
    """
    if isinstance(fresh, dict):
        absent = [key for key in fresh if not isinstance(saved, dict) or key not in saved]
        if absent:
            raise ValueError(f"{name}: got {reprlib.repr(saved)}, expected a dict with {absent[0]!r}")
        for key in fresh:
            check_like(f"{name}.{key}", saved[key], fresh[key])
    elif isinstance(fresh, list | tuple):
        if not isinstance(saved, type(fresh)) or len(saved) != len(fresh):
            raise ValueError(f"{name}: got {reprlib.repr(saved)}, expected a {type(fresh).__name__} of {len(fresh)}")
        for index, (mine, other) in enumerate(zip(saved, fresh, strict=True)):
            check_like(f"{name}[{index}]", mine, other)
    elif isinstance(fresh, float):
        if type(saved) not in (int, float) or not math.isfinite(saved):
            raise ValueError(f"{name}: got {reprlib.repr(saved)}, expected a finite number")
    elif type(saved) is not type(fresh):
        raise ValueError(f"{name}: got {reprlib.repr(saved)}, expected a value like {fresh!r}")


def _is(value: Any, expected: Any) -> bool:
    return type(value) is type(expected) and value == expected


def export_weights(model: torch.nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the model's state_dict to a safetensors file, which programs can read without PyTorch.

    Args:
        model: any module.
        path: the file to write.
        metadata: texts by name, saved in the file's head.

    Raises:
        ImportError: safetensors is not installed.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("export_weights needs safetensors: pip install 'tinynet-triton[export]'") from error
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path, metadata=metadata)
