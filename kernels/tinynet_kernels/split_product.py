"""Products of few tiles: the reduction is split over programs, and the epilogue comes with the second stage.

    partial[s] = A B over the s-th part of the reduction, fp32 [SPLITS, M, N]
    z = partial[0] + partial[1] + ... + b;   y = act(z)

A product [128, 3136] x [3136, 10] has one or two tiles of 49 steps each, which leave nearly all of a GPU idle. Tiling:
one [block_m, block_n] tile of one part per program (`gemm.gemm_tile`); then flat over the elements. Parts are added in
a fixed order, so that reruns are bitwise equal.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from tinynet_kernels.activation import activate
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.constants import constexpr
from tinynet_kernels.gemm import GROUP, Matrix, Product, actual, gemm_tile, in_units, is_wide_product, tile_start
from tinynet_kernels.launch import Cost, Problem, costs, size_in_bytes
from tinynet_kernels.offsets import widened
from tinynet_kernels.reduction import sum_of_parts
from tinynet_kernels.tiles import GemmTile, Target, ceil_div, every_register, flat_block

Sizes = tuple[int, int, int]
Strides = tuple[int, int]


@triton.jit
def split_product_kernel(
    a_ptr,
    b_ptr,
    partial_ptr,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    depth_per_split,
    PRODUCT: constexpr,
    TILE: constexpr,
):
    """partial[split] = A B over `depth_per_split` of the K products, fp32 [SPLITS, M, N]."""
    M = actual(M, 0, PRODUCT)
    N = actual(N, 1, PRODUCT)
    K = actual(K, 2, PRODUCT)
    a = Matrix(a_ptr, actual(stride_am, 3, PRODUCT), actual(stride_ak, 4, PRODUCT))
    b = Matrix(b_ptr, actual(stride_bk, 5, PRODUCT), actual(stride_bn, 6, PRODUCT))
    depth_per_split = widened(depth_per_split, PRODUCT.wide)
    row_start, column_start = tile_start(tl.program_id(0), M, N, PRODUCT, TILE)
    split = tl.program_id(1)
    k_start = split * depth_per_split
    k_end = min(k_start + depth_per_split, K)
    partial = gemm_tile(a, b, row_start, column_start, k_start, k_end, M, N, PRODUCT, TILE)
    row = tl.arange(0, TILE.block_m)
    column = tl.arange(0, TILE.block_n)
    mask = (row < M - row_start)[:, None] & (column < N - column_start)[None, :]
    base = (split.to(tl.int64) * M + row_start) * N + column_start
    tl.store(partial_ptr + base + row[:, None] * N + column[None, :], partial, mask=mask)


@triton.jit
def finish_product_kernel(
    partial_ptr, bias_ptr, y_ptr, z_ptr, parts, elements, N, ACTIVATION: constexpr, BLOCK: constexpr
):
    """z = partial[0] + partial[1] + ... + b in that order, where it is to be saved, and y = act(z); flat."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offset = tl.arange(0, BLOCK)
    mask = offset < elements - start
    z = sum_of_parts(partial_ptr + start, parts, elements, offset, mask)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + (start % N + offset) % N, mask=mask, other=0.0).to(tl.float32)
    if z_ptr is not None:
        tl.store(z_ptr + start + offset, z.to(z_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + start + offset, activate(z, ACTIVATION).to(y_ptr.dtype.element_ty), mask=mask)


@costs(split_product_kernel)
def split_product_cost(a_ptr: torch.Tensor, b_ptr: torch.Tensor, partial_ptr: torch.Tensor, **_: Any) -> Cost:
    """2 M N K operations; A and B read, every part written."""
    return Cost(2 * a_ptr.numel() * partial_ptr.shape[2], size_in_bytes(a_ptr, b_ptr, partial_ptr))


@costs(finish_product_kernel)
def finish_product_cost(partial_ptr: torch.Tensor, **others: Any) -> Cost:
    """The parts and b read, y (and z) written."""
    return Cost(partial_ptr.numel(), size_in_bytes(partial_ptr, *others.values()))


class SplitProduct(NamedTuple):
    """The launches of a product, or a convolution, whose reduction is split.

    Attributes:
        product: the launch that computes the parts, of A, B and the workspace.
        finish: the launch that adds them, of the workspace and the tensors of the epilogue.
        shape: of the workspace, [splits, M, N].
        absent: how many tensors of an epilogue the product's kernel takes before and after the workspace: here None.
    """

    product: Problem
    finish: Problem
    shape: Sizes
    absent: tuple[int, int] = (0, 0)

    def launch(self, a: torch.Tensor, b: torch.Tensor, *epilogue: torch.Tensor | None) -> None:
        """Multiplies A and B, and finishes with the tensors of the epilogue: for `finish_product_kernel` b, y and z."""
        self.finish.launch(self._parts(a, b), *epilogue)

    def launch_named(self, **arguments: torch.Tensor | None) -> None:
        """As `launch`, with the names that the kernel of `finish` has for the tensors of the epilogue."""
        (_, a), (_, b), *epilogue = arguments.items()
        assert a is not None and b is not None
        self.finish.launch_named(parts_ptr=self._parts(a, b), **dict(epilogue))

    def _parts(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The workspace, with the launch that fills it."""
        parts = a.new_empty(self.shape, dtype=torch.float32)
        before, after = self.absent
        self.product.launch(a, b, *[None] * before, parts, *[None] * after)
        return parts


@lru_cache(maxsize=4096)
def split_product(
    sizes: Sizes,
    stride_a: Strides,
    stride_b: Strides,
    precision: str,
    activation: Activation,
    tile: GemmTile,
    splits: int,
    *,
    aligned: bool,
    target: Target,
) -> SplitProduct:
    """The launches of act(A B + b).

    Args:
        sizes: M, N, K of A [M, K] and B [K, N].
        stride_a, stride_b: of A and of B.
        precision: of the product; see `tiles.matmul_precision`.
        activation: of the result.
        tile: of the product.
        splits: into how many parts the reduction is to be split, at most.
        aligned: whether operands are loaded 16 bytes at a time; single elements fill registers.
        target: where it runs.
    """
    M, N, K = sizes
    if not aligned:
        tile = tile._replace(block_k=tile.block_k // 2)
    depth = ceil_div(ceil_div(K, tile.block_k), splits) * tile.block_k
    splits = ceil_div(K, depth)
    wide = is_wide_product(M, N, K, tile, stride_a, stride_b[::-1])
    numbers, units = in_units(target, M, N, K, *stride_a, *stride_b)
    product = Problem(
        split_product_kernel,
        (ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n), splits),
        *numbers,
        depth,
        PRODUCT=Product(precision, K % tile.block_k == 0, wide, GROUP, units),
        TILE=tile,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **every_register(tile.block_m, precision, target),
    )
    return SplitProduct(product, finish_product(splits, M, N, activation, target), (splits, M, N))


def finish_product(parts: int, M: int, N: int, activation: Activation, target: Target) -> Problem:
    """The launch that adds the parts of a product [M, N], of the workspace, b, y and z."""
    block, num_warps = flat_block(M * N, target)
    block = min(block, 512)  # the outputs are few, and their activation takes registers
    while block > 128 and 2 * ceil_div(M * N, block) < target.processors:
        block //= 2
    return Problem(
        finish_product_kernel,
        (ceil_div(M * N, block),),
        *(parts, M * N, N),
        ACTIVATION=activation.compiled,
        BLOCK=block,
        num_warps=num_warps,
    )
