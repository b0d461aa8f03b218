"""Checkpoints: everything a run needs to go on, in one file that is never half written."""

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = "tinynet checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is absent, truncated, foreign, of another model, or cannot be written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint in one move: a crash leaves either the old file or the new one.

    Args:
        path: the file to write; its folder exists.
        state: tensors, numbers, strings, lists and dicts, nested as you like.

    Raises:
        CheckpointError: the file cannot be written; what was there before is still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, without running any code that the file may hold.

    Raises:
        CheckpointError: the file is absent, truncated, or no checkpoint of tinynet.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise CheckpointError(f"{path} cannot be read as a checkpoint: it is truncated, or no checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of tinynet")
    if state["version"] != VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {state['version']}, and this tinynet reads version {VERSION}"
        )
    return state


def export_weights(model: torch.nn.Module, path: Path) -> None:
    """Writes the model's state_dict as a safetensors file, which other programs read without PyTorch.

    Raises:
        ImportError: safetensors is not installed.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("export_weights needs safetensors: pip install 'tinynet-triton[export]'") from error
    save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, path)
