"""Files of plain PyTorch operators, which load where tinynet is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinynet.conversion.convert import revert
from tinynet.dispatch import engine


def export(
    model: torch.nn.Module,
    example: Any,
    path: str | Path,
    *,
    format: str | None = None,
    dynamic_shapes: Any = None,
) -> Path:
    """Writes what a model computes in evaluation as a file that loads without tinynet.

    A copy of the model is exported: with torch.nn's layers where they compute the same, else with the definitions of
    tinynet's in plain PyTorch. The file holds aten (or ONNX) operators alone.

    Args:
        model: any module; it stays as it is.
        example: its argument, a tensor, or a tuple of its arguments.
        path: of the file: `.onnx`, or `.pt2` for the other formats.
        format: "onnx"; "program", which `torch.export.load(path).module()` reads; or "aotinductor", compiled for this
            machine, which `torch._inductor.aoti_load_package(path)` reads. None for the one of the path's suffix,
            "program" for `.pt2`.
        dynamic_shapes: which sizes may differ from the example's, as torch.export.export takes them; None for none.

    Returns:
        The path.

    Raises:
        ValueError: another format or suffix.
        ImportError: "onnx" without the packages onnx and onnxscript.
        RuntimeError: an operator of tinynet is left, which a module calls in a way of its own.

    Example:
        >>> model = tinynet.nn.Linear(3, 4, activation="relu")
        >>> batch = torch.export.Dim("batch", max=256)
        >>> path = tinynet.export(model, torch.ones(2, 3), "model.pt2", dynamic_shapes=({0: batch},))
        >>> torch.export.load(path).module()(torch.ones(5, 3)).shape
        torch.Size([5, 4])

    Source: torch.export.export, torch.onnx.export, torch._inductor.aoti_compile_and_package.
    """
    path = Path(path)
    write = _writer(path, format)
    arguments = example if isinstance(example, tuple) else (example,)
    copied = revert(model, verbose=False, inplace=False).eval()
    with engine("reference"), torch.no_grad():
        program = torch.export.export(copied, arguments, dynamic_shapes=dynamic_shapes)
        left = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("tinynet.")}
        if left:
            raise RuntimeError(f"export: no plain operators for {', '.join(sorted(left))}")
        write(program, path)
    return path


def _writer(path: Path, format: str | None) -> Callable[[Any, Path], Any]:
    """What writes a program in this format to this path."""
    suffixes = {"onnx": ".onnx", "program": ".pt2", "aotinductor": ".pt2"}
    found = format or {".onnx": "onnx", ".pt2": "program"}.get(path.suffix)
    if found not in suffixes:
        wrong = f"the path {str(path)!r}" if format is None else f"format {format!r}"
        raise ValueError(f"export: got {wrong}, expected a path in .onnx or .pt2 and a format of {', '.join(suffixes)}")
    if path.suffix != suffixes[found]:
        raise ValueError(f"export: path must end in {suffixes[found]} for format {found!r}, got {str(path)!r}")
    if found == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f"export: writing ONNX needs {' and '.join(missing)}: pip install onnx onnxscript")
        return _write_onnx
    return torch.export.save if found == "program" else _write_package


def _write_onnx(program: Any, path: Path) -> None:
    torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)


def _write_package(program: Any, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
