"""Cosine similarity of pairs of vectors, and the embedding loss of it. For x1 and x2 [D] with norms n1 and n2:

    cos = x1 . x2 / (a1 a2)                         a = max(n, eps) or, in the loss, sqrt(n^2 + eps)
    dx1 = (c0 x2 - c1 x1) dcos                      c0 = 1 / (a1 a2), c1 = cos / (a1 n1), c2 = cos / (a2 n2)
    dx2 = (c0 x1 - c2 x2) dcos                      c1 = 0 where n1 = 0, c2 = 0 where n2 = 0
    loss = 1 - cos for target 1, max(0, cos - margin) for target -1, else 0

Vectors lie along the middle dimension of [N, D, S], any strides. Tiling: forward, block_rows pairs per program, which
walks D; it saves c0, c1 and c2, [3, rows], in the loss times its derivative by cos. Backward, one
[block_rows, block_classes] tile per program. A sum over pairs takes two stages.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.constants import constexpr
from tinynet_kernels.cross_entropy import CrossEntropyTile, cross_entropy_tile, split_rows
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import exceed_int32, widened
from tinynet_kernels.reduction import reduce_losses, store_partial_losses, store_reduced_loss
from tinynet_kernels.tiles import Target, ceil_div, current_target


class Cosine(NamedTuple):
    """What a kernel is compiled for, beside its tile.

    Attributes:
        eps: see the module's formulas.
        margin: of the loss.
        reduction: of the loss, "mean", "sum" or "none".
        wide: whether sizes are taken as int64.
        d_last: whether gradients lie as [N, S, D] in memory, else as [N, D, S].
    """

    eps: float
    margin: float
    reduction: str
    wide: bool = False
    d_last: bool = True


@triton.jit
def load_vectors(ptr, n, s, column, mask, stride_n, stride_d, stride_s):
    """One tile of the vectors of rows (n, s), fp32 [block_rows, block_classes]."""
    row = n * stride_n + s.to(tl.int64) * stride_s
    offset = row[:, None] + column.to(tl.int64)[None, :] * stride_d
    return tl.load(ptr + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_vectors(ptr, values, n, s, column, mask, D, S, D_LAST: constexpr):
    """Stores one tile of the vectors of rows (n, s), contiguous as [N, S, D] or [N, D, S]."""
    if D_LAST:
        offset = ((n * S + s) * D)[:, None] + column[None, :]
    else:
        offset = (n * D * S + s)[:, None] + column.to(tl.int64)[None, :] * S
    tl.store(ptr + offset, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def cosine_similarity_forward_kernel(
    x1_ptr,
    x2_ptr,
    target_ptr,
    y_ptr,
    divisor_ptr,
    partial_ptr,
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
    """y = cos or, where there is a target, the loss, or the sum of block_rows losses."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_CLASSES: constexpr = TILE.block_classes
    D = widened(D, SPEC.wide)
    S = widened(S, SPEC.wide)
    row, n, s, inside = split_rows(rows, S, SPEC.wide, BLOCK_ROWS)
    dot = tl.zeros((BLOCK_ROWS,), tl.float32)
    n1 = tl.zeros((BLOCK_ROWS,), tl.float32)
    n2 = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, D, BLOCK_CLASSES):
        column = start + tl.arange(0, BLOCK_CLASSES)
        mask = inside[:, None] & (tl.arange(0, BLOCK_CLASSES) < D - start)[None, :]
        x1 = load_vectors(x1_ptr, n, s, column, mask, stride_1n, stride_1d, stride_1s)
        x2 = load_vectors(x2_ptr, n, s, column, mask, stride_2n, stride_2d, stride_2s)
        dot += tl.sum(x1 * x2, axis=1)
        n1 += tl.sum(x1 * x1, axis=1)
        n2 += tl.sum(x2 * x2, axis=1)
    if target_ptr is None:
        n1 = tl.sqrt(n1)
        n2 = tl.sqrt(n2)
        a1 = tl.where(n1 < SPEC.eps, SPEC.eps, n1)  # NaN stays
        a2 = tl.where(n2 < SPEC.eps, SPEC.eps, n2)
    else:
        n1 = tl.sqrt(n1 + SPEC.eps)
        n2 = tl.sqrt(n2 + SPEC.eps)
        a1 = n1
        a2 = n2
    cos = dot / a1 / a2
    slope = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    y = cos
    if target_ptr is not None:
        target = tl.load(target_ptr + row, mask=inside, other=0).to(tl.float32)
        excess = cos - SPEC.margin
        y = tl.where(target == 1, 1.0 - cos, 0.0) + tl.where((target == -1) & ~(excess < 0), excess, 0.0)
        slope = tl.where(target == 1, -1.0, tl.where((target == -1) & (excess >= 0), 1.0, 0.0))
    if saved_ptr is not None:
        tl.store(saved_ptr + row, slope / a1 / a2, mask=inside)
        c1 = tl.where(n1 == 0, 0.0, slope * cos / a1 / n1)
        c2 = tl.where(n2 == 0, 0.0, slope * cos / a2 / n2)
        tl.store(saved_ptr + rows + row, c1, mask=inside)
        tl.store(saved_ptr + rows + rows + row, c2, mask=inside)
    if SPEC.reduction == "none":
        tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        total = tl.sum(tl.where(inside, y, 0.0), axis=0)
        count = tl.sum(tl.where(inside, 1.0, 0.0), axis=0)
        if partial_ptr is None:
            store_reduced_loss(total, count, y_ptr, divisor_ptr)
        else:
            store_partial_losses(total, count, partial_ptr)


@triton.jit
def cosine_similarity_backward_kernel(
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
    """dx1 and dx2, contiguous [N, S, D]; None is not stored."""
    BLOCK_ROWS: constexpr = TILE.block_rows
    BLOCK_CLASSES: constexpr = TILE.block_classes
    D = widened(D, SPEC.wide)
    S = widened(S, SPEC.wide)
    row, n, s, inside = split_rows(rows, S, SPEC.wide, BLOCK_ROWS)
    start = tl.program_id(1) * BLOCK_CLASSES
    column = start + tl.arange(0, BLOCK_CLASSES)
    mask = inside[:, None] & (tl.arange(0, BLOCK_CLASSES) < D - start)[None, :]
    x1 = load_vectors(x1_ptr, n, s, column, mask, stride_1n, stride_1d, stride_1s)
    x2 = load_vectors(x2_ptr, n, s, column, mask, stride_2n, stride_2d, stride_2s)
    if SPEC.reduction == "none":
        upstream = tl.load(grad_ptr + row, mask=inside, other=0.0).to(tl.float32)
    else:
        upstream = tl.zeros((BLOCK_ROWS,), tl.float32) + tl.load(grad_ptr).to(tl.float32)  # in bounds: one element
        if SPEC.reduction == "mean":
            upstream = upstream / rows
    c0 = (tl.load(saved_ptr + row, mask=inside, other=0.0) * upstream)[:, None]
    if dx1_ptr is not None:
        c1 = (tl.load(saved_ptr + rows + row, mask=inside, other=0.0) * upstream)[:, None]
        store_vectors(dx1_ptr, c0 * x2 - c1 * x1, n, s, column, mask, D, S, SPEC.d_last)
    if dx2_ptr is not None:
        c2 = (tl.load(saved_ptr + rows + rows + row, mask=inside, other=0.0) * upstream)[:, None]
        store_vectors(dx2_ptr, c0 * x1 - c2 * x2, n, s, column, mask, D, S, SPEC.d_last)


@costs(cosine_similarity_forward_kernel)
@costs(cosine_similarity_backward_kernel)
def cosine_similarity_cost(x1_ptr: torch.Tensor, **others: Any) -> Cost:
    """Every tensor is moved once; three products with their sums per pair of elements."""
    return Cost(6 * x1_ptr.numel(), size_in_bytes(x1_ptr, *others.values()))


def cosine_similarity_forward(
    x1: torch.Tensor,
    x2: torch.Tensor,
    target: torch.Tensor | None,
    eps: float,
    margin: float,
    reduction: str,
    *,
    save: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The similarities or, with a target, the loss; and what the backward reads.

    Args:
        x1, x2: [N, D, S] of one shape, any strides.
        target: 1 or -1 for each pair, [N S], contiguous; None for the similarities.
        eps, margin: see the module's formulas.
        reduction: "mean", "sum" or "none"; "none" without a target.
        save: whether a backward will follow.

    Returns:
        [] or, for "none", [N, S]; fp32 [3, N S] where `save`, else None.
    """
    N, _, S = x1.shape
    problem = vectors_problem(
        cosine_similarity_forward_kernel, x1, x2, Cosine(eps, margin, reduction), current_target()
    )
    programs, reduced = problem.grid[0], reduction != "none"
    y = x1.new_empty(() if reduced else (N, S))
    divisor = x1.new_empty(1, dtype=torch.float32) if reduction == "mean" else None
    partial = x1.new_empty((2, programs), dtype=torch.float32) if reduced and programs > 1 else None
    saved = x1.new_empty((3, N * S), dtype=torch.float32) if save else None
    problem.launch_named(
        x1_ptr=x1,
        x2_ptr=x2,
        target_ptr=target,
        y_ptr=y,
        divisor_ptr=divisor,
        partial_ptr=partial,
        saved_ptr=saved,
    )
    if partial is not None:
        reduce_losses(partial, y, divisor)
    return y, saved


def cosine_similarity_backward(
    grad: torch.Tensor,
    x1: torch.Tensor,
    x2: torch.Tensor,
    saved: torch.Tensor,
    reduction: str,
    *,
    want_dx1: bool,
    want_dx2: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dx1 and dx2, [N, D, S] in a memory order like x1's, each None where not wanted.

    Args:
        grad: the upstream gradient, [] or contiguous [N, S].
        x1, x2, reduction: as in the forward.
        saved: what the forward returned.
        want_dx1, want_dx2: which to compute.
    """
    dx1 = empty_vectors(x1) if want_dx1 else None
    dx2 = empty_vectors(x1) if want_dx2 else None
    problem = vectors_problem(cosine_similarity_backward_kernel, x1, x2, Cosine(0.0, 0.0, reduction), current_target())
    problem.launch(grad, x1, x2, saved, dx1, dx2)
    return dx1, dx2


def empty_vectors(like: torch.Tensor) -> torch.Tensor:
    """A tensor [N, D, S] without values, in the order in memory that `vectors_problem` stores."""
    N, D, S = like.shape
    return like.new_empty((N, S, D)).transpose(1, 2) if like.stride(1) == 1 else like.new_empty((N, D, S))


def vectors_problem(kernel: Any, x1: torch.Tensor, x2: torch.Tensor, spec: Any, target: Target) -> Problem:
    """The launch of `kernel` for pairs [N, D, S]; it fills in `spec.wide` and `spec.d_last`."""
    return _problem(kernel, x1.shape, x1.stride(), x2.stride(), spec, target)


@lru_cache(maxsize=4096)
def _problem(
    kernel: Any,
    shape: tuple[int, int, int],
    stride1: tuple[int, ...],
    stride2: tuple[int, ...],
    spec: Any,
    target: Target,
) -> Problem:
    N, D, S = shape
    rows = N * S
    tile = vectors_tile(rows, D, stride1[1] == 1 and stride2[1] == 1, target)
    backward = kernel.__name__.endswith("backward_kernel")
    row_programs = ceil_div(rows, tile.block_rows)
    wide = exceed_int32(((D + tile.block_classes, 1),), ((S + tile.block_rows, 1),))
    return Problem(
        kernel,
        (row_programs, ceil_div(D, tile.block_classes)) if backward else (row_programs,),
        rows,
        D,
        S,
        *stride1,
        *stride2,
        SPEC=spec._replace(wide=wide, d_last=stride1[1] == 1),
        TILE=tile,
        num_warps=tile.num_warps,
    )


def vectors_tile(rows: int, D: int, contiguous: bool, target: Target) -> CrossEntropyTile:
    """A tile as that of a softmax, which reads its operand once too; a quarter where registers hold several sums."""
    tile = cross_entropy_tile(rows, D, contiguous, target)
    return tile if target.kind in ("cpu", "interpreter") else tile._replace(block_rows=max(1, tile.block_rows // 4))
