"""Batch normalization in training and evaluation, alone and with a residual and a ReLU; PyTorch in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tinynet.functional import batch_norm

from .case import OURS, Case, Setting, allowed_error

TITLE = "batch norm"
SIZES = ((32, 64, 56, 56), (32, 256, 14, 14), (8, 960, 7, 7))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Norm = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool, Tensor], Tensor]


def plain(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, _: Tensor) -> Tensor:
    return batch_norm(x, mean, var, weight, bias, training)


def plain_eager(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, _: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, training)


def relu(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, _: Tensor) -> Tensor:
    return batch_norm(x, mean, var, weight, bias, training, activation="relu")


def relu_eager(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, _: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, mean, var, weight, bias, training))


def residual(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, other: Tensor
) -> Tensor:
    return batch_norm(x, mean, var, weight, bias, training, activation="relu", residual=other)


def residual_eager(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, other: Tensor
) -> Tensor:
    return F.relu(F.batch_norm(x, mean, var, weight, bias, training) + other)


WORK: dict[str, tuple[Norm, Norm]] = {
    "batch_norm": (plain, plain_eager),
    "batch_norm + relu": (relu, relu_eager),
    "batch_norm + residual + relu": (residual, residual_eager),
}


def cases(setting: Setting) -> Iterator[Case]:
    for shape in SIZES:
        for layout, memory_format in LAYOUTS.items():
            for training in (True, False):
                x, other, grad = (setting.random(*shape).to(memory_format=memory_format) for _ in range(3))
                affine = [setting.random(shape[1]).float() for _ in range(2)]
                for name, functions in WORK.items():
                    contenders: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
                    for contender, function in zip((OURS, "eager"), functions, strict=True):
                        contenders[contender] = _step(function, x, other, grad, affine, training)
                    yield Case(
                        f"{name}, {'training' if training else 'evaluation'}, {layout}, forward + backward",
                        "x".join(map(str, shape)),
                        10 * x.numel(),
                        (8 if training else 5) * x.numel() * setting.dtype.itemsize,
                        contenders,
                        allowed_error(setting.dtype, x.numel() // shape[1]),
                        shape[0],
                    )


def _step(
    function: Norm, x: Tensor, other: Tensor, grad: Tensor, affine: list[Tensor], training: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns y, and the gradients where no derivative jumps at values that differ by rounding."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, *affine)]
    statistics = torch.zeros(x.shape[1], device=x.device), torch.ones(x.shape[1], device=x.device)

    def step() -> tuple[Tensor, ...]:
        y = function(leaves[0], *statistics, leaves[1], leaves[2], training, other)
        gradients = torch.autograd.grad(y, leaves, grad)
        return (y, *gradients) if function in WORK["batch_norm"] else (y,)

    return step
