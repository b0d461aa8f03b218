"""conv2d 3x3 + bias + relu: forward, data gradient, weight gradient; PyTorch in both layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import OURS, Case, Setting, allowed_error
from tinynet.functional import conv2d

TITLE = "conv"
# (N, C, H, W) -> K, 3x3, padding 1
SIZES = ((64, 32, 28, 28, 64), (32, 128, 14, 14, 128))
LAYOUTS = {"eager": torch.contiguous_format, "eager channels_last": torch.channels_last}


def cases(setting: Setting) -> Iterator[Case]:
    for N, C, H, W, K in SIZES:
        yield forward(setting, N, C, H, W, K)
        yield gradient(setting, N, C, H, W, K, of_input=True)
        yield gradient(setting, N, C, H, W, K, of_input=False)


def our_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv2d(x, weight, bias, padding=1, activation="relu")


def eager_layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, weight, bias, padding=1))


def operands(setting: Setting, N: int, C: int, H: int, W: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    return setting.random(N, C, H, W), setting.random(K, C, 3, 3) * (9 * C) ** -0.5, setting.random(K)


def forward(setting: Setting, N: int, C: int, H: int, W: int, K: int) -> Case:
    x, weight, bias = operands(setting, N, C, H, W, K)
    contenders: dict[str, Callable[[], Tensor]] = {}
    last = x.to(memory_format=torch.channels_last)
    contenders[OURS] = lambda: our_layer(last, weight, bias)
    for name, layout in LAYOUTS.items():
        a, w = x.to(memory_format=layout), weight.to(memory_format=layout)
        contenders[name] = lambda a=a, w=w: eager_layer(a, w, bias)
    contenders |= setting.compiled(eager_layer, last, weight.to(memory_format=torch.channels_last), bias)
    return _case(setting, "forward", (N, C, H, W, K), contenders, 9 * C)


def gradient(setting: Setting, N: int, C: int, H: int, W: int, K: int, *, of_input: bool) -> Case:
    x, weight, bias = operands(setting, N, C, H, W, K)
    grad = setting.random(N, K, H, W)
    contenders: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    layers = {OURS: (our_layer, torch.channels_last)}
    layers |= {name: (eager_layer, layout) for name, layout in LAYOUTS.items()}
    for name, (layer, layout) in layers.items():
        a = x.detach().to(memory_format=layout).requires_grad_(of_input)
        w = weight.detach().to(memory_format=torch.contiguous_format if name == OURS else layout)
        w.requires_grad_(not of_input)
        b = bias.detach().clone().requires_grad_(not of_input)
        g = grad.to(memory_format=layout)
        y = layer(a, w, b)
        wanted = (a,) if of_input else (w, b)
        contenders[name] = lambda y=y, t=wanted, g=g: torch.autograd.grad(y, t, g, retain_graph=True)
    what = "data gradient" if of_input else "weight gradient"
    return _case(setting, what, (N, C, H, W, K), contenders, 9 * K if of_input else N * H * W)


def _case(setting: Setting, what: str, size: tuple[int, ...], contenders: dict, reduction_length: int) -> Case:
    N, C, H, W, K = size
    elements = N * H * W * (C + K) + 9 * C * K
    return Case(
        f"conv2d 3x3 + bias + relu, {what}",
        f"{N}x{C}x{H}x{W} -> {K}",
        2 * N * H * W * 9 * C * K,
        elements * setting.dtype.itemsize,
        contenders,
        allowed_error(setting.dtype, reduction_length),
        N,
    )
