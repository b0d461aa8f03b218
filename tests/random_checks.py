"""A function of random operands against its reference in float64: outputs, gradients, and that no operand changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from helpers import assert_close, counted_launches, nan_filled_memory, tolerance
from random_tensors import Draw, tensors
from torch import Tensor


def snapshot(tensor: Tensor) -> Tensor:
    """A copy of all the memory behind a tensor's view, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage()).clone()


def plain(tensor: Tensor) -> Tensor:
    """A contiguous copy, float64 if floating point: some of PyTorch's operators refuse or misread other strides."""
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor.detach())


def plain_leaf(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else plain(tensor).requires_grad_(tensor.requires_grad)


def listed(result: Any) -> list[Tensor]:
    """The results of a function that returns one or several."""
    return [result] if isinstance(result, Tensor) else list(result)


def assert_near(actual: Tensor, expected: Tensor, error: float, magnitude: float, name: str) -> None:
    """`assert_close` with an error relative to at least `magnitude`, the scale of the terms of a sum."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
    scale = torch.full((1,), magnitude, dtype=torch.float64, device=actual.device)
    a, e = (torch.cat([tensor.detach().double().reshape(-1), scale]) for tensor in (actual, expected))
    assert_close(a, e, error, name)


def check(
    draw: Draw,
    function: Callable[..., Any],
    reference: Callable[..., Any],
    *operands: Tensor | None,
    lengths: Sequence[int] = (),
    magnitude: float = 1.0,
    error: float | None = None,
    gradients_in_forward: bool = False,
) -> list[str]:
    """Compares outputs and gradients of `function` with `reference` in float64, with random upstream gradients.

    Args:
        function: takes the operands, returns a tensor or several. Integers must be equal. Others have the dtype of the
            first operand that is floating point, and gradients that of their operand.
        reference: the same in PyTorch.
        operands: those that require a gradient get one.
        lengths: the number of terms of about `magnitude` that are summed in an element of an output, and then of each
            operand's gradient; 1 by default.
        error: relative; None for the error that rounding explains.
        gradients_in_forward: whether the backward may launch no kernel.

    Returns:
        The names of the kernels launched.
    """
    given_tensors = [tensor for tensor in operands if tensor is not None]
    before = [snapshot(tensor) for tensor in given_tensors]
    dtype = next(tensor.dtype for tensor in given_tensors if tensor.is_floating_point())
    wanted = [i for i, tensor in enumerate(operands) if tensor is not None and tensor.requires_grad]
    has_elements = all(tensor.numel() for tensor in given_tensors)

    def compare(actual: Tensor, expected: Tensor, which: int, name: str) -> None:
        if not expected.is_floating_point():
            assert torch.equal(actual, expected), f"{name}: {actual} != {expected}"
            return
        length = lengths[which] if which < len(lengths) else 1
        allowed = 4 * tolerance(dtype, length) if error is None else error
        assert_near(actual, expected, allowed, magnitude * math.sqrt(length), name)

    doubles = [plain_leaf(tensor) for tensor in operands]
    with nan_filled_memory(), counted_launches() as launches:
        outputs, exact = listed(function(*operands)), listed(reference(*doubles))
        assert launches or not has_elements, "no kernel was launched by the forward"
        for index, (a, e) in enumerate(zip(outputs, exact, strict=True)):
            assert a.dtype is (dtype if e.is_floating_point() else e.dtype), f"output {index}: {a.dtype}"
            compare(a, e, 0, f"output {index}")
            assert a.requires_grad == e.requires_grad
        if wanted:
            forward_launches = len(launches)
            upstream = [draw(tensors(a.device.type, a.shape, dtype, differentiable=False)) for a in outputs]
            before += map(snapshot, upstream)
            given_tensors += upstream
            differentiable = [index for index, a in enumerate(outputs) if a.requires_grad]
            gradients = torch.autograd.grad(
                [outputs[index] for index in differentiable],
                [operands[i] for i in wanted],  # pyright: ignore
                [upstream[index] for index in differentiable],
            )
            expected = torch.autograd.grad(
                [exact[index] for index in differentiable],
                [doubles[i] for i in wanted],  # pyright: ignore
                [plain(upstream[index]) for index in differentiable],
            )
            launched = len(launches) > forward_launches or gradients_in_forward
            assert launched or not has_elements, "no kernel was launched by the backward"
            for i, a, e in zip(wanted, gradients, expected, strict=True):
                assert a.dtype is operands[i].dtype, f"gradient of operand {i}: {a.dtype}"  # pyright: ignore
                compare(a, e, 1 + i, f"gradient of operand {i}")
    for tensor, old in zip(given_tensors, before, strict=True):
        assert torch.equal(snapshot(tensor), old), f"an operand of shape {tuple(tensor.shape)} was changed"
    return launches
