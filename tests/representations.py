"""The same values in other tensors: views of larger memory, lazy bits; and results compared with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import assert_close
from operand_cases import Case
from torch import Tensor

ERROR = 1e-4


def negated(x: Tensor) -> Tensor:
    """x with the lazy negative bit set."""
    y = torch.complex(torch.zeros_like(x), -x).conj().imag if x.is_floating_point() else torch._neg_view(-x)  # pyright: ignore[reportPrivateImportUsage]
    assert y.is_neg()
    return y


def conjugate_real(x: Tensor) -> Tensor:
    """x as the real part of a conjugate view."""
    return torch.complex(x, x).conj().real if x.is_floating_point() else x


def in_larger_storage(x: Tensor) -> Tensor:
    """x transposed in the middle of a larger storage, with gaps."""
    if x.dim() == 0:
        return misaligned(x)
    sizes = x.shape[::-1]
    wide = torch.full((3 * x.numel() + 7,), 97 if x.dtype is torch.int64 else torch.nan, dtype=x.dtype)
    strides = [2] * x.dim()
    for d in range(x.dim() - 2, -1, -1):
        strides[d] = strides[d + 1] * sizes[d + 1]
    view = wide.as_strided(sizes, strides, 5).permute(*reversed(range(x.dim())))
    return _Filled.apply(view, x)  # pyright: ignore[reportReturnType]


def misaligned(x: Tensor) -> Tensor:
    """x one element after an aligned address."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype)
    return _Filled.apply(storage[1:].view(x.shape), x)  # pyright: ignore[reportReturnType]


class _Filled(torch.autograd.Function):
    """The first tensor filled with the second's values, and the second's gradient."""

    @staticmethod
    def forward(ctx: Any, view: Tensor, x: Tensor) -> Tensor:
        view.copy_(x)
        ctx.mark_dirty(view)
        return view

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, grad


# For each operand: the same values in another representation; None if there is none.
SAME_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": negated,
    "conjugate_real": conjugate_real,
    "in_larger_storage": in_larger_storage,
    "misaligned": misaligned,
}


def outputs(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in outputs(part)]


def gradients(function: Callable[..., Any], leaves: dict[str, Tensor], operands: dict[str, Tensor]) -> Any:
    """Outputs, and the gradients of the leaves for fixed upstream gradients."""
    result = outputs(function(**operands))
    generator = torch.Generator().manual_seed(1)
    differentiable = [y for y in result if y.requires_grad]
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in differentiable]
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return result, torch.autograd.grad(differentiable, wanted, grads, allow_unused=True) if wanted else ()


def leaves_of(case: Case, operands: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Copies of a case's operands in `dtype`, which require a gradient if they can have one."""
    leaves = {}
    for name, x in operands.items():
        leaves[name] = x.to(dtype).clone() if x.is_floating_point() else x.clone()
        leaves[name].requires_grad_(x.is_floating_point() and name not in case.constant)
    return leaves


def assert_both_close(actual: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Both are None, or both are tensors that agree, on the scale of 1 at least: terms of order 1 may cancel."""
    if actual is None or expected is None:
        assert actual is expected, what
        return
    assert actual.shape == expected.shape, what
    a, e = (torch.cat([x.detach().double().flatten(), torch.ones(1)]) for x in (actual, expected))
    assert_close(a, e, ERROR, what)
