"""Logs of a run for other programs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any


class TensorBoardLog:
    """Writes the rows of metrics.csv as TensorBoard scalars, into the run's folder.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ImportError("TensorBoard is not installed: pip install tensorboard")
        self._writer: Any = None

    def __call__(self, folder: Path, row: dict[str, float]) -> None:
        """Writes one row of metrics.csv."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        for name, value in row.items():
            if name not in ("epoch", "step"):
                part, _, measure = name.partition("_")
                self._writer.add_scalar(f"{measure}/{part}" if measure else name, value, int(row["step"]))
        self._writer.flush()
