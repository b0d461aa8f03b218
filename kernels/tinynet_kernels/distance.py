"""Distance of pairs of vectors: y = |x1 - x2 + eps|_p. With d = x1 - x2 + eps, for one pair of vectors [D]:

    p             y                          dx1 = -dx2, times dy
    1             sum |d_i|                  sgn d_i
    inf, -inf     largest, smallest |d_i|    sgn d_i / number of i with |d_i| = y, for those i
    other, not 0  (sum |d_i|^p)^(1/p)        sgn d_i |d_i|^(p-1) y^(1-p); 0 where d_i = 0 or y = 0

Vectors lie along the middle dimension of [N, D, S], any strides. Tiling: forward, block_rows pairs per program, which
walks D; it saves y and the factor of dx1 that all i share, [2, rows]. Backward, one [block_rows, block_classes] tile
per program. `triplet_margin_loss` takes the same jit functions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.cosine_similarity import empty_vectors, load_vectors, store_vectors, vectors_problem
from tinynet_kernels.cross_entropy import split_rows
from tinynet_kernels.launch import Cost, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.tiles import current_target


class Norm(NamedTuple):
    """What a norm is compiled for.

    Attributes:
        kind: "one", "two", "inf", "-inf" or "power".
        p: of the kind "power".
        eps: added to each difference.
        wide: whether sizes are taken as int64.
        d_last: whether gradients lie as [N, S, D] in memory, else as [N, D, S].
    """

    kind: str
    p: float
    eps: float
    wide: bool = False
    d_last: bool = True


class Sums(NamedTuple):
    """A norm in progress, within a kernel, [block_rows] each: `total`, and elements that reach it, and NaN ones."""

    total: Any
    reached: Any
    unordered: Any


def norm_of(p: float, eps: float) -> Norm:
    """The norm of this power, which is not 0."""
    kinds = {1.0: "one", 2.0: "two", math.inf: "inf", -math.inf: "-inf"}
    kind = kinds.get(p, "power")
    return Norm(kind, p if kind == "power" else 0.0, eps)


@triton.jit
def no_sums(BLOCK_ROWS: constexpr, NORM: constexpr):
    """The `Sums` of no elements."""
    zeros = tl.zeros((BLOCK_ROWS,), tl.float32)
    first = zeros + (float("inf") if NORM.kind == "-inf" else 0.0)
    return Sums(first, zeros, zeros)


@triton.jit
def with_elements(sums, d, mask, NORM: constexpr):
    """`Sums` with one more tile of differences, [block_rows, block_classes]; 0 where not in the mask."""
    size = tl.abs(d)
    if NORM.kind == "inf" or NORM.kind == "-inf":
        if NORM.kind == "inf":
            tile = tl.max(tl.where(mask, size, 0.0), axis=1)
            total = tl.maximum(sums.total, tile)
        else:
            tile = tl.min(tl.where(mask, size, float("inf")), axis=1)
            total = tl.minimum(sums.total, tile)
        here = tl.sum(tl.where(mask & (size == total[:, None]), 1.0, 0.0), axis=1)
        reached = here + tl.where(sums.total == total, sums.reached, 0.0)
        return Sums(total, reached, sums.unordered + tl.sum(tl.where(mask & (d != d), 1.0, 0.0), axis=1))
    else:
        if NORM.kind == "one":
            terms = size
        elif NORM.kind == "two":
            terms = d * d
        else:
            terms = tl.exp(NORM.p * tl.log(size))
        return Sums(sums.total + tl.sum(tl.where(mask, terms, 0.0), axis=1), sums.reached, sums.unordered)


@triton.jit
def norm_and_factor(sums, NORM: constexpr):
    """(y, the factor that all elements of the gradient share), [block_rows] each."""
    if NORM.kind == "inf" or NORM.kind == "-inf":
        y = tl.where(sums.unordered > 0, float("nan"), sums.total)
        return y, 1.0 / tl.where(sums.unordered > 0, sums.unordered, sums.reached)
    elif NORM.kind == "two":
        y = tl.sqrt(sums.total)
        return y, tl.where(y == 0, 0.0, 1.0 / y)
    elif NORM.kind == "power":
        y = tl.exp(tl.log(sums.total) / NORM.p)
        return y, tl.where(y == 0, 0.0, tl.exp((1.0 - NORM.p) * tl.log(y)))
    else:
        return sums.total, tl.full(sums.total.shape, 1.0, tl.float32)


@triton.jit
def norm_gradient(d, y, NORM: constexpr):
    """The gradient by d, [block_rows, block_classes], without the factor of `norm_and_factor`."""
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    if NORM.kind == "one":
        return sign
    elif NORM.kind == "two":
        return d
    elif NORM.kind == "power":
        return tl.where(d == 0, 0.0, sign * tl.exp((NORM.p - 1.0) * tl.log(tl.abs(d))))
    else:
        same = (tl.abs(d) == y[:, None]) | ((d != d) & (y != y)[:, None])
        return tl.where(same, sign, 0.0)


@triton.jit
def pairwise_distance_forward_kernel(
    x1_ptr,
    x2_ptr,
    y_ptr,
    saved_ptr,
    rows,
    D,
    S,
    stride_1n,
    stride_1d,
    stride_1s,
    stride_2n,
    stride_2d,
    stride_2s,
    SPEC: constexpr,
    TILE: constexpr,
):
    """The distances of block_rows pairs."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    D = widened(D, SPEC.wide)
    S = widened(S, SPEC.wide)
    row, n, s, inside = split_rows(rows, S, SPEC.wide, BLOCK_ROWS)
    sums = no_sums(BLOCK_ROWS, SPEC)
    for start in range(0, D, TILE.block_classes):
        column = start + tl.arange(0, TILE.block_classes)
        mask = inside[:, None] & (tl.arange(0, TILE.block_classes) < D - start)[None, :]
        x1 = load_vectors(x1_ptr, n, s, column, mask, stride_1n, stride_1d, stride_1s)
        x2 = load_vectors(x2_ptr, n, s, column, mask, stride_2n, stride_2d, stride_2s)
        sums = with_elements(sums, x1 - x2 + SPEC.eps, mask, SPEC)
    y, factor = norm_and_factor(sums, SPEC)
    tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=inside)
    if saved_ptr is not None:
        tl.store(saved_ptr + row, y, mask=inside)
        tl.store(saved_ptr + rows + row, factor, mask=inside)


@triton.jit
def pairwise_distance_backward_kernel(
    grad_ptr,
    x1_ptr,
    x2_ptr,
    saved_ptr,
    dx1_ptr,
    dx2_ptr,
    rows,
    D,
    S,
    stride_1n,
    stride_1d,
    stride_1s,
    stride_2n,
    stride_2d,
    stride_2s,
    SPEC: constexpr,
    TILE: constexpr,
):
    """dx1 and dx2; None is not stored."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    D = widened(D, SPEC.wide)
    S = widened(S, SPEC.wide)
    row, n, s, inside = split_rows(rows, S, SPEC.wide, BLOCK_ROWS)
    start = tl.program_id(1) * TILE.block_classes
    column = start + tl.arange(0, TILE.block_classes)
    mask = inside[:, None] & (tl.arange(0, TILE.block_classes) < D - start)[None, :]
    x1 = load_vectors(x1_ptr, n, s, column, mask, stride_1n, stride_1d, stride_1s)
    x2 = load_vectors(x2_ptr, n, s, column, mask, stride_2n, stride_2d, stride_2s)
    y = tl.load(saved_ptr + row, mask=inside, other=0.0)
    scale = tl.load(saved_ptr + rows + row, mask=inside, other=0.0)
    scale *= tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32)
    dx = norm_gradient(x1 - x2 + SPEC.eps, y, SPEC) * scale[:, None]
    if dx1_ptr is not None:
        store_vectors(dx1_ptr, dx, n, s, column, mask, D, S, SPEC.d_last)
    if dx2_ptr is not None:
        store_vectors(dx2_ptr, -dx, n, s, column, mask, D, S, SPEC.d_last)


@costs(pairwise_distance_forward_kernel)
@costs(pairwise_distance_backward_kernel)
def pairwise_distance_cost(x1_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is moved once; two differences, a product and a sum per pair of elements."""
    return Cost(4 * x1_ptr.numel(), size_in_bytes(x1_ptr, *others.values()))


def pairwise_distance_forward(
    x1: torch.Tensor, x2: torch.Tensor, p: float, eps: float, *, save: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The distances [N, S] of x1 and x2 [N, D, S], any strides; and, where a backward follows, fp32 [2, N S]."""
    N, _, S = x1.shape
    y = x1.new_empty((N, S))
    saved = x1.new_empty((2, N * S), dtype=torch.float32) if save else None
    problem = vectors_problem(pairwise_distance_forward_kernel, x1, x2, norm_of(p, eps), current_target())
    problem.launch(x1, x2, y, saved)
    return y, saved


def pairwise_distance_backward(
    grad: torch.Tensor,
    x1: torch.Tensor,
    x2: torch.Tensor,
    saved: torch.Tensor,
    p: float,
    eps: float,
    *,
    want_dx1: bool,
    want_dx2: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dx1 and dx2 [N, D, S], each None where not wanted; `grad` is contiguous [N, S]."""
    dx1 = empty_vectors(x1) if want_dx1 else None
    dx2 = empty_vectors(x1) if want_dx2 else None
    problem = vectors_problem(pairwise_distance_backward_kernel, x1, x2, norm_of(p, eps), current_target())
    problem.launch(grad, x1, x2, saved, dx1, dx2)
    return dx1, dx2
