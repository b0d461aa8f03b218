"""One row of a benchmark: the same work by several contenders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OURS = "tinynet"


@dataclass(frozen=True)
class Case:
    """The same work, done by tinynet and by others.

    Attributes:
        name: what is done, e.g. "linear + relu forward".
        size: how much of it, for a person, e.g. "2048x1024x1024".
        flops: arithmetic operations it cannot do without.
        bytes: bytes it must at least read and write.
        contenders: name -> a call that does the work once; one is named `OURS`. Those whose name starts with
            "compile" are left out where compilation is not asked for.
        error: the largest difference allowed between ours and the others, over the largest value; None where results
            can't be compared (a training step changes its own weights).
        samples: the elements, images or tokens the work handles, for the plot of speed over size.
    """

    name: str
    size: str
    flops: int
    bytes: int
    contenders: dict[str, Callable[[], Any]]
    error: float | None
    samples: int = field(default=1)


@dataclass(frozen=True)
class Setting:
    """What a column's cases are made for."""

    device: torch.device
    dtype: torch.dtype
    compile: bool

    def compiled(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Callable[[], Any]]:
        """The contender "compile", or none where it is not asked for."""
        if not self.compile:
            return {}
        made = torch.compile(function)
        return {"compile": lambda: made(*arguments)}

    def random(self, *shape: int, grad: bool = False) -> Tensor:
        """Normal values in the setting's dtype."""
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_(grad)


def allowed_error(dtype: torch.dtype, reduction_length: int = 1) -> float:
    """What two right answers in `dtype` may differ by, over the largest value."""
    unit = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
    return 4 * unit + 8 * 2.0**-22 * reduction_length**0.5


def largest_difference(ours: Any, theirs: Any) -> float:
    """The largest difference between two results (a tensor, or equally long tuples of them), over the largest value."""
    if isinstance(ours, Tensor):
        a, b = ours.detach().double(), theirs.detach().double()
        return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
    return max(largest_difference(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)
