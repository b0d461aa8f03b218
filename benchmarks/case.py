"""One row of a benchmark: the same work done by several contenders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OURS = "tinynet"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))


@dataclass(frozen=True)
class Case:
    """The same work, done by tinynet and by others.

    Attributes:
        name: the work, e.g. "linear + relu forward".
        size: the problem size as text, e.g. "2048x1024x1024".
        flops: arithmetic operations by the definition, which GFLOP/s counts.
        bytes: minimum number of bytes to read and write.
        contenders: name -> a function that does the work once; one of them is named `OURS`. "compile" is present only
            with the option --compile.
        error: the maximum difference between tinynet's result and the others, relative to the largest value; None if
            results cannot be compared (a training step changes its own weights).
        samples: number of elements, images or tokens, for the plot of speed against size.
        family: rows of one family differ only in `samples`, and a plot joins them; None for a row that stands alone.
        least_flops: operations of the fastest known algorithm where that is another, as Winograd's; None for `flops`.
        prepare: creates the operands, where they are not created with the case.
    """

    name: str
    size: str
    flops: int
    bytes: int
    contenders: dict[str, Callable[[], Any]]
    error: float | None
    samples: int = 1
    family: str | None = None
    least_flops: int | None = None
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Setting:
    """What a column's cases are made for.

    Attributes:
        device, dtype: of the operands.
        compile: whether to time torch.compile.
        batches: batch sizes of layers for which a network has no usual one.
    """

    device: torch.device
    dtype: torch.dtype
    compile: bool
    batches: tuple[int, ...] = (8,)

    def compiled(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Callable[[], Any]]:
        """Returns the contender "compile" if requested, else none."""
        if not self.compile:
            return {}
        compiled = torch.compile(function)
        return {"compile": lambda: compiled(*arguments)}

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Returns normally distributed values in the setting's dtype."""
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_(grad)


def allowed_error(dtype: torch.dtype, reduction_length: int = 1) -> float:
    """Returns the maximum difference of two correct results in `dtype`, relative to the largest value."""
    unit = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
    return 4 * unit + 8 * 2.0**-22 * reduction_length**0.5


def forward_and_backward(function: Callable[..., Tensor], tensors: Any, leaves: Any) -> Callable[[], Any]:
    """Returns a contender: the function's gradients by the leaves, for an upstream gradient of 1."""
    return lambda: torch.autograd.grad(function(*tensors), leaves)


def largest_difference(ours: Any, theirs: Any) -> float:
    """Returns the largest difference of two results (tensors, or tuples of them), relative to the largest value."""
    if isinstance(ours, Tensor):
        a, b = ours.detach().double(), theirs.detach().double()
        return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
    return max(largest_difference(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)
