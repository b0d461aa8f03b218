"""Faults that the launch report must catch, each with a correct twin; `test_planted_faults.py` lists them."""

import torch
import triton
from engines.offline.offline_kernels import (
    atomic_sum_kernel,
    carried_offset_kernel,
    copy_kernel,
    described_copy_kernel,
    mismatched_product_kernel,
    narrow_copy_kernel,
    narrow_row_copy_kernel,
    product_kernel,
    rescaled_product_kernel,
    reused_name_kernel,
    run,
    split_product_kernel,
    strided_gather_kernel,
    y_grid_copy_kernel,
)

import tinynet
from tinynet_engines.offline.report import Report

BF16 = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def product(target: str, depth: int = 512, dtype: torch.dtype = BF16, **options: int) -> Report:
    """A product of [512, depth] and [depth, 512], contiguous along depth, with the given tile."""
    a, b, c = empty(512, depth, dtype=dtype), empty(512, depth, dtype=dtype).t(), empty(512, 512, dtype=dtype)
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3, **options}
    with tinynet.inspect(target) as report:
        strides = (*a.stride(), *b.stride())
        run(product_kernel, (4, 4), a, b, c, 512, 512, depth, *strides, INPUT_PRECISION="ieee", **tile)
    return report


def launch(target: str, kernel: object, grid: tuple[int, ...], *arguments: object, **constants: object) -> Report:
    with tinynet.inspect(target) as report:
        run(kernel, grid, *arguments, **constants)
    return report


def shared_memory_of_one_chip(faulty: bool) -> Report:
    return product("sm_89" if faulty else "sm_90", BLOCK_N=256, num_stages=4)


def shared_memory_of_every_chip(faulty: bool) -> Report:
    return product("sm_90", BLOCK_M=256 if faulty else 128, BLOCK_N=256, num_stages=4)


def shared_memory_on_amd(faulty: bool) -> Report:
    return product("gfx942", num_stages=4 if faulty else 2)


def element_index_over_31_bits(faulty: bool) -> Report:
    count = (1 << 31) + 4096
    kernel = narrow_copy_kernel if faulty else copy_kernel
    return launch("sm_90", kernel, (triton.cdiv(count, 1024),), empty(count), empty(count), count, BLOCK=1024)


def row_offset_over_31_bits(faulty: bool) -> Report:
    rows = 70_000 if faulty else 60_000
    x = empty(rows, 32768, dtype=BF16)
    return launch("sm_90", narrow_row_copy_kernel, (rows,), x, x, 32768, BLOCK=32768, num_warps=8)


def carried_offset_over_31_bits(faulty: bool) -> Report:
    stride = (1 << 26) if faulty else (1 << 20)
    return launch("sm_90", carried_offset_kernel, (1,), empty(64 * stride), empty(128), 64, stride, BLOCK=128)


def spilled_registers(faulty: bool) -> Report:
    return product("sm_80", num_warps=4 if faulty else 8, BLOCK_N=256 if faulty else 128, num_stages=2)


def odd_stride_loses_vectorization(faulty: bool) -> Report:
    depth = 1024
    a = empty(512, depth + (1 if faulty else 0), dtype=BF16)[:, :depth]
    b, c = empty(512, depth, dtype=BF16).t(), empty(512, 512, dtype=BF16)
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    strides = (*a.stride(), *b.stride())
    return launch("sm_80", product_kernel, (4, 4), a, b, c, 512, 512, depth, *strides, INPUT_PRECISION="ieee", **tile)


def gather_of_single_elements(faulty: bool) -> Report:
    x = empty(1 << 20, dtype=BF16)
    if not faulty:
        return launch("gfx942", copy_kernel, (1,), x, x, 8192, BLOCK=8192)
    return launch("gfx942", strided_gather_kernel, (1,), x, x, 8192, 7, BLOCK=8192)


def misaligned_argument(faulty: bool) -> Report:
    x, y = empty(4104)[1 if faulty else 4 :], empty(4104)
    return launch("sm_90", copy_kernel, (4,), x, y, 4000, BLOCK=1024)


def grid_over_its_limit(faulty: bool) -> Report:
    count = (70_000 if faulty else 60_000) * 128
    return launch("sm_90", y_grid_copy_kernel, (1, count // 128), empty(count), empty(count), count, BLOCK=128)


def serialized_matrix_products(faulty: bool) -> Report:
    if not faulty:
        return product("sm_90")
    a, c = empty(128, 1024, dtype=BF16), empty(128, 128)
    return launch("sm_90", rescaled_product_kernel, (1,), a, a, c, 1024, BLOCK=128, BLOCK_K=64, num_stages=3)


def atomic_that_the_chip_lacks(faulty: bool) -> Report:
    dtype = BF16 if faulty else torch.float32
    return launch("sm_80", atomic_sum_kernel, (4,), empty(4096, dtype=dtype), empty(128, dtype=dtype), 4096, BLOCK=1024)


def scratch_memory_without_an_allocator(faulty: bool) -> Report:
    x = empty(128, 128)
    if not faulty:
        return launch("sm_90", copy_kernel, (16,), x, x, x.numel(), BLOCK=1024)
    return launch("sm_90", described_copy_kernel, (2,), x, x, 128, 128, BLOCK=64)


def product_of_vectors(faulty: bool) -> Report:
    kernel = mismatched_product_kernel if faulty else copy_kernel
    return launch("sm_90", kernel, (1,), empty(64), empty(64), *(() if faulty else (64,)), BLOCK=64)


def name_reused_by_a_run_time_loop(faulty: bool) -> Report:
    kernel = reused_name_kernel if faulty else copy_kernel
    return launch("sm_90", kernel, (1,), empty(64), empty(64), 4, BLOCK=64)


def product_too_shallow_for_the_matrix_unit(faulty: bool) -> Report:
    return product("sm_80", BLOCK_K=8 if faulty else 16)


def most_multiprocessors_idle(faulty: bool) -> Report:
    programs, steps = (4, 49) if faulty else (28, 7)
    a, partial = empty(64, 64 * programs * steps, dtype=BF16), empty(programs, 64, 64)
    share = 64 * steps
    return launch(
        "sm_90", split_product_kernel, (programs,), a, a, partial, programs * share, share, BLOCK=64, BLOCK_K=64
    )
