"""Comparing kernels with their reference: outputs, every gradient, and the tensors that must not change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

# Rounding of one result, relative to the largest value; a reduction adds sqrt(length) roundings of its partial sums.
UNIT = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ODD_SIZES = (1, 17, 63, 129)
ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty"), (Tensor, "new_empty_strided"))
EMPTY = torch.empty
FENCE = 64  # elements after an allocated tensor


def tolerance(dtype: torch.dtype, reduction_length: int = 1) -> float:
    """The largest error, relative to the largest value, that rounding explains.

    16-bit inputs are exact in fp32 and accumulated there, so only fp32's own unit grows with the reduction.
    """
    return 2 * UNIT[dtype] + UNIT[torch.float32] * math.sqrt(reduction_length)


def assert_close(actual: Tensor, expected: Tensor, error: float, name: str = "result") -> None:
    """Fails if shapes or non-finite values differ, or the largest error over the largest value is above `error`."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    a, e = actual.detach().double(), expected.detach().double()
    finite = e.isfinite()
    assert torch.equal(a.isnan(), e.isnan()), f"{name}: NaN in other places"
    assert torch.equal(a[~finite].nan_to_num(), e[~finite].nan_to_num()), f"{name}: infinities differ"
    if not finite.any():
        return
    difference = (a - e)[finite].abs().max().item()
    scale = max(e[finite].abs().max().item(), 1e-30)
    assert difference <= error * scale, f"{name}: error {difference / scale:.2e} of its scale, allowed {error:.2e}"


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Every `torch.empty` and the memory after it hold NaN (or the largest integer).

    So an element that is read before it is written is noticed, and so is whatever is read or written past the end.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    fences: list[tuple[Tensor, Tensor]] = []
    try:
        with ExitStack() as stack:
            for owner, name in ALLOCATORS:
                stack.enter_context(mock.patch.object(owner, name, _fenced(getattr(owner, name), fences)))
            yield
        for fence, original in fences:
            assert torch.equal(fence, original), "memory after the end of a tensor was written"
    finally:
        torch.use_deterministic_algorithms(before)


def _fenced(allocate: Callable[..., Tensor], fences: list[tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """An allocator of tensors that are followed by a fence, which it adds to the list with a copy."""

    def allocate_fenced(*args: Any, **options: Any) -> Tensor:
        tensor = allocate(*args, **options)
        if type(tensor) is not Tensor or not tensor.numel() or tensor.is_meta:
            return tensor
        length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        memory = EMPTY(length + FENCE, dtype=tensor.dtype, device=tensor.device)
        fence = memory[length:].view(torch.uint8)
        fences.append((fence, fence.clone()))
        with torch.no_grad():
            return tensor.set_(memory.untyped_storage(), 0, tensor.shape, tensor.stride())  # pyright: ignore

    return allocate_fenced


@contextmanager
def convolution_precision(setting: str) -> Iterator[None]:
    """PyTorch's fp32 precision of convolutions on GPUs, for a while: its default, tf32, would hide errors."""
    backend: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before = backend.fp32_precision
    backend.fp32_precision = setting
    try:
        yield
    finally:
        backend.fp32_precision = before


class PlannerOf:
    """A planner whose launches call a function of (kernel, grid, arguments, constants)."""

    def __init__(self, run: Callable[[Any, Any, tuple[Any, ...], Mapping[str, Any]], bool]) -> None:
        self.launch = run
        self.generation = object()

    def bind(
        self, kernel: Any, grid: Any, types: Any, numbers: tuple[Any, ...], constants: Mapping[str, Any]
    ) -> Callable[[tuple[Any, ...]], bool]:
        return lambda arguments: self.launch(kernel, grid, arguments + numbers, constants)


@contextmanager
def counted_launches() -> Iterator[list[str]]:
    """The names of the kernels launched inside, in order."""
    from tinynet_kernels import launch

    names: list[str] = []

    def observe(kernel: Any, grid: tuple[int, ...], reached: object) -> None:
        names.append(kernel.__name__)

    launch.observers.append(observe)
    try:
        yield names
    finally:
        launch.observers.remove(observe)


def check_against_reference(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *inputs: Tensor | None,
    error: float,
    gradient_errors: Sequence[float] | float | None = None,
) -> list[str]:
    """Runs `function` through the kernels and compares it with `reference` in float64, including gradients.

    Args:
        function: takes the inputs, returns one tensor; must launch kernels in the forward and (if an input requires a
            gradient) backward.
        reference: the same in plain PyTorch; runs on float64 copies.
        inputs: tensors or None. Those that require a gradient are compared; integer ones are passed unchanged.
        error: allowed for the output, relative to its largest value.
        gradient_errors: the same for the gradients: one for all, or one per input.

    Returns:
        The names of the kernels launched.
    """
    ours = [_leaf(x) for x in inputs]
    exact = [_leaf(x, torch.float64) for x in inputs]
    before = [None if x is None else x.detach().clone() for x in ours]
    with nan_filled_memory(), counted_launches() as launches:
        actual = function(*ours)
        assert launches, "no kernel was launched by the forward"
        expected = reference(*exact)
        assert_close(actual, expected, error, "output")
        if any(x is not None and x.requires_grad for x in ours):
            _check_gradients(actual, expected, ours, exact, gradient_errors or error, launches)
    for position, (x, original) in enumerate(zip(ours, before, strict=True)):
        if x is not None and original is not None:
            unchanged = torch.equal(x.detach().nan_to_num(), original.nan_to_num())
            assert unchanged, f"input {position} was changed"
    return launches


def _check_gradients(
    actual: Tensor,
    expected: Tensor,
    ours: list[Tensor | None],
    exact: list[Tensor | None],
    errors: Sequence[float] | float,
    launches: list[str],
) -> None:
    forward_launches = len(launches)
    upstream = torch.randn_like(actual)
    saved = upstream.clone()
    actual.backward(upstream)
    expected.backward(upstream.double())
    assert len(launches) > forward_launches, "no kernel was launched by the backward"
    assert torch.equal(upstream, saved), "the upstream gradient was changed"
    for position, (x, y) in enumerate(zip(ours, exact, strict=True)):
        if x is None or not x.requires_grad:
            continue
        assert x.grad is not None and y is not None and y.grad is not None, f"input {position} has no gradient"
        assert x.grad.dtype == x.dtype
        allowed = errors if isinstance(errors, float | int) else errors[position]
        assert_close(x.grad, y.grad, allowed, f"gradient of input {position}")


def _leaf(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """A leaf with x's values and strides, in `dtype` if x is floating point."""
    if x is None:
        return None
    copy = x.detach()
    if dtype is not None and x.is_floating_point():
        copy = copy.to(dtype)
    return copy.requires_grad_(x.requires_grad)


def non_contiguous(x: Tensor) -> Tensor:
    """The same values in rows that take twice as much memory."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype, device=x.device)
    view = wide[..., : x.shape[-1]]
    view.copy_(x.detach())
    return view.requires_grad_(x.requires_grad)
