"""Kernels that were not written for this engine (`classic_kernels`), beside PyTorch's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import classic_kernels as classic
from .case import OURS, Case, Setting, allowed_error

TITLE = "classic Triton kernels"
HEADS, TOKENS, FEATURES = 8, 1024, 64
BINS = 256


def cases(setting: Setting) -> Iterator[Case]:
    item, loose = setting.dtype.itemsize, 4 * allowed_error(setting.dtype)
    for n in (1 << 16, 1 << 23):
        x, y = setting.random(n), setting.random(n)
        yield _case("vector add", (n,), n, 3 * n * item, classic.add, torch.add, (x, y), loose)
        yield _case("gelu", (n,), 8 * n, 2 * n * item, classic.gelu, F.gelu, (x,), loose)
    for shape in ((4096, 1000), (512, 8192)):
        x = setting.random(*shape)
        moved = 2 * x.numel() * item
        yield _case("softmax", shape, 5 * x.numel(), moved, classic.softmax, lambda x: x.softmax(1), (x,), loose)
    for m, n, k in ((512, 512, 512), (1000, 1000, 1000)):
        operands = setting.random(m, k), setting.random(k, n)
        moved, error = (m * k + k * n + m * n) * item, allowed_error(setting.dtype, k)
        yield _case("matmul", (m, n, k), 2 * m * n * k, moved, classic.matmul, torch.matmul, operands, error)
    for shape in ((4096, 768), (1024, 5000)):
        yield from _layer_norm(setting, shape)
    yield from _attention(setting)
    x = setting.random(4096, 1024)
    yield _case("sort", x.shape, 0, 2 * x.numel() * item, classic.sort, lambda x: x.sort(1)[0], (x,), 0.0)
    i = torch.randint(0, BINS, (1 << 22,), dtype=torch.int32, device=setting.device)
    moved = 4 * i.numel()
    yield _case("histogram", i.shape, 0, moved, classic.histogram, lambda i, n: i.bincount(minlength=n), (i, BINS), 0.0)


def _case(
    name: str,
    shape: Sequence[int],
    flops: int,
    moved: int,
    ours: Callable[..., Any],
    eager: Callable[..., Any],
    operands: Sequence[Any],
    error: float,
) -> Case:
    contenders = {OURS: lambda: ours(*operands), "eager": lambda: eager(*operands)}
    return Case(name, "x".join(map(str, shape)), flops, moved, contenders, error, shape[0])


def _layer_norm(setting: Setting, shape: tuple[int, int]) -> Iterator[Case]:
    leaves = setting.random(*shape, grad=True), *(setting.random(shape[1], grad=True) for _ in range(2))
    x, weight, bias = (leaf.detach() for leaf in leaves)
    dy = setting.random(*shape)
    n, item, error = x.numel(), setting.dtype.itemsize, 4 * allowed_error(setting.dtype, shape[0])

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, shape[1:], weight, bias)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return classic.layer_norm(x, weight, bias)[0]

    yield _case("layer norm", shape, 8 * n, 2 * n * item, ours, eager, (x, weight, bias), error)
    y = eager(*leaves)
    _, mean, rstd = classic.layer_norm(x, weight, bias)
    yield _case(
        "layer norm backward", shape, 12 * n, 3 * n * item,
        lambda dy: classic.layer_norm_backward(dy, x, weight, mean, rstd),
        lambda dy: torch.autograd.grad(y, leaves, dy, retain_graph=True), (dy,), error,
    )  # fmt: skip


def _attention(setting: Setting) -> Iterator[Case]:
    shape = (HEADS, TOKENS, FEATURES)
    leaves = [setting.random(*shape, grad=True) for _ in range(3)]
    q, k, v = constants = tuple(leaf.detach() for leaf in leaves)
    do = setting.random(*shape)
    flops, moved = 2 * HEADS * TOKENS * TOKENS * FEATURES, do.numel() * setting.dtype.itemsize
    error = 4 * allowed_error(setting.dtype, TOKENS)

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return classic.attention(q, k, v)[0]

    yield _case("attention", shape, flops, 4 * moved, ours, eager, constants, error)
    o = eager(*leaves)
    _, lse = classic.attention(*constants)
    yield _case(
        "attention backward", shape, flops * 5 // 2, 8 * moved,
        lambda do: classic.attention_backward(do, q, k, v, o.detach(), lse),
        lambda do: torch.autograd.grad(o, leaves, do, retain_graph=True), (do,), error,
    )  # fmt: skip
