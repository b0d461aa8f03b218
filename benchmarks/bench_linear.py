"""linear + bias + activation, forward and both gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tinynet.functional import linear

from .case import OURS, Case, Setting, allowed_error

TITLE = "linear"
SIZES = (
    *((64, 128, 784), (512, 512, 512), (32, 1024, 1024), (256, 1024, 1024), (2048, 1024, 1024)),
    *((1, 1024, 1024), (4, 1024, 1024), (8, 1024, 1024), (1, 4096, 4096), (4, 4096, 4096)),  # as in inference
)


def cases(setting: Setting) -> Iterator[Case]:
    for M, N, K in SIZES:
        yield forward(setting, M, N, K)
        yield backward(setting, M, N, K)


def forward(setting: Setting, M: int, N: int, K: int) -> Case:
    """y = relu(x W^T + b), no gradient."""
    x, weight, bias = setting.random(M, K), setting.random(N, K) * K**-0.5, setting.random(N)
    eager = lambda x, weight, bias: F.relu(F.linear(x, weight, bias))  # noqa: E731
    itemsize = setting.dtype.itemsize
    return Case(
        "linear + bias + relu, forward",
        f"{M}x{N}x{K}",
        2 * M * N * K,
        itemsize * (M * K + N * K + N + M * N),
        {
            OURS: lambda: linear(x, weight, bias, "relu"),
            "eager": lambda: eager(x, weight, bias),
            **setting.compiled(eager, x, weight, bias),
        },
        allowed_error(setting.dtype, K),
        M,
        family=f"linear + bias + relu, forward, {K} -> {N}",
    )


def backward(setting: Setting, M: int, N: int, K: int) -> Case:
    """dX, dW and db of the same layer."""
    tensors = (
        setting.random(M, K, grad=True),
        (setting.random(N, K) * K**-0.5).requires_grad_(),
        setting.random(N, grad=True),
    )
    grad = setting.random(M, N)
    ours = linear(*tensors, "relu")
    eager = F.relu(F.linear(*tensors))
    itemsize = setting.dtype.itemsize
    return Case(
        "linear + bias + relu, backward",
        f"{M}x{N}x{K}",
        4 * M * N * K,
        itemsize * (2 * M * K + 2 * N * K + 4 * M * N + N),
        {
            OURS: lambda: torch.autograd.grad(ours, tensors, grad, retain_graph=True),
            "eager": lambda: torch.autograd.grad(eager, tensors, grad, retain_graph=True),
        },
        allowed_error(setting.dtype, max(M, N)),
        M,
        family=f"linear + bias + relu, backward, {K} -> {N}",
    )
