"""One tile for each problem, by rule: how much of the output one program computes, and with how many warps and stages.

A rule takes the problem's sizes, its dtype and the target. It never times anything: autotuning costs users seconds at
every new shape, and a rule that is wrong by a factor is seen in `benchmarks/`, not at their first call.

Targets: `cuda` and `hip` by architecture, `cpu` (the native CPU engine) and `interpreter` (numpy, 25 ms per program, so
the largest tiles win).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton

from tinynet_kernels.launch import INTERPRETED


class Target(NamedTuple):
    """What a rule may ask about the machine.

    Attributes:
        kind: "cuda", "hip", "cpu" or "interpreter".
        architecture: 80, 90, ... for CUDA, "gfx942", ... for HIP; for a CPU "bf16" if it multiplies numbers of bf16
            faster than those of fp32, else "".
        processors: streaming multiprocessors, compute units or threads.
        shared_memory: bytes one program may hold on chip.
    """

    kind: str
    architecture: int | str
    processors: int
    shared_memory: int


class GemmTile(NamedTuple):
    """The tile of one program of a matrix product: [BLOCK_M, BLOCK_K] x [BLOCK_K, BLOCK_N]."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


_INTERPRETER = Target("interpreter", "", 1, 1 << 30)
_DRIVERS = triton.runtime.driver
_targets: dict[tuple[int, int, int], Target] = {}


def current_target() -> Target:
    """The target of the next launch: Triton's active driver and current device, cached for each number of threads."""
    if INTERPRETED:
        return _INTERPRETER
    drivers: Any = _DRIVERS
    driver = drivers._active or drivers.active  # `active` is a function, which finds a driver once
    device = driver.get_current_device()
    key = (id(driver), device, torch.get_num_threads())
    target = _targets.get(key)
    if target is None:
        target = _targets[key] = _ask(driver, device)
    return target


def _ask(driver: Any, device: int) -> Target:
    backend = driver.get_current_target()
    properties = driver.utils.get_device_properties(device)
    if backend.backend not in ("cuda", "hip"):
        return Target("cpu", "bf16" if properties.get("bf16_pairs") else "", torch.get_num_threads(), 1 << 30)
    return Target(backend.backend, backend.arch, properties["multiprocessor_count"], properties["max_shared_mem"])


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up; plain Python, since `triton.cdiv` costs microseconds per call."""
    return -(-a // b)


def power_of_2_at_least(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def matmul_precision(dtype: torch.dtype, target: Target) -> str:
    """`input_precision` of the products of linear and recurrent layers, by PyTorch's setting for fp32.

    "ieee" on NVIDIA chips would leave the tensor cores idle, so three tf32 products stand in for it (error 1e-6).

    Args:
        dtype: of the operands; 16-bit ones have one precision.
        target: where it runs. Only CUDA heeds the setting: asking for it takes a microsecond.

    Source: `torch.backends.cuda.matmul.fp32_precision`; reading `allow_tf32` raises once that is set.
    """
    if dtype is not torch.float32 or target.kind != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


# Largest first. Below 64 rows sm_90 and sm_100 leave their warpgroup instruction for the older, slower one.
GPU_TILES_16_BIT = (
    GemmTile(128, 256, 64, 8, 3),
    GemmTile(128, 128, 64, 8, 3),
    GemmTile(64, 128, 64, 4, 4),
    GemmTile(64, 64, 64, 4, 4),
)
GPU_TILES_32_BIT = (
    GemmTile(128, 128, 32, 8, 3),
    GemmTile(64, 64, 32, 4, 3),
)


@lru_cache(maxsize=4096)
def gemm_tile(M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> GemmTile:
    """The tile for a product [M, K] x [K, N]: the largest that fits the chip and still fills it.

    Args:
        M: rows of the output.
        N: columns of the output.
        K: length of the reduction.
        dtype: of the operands.
        target: where it runs.
    """
    least_k = 8 if dtype is torch.float32 else 16
    if target.kind in ("cpu", "interpreter"):
        return GemmTile(
            min(128, max(16, power_of_2_at_least(M))),
            min(128, max(16, power_of_2_at_least(N))),
            min(128, max(least_k, power_of_2_at_least(K))),
            4,
            1,
        )
    candidates = _gpu_tiles(dtype)
    candidates = [fit_stages(tile, dtype, target) for tile in candidates]
    candidates = [tile for tile in candidates if tile.num_stages >= 2] or candidates[-1:]
    for tile in candidates:
        if tile.block_n > 64 and tile.block_n >= 2 * N:
            continue
        if ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n) >= target.processors:
            return tile
    return candidates[-1]


def _gpu_tiles(dtype: torch.dtype) -> tuple[GemmTile, ...]:
    return GPU_TILES_32_BIT if dtype is torch.float32 else GPU_TILES_16_BIT


def smallest_gemm_tile(dtype: torch.dtype, target: Target) -> GemmTile:
    """The smallest tile of a GPU's products, for those that leave most of it idle."""
    return fit_stages(_gpu_tiles(dtype)[-1], dtype, target)


# Epilogues that need hardly a register beside the accumulator, and those that need most: a logarithm.
LIGHT_ACTIVATIONS = frozenset({"identity", "relu", "leaky_relu", "relu6", "hardtanh"})
_HEAVY_ACTIVATIONS = frozenset({"mish", "softplus", "log_sigmoid"})


_WORTH_BALANCING = 0.92  # of the time: each tile costs some time too
MOST_ROWS_OF_STORES = 64  # of a weight gradient, which then packs nothing: storing it takes most of the time
_MOST_CPU_COLUMNS = 512  # of one tile, whose sums then take half a megabyte
_LONGEST_CPU_TILE = 1 << 15  # elements of an fp32 tile that leaves the second-level cache to the operands


@lru_cache(maxsize=4096)
def linear_tile(
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    precision: str,
    aligned: bool,
    activation: str,
    target: Target,
    *,
    derivative: bool = False,
) -> GemmTile:
    """The tile for a product of a linear layer: that of `gemm_tile`, or a smaller one where its registers would spill.

    Args:
        M, N, K, dtype, target: as in `gemm_tile`.
        precision: of the product; see `matmul_precision`.
        aligned: whether operands are loaded 16 bytes at a time; single elements fill registers.
        activation: name of the one fused into the epilogue, which may store its input too.
        derivative: whether it is the derivative that is fused: that loads a tile beside the accumulator.
    """
    tile = gemm_tile(M, N, K, dtype, target)
    if target.kind == "cpu":
        while tile.block_n > 32 and ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n) < target.processors:
            tile = tile._replace(block_n=tile.block_n // 2)
        return _balanced(with_more_rows(tile, M, N, target), M, N, target)
    if target.kind not in ("cuda", "hip"):
        return tile
    if aligned and dtype is not torch.float32:
        tile = _deeper(tile, M, N, K, dtype, target)
    smaller = GPU_TILES_32_BIT if dtype is torch.float32 else GPU_TILES_16_BIT[1:]
    if not aligned or activation in _HEAVY_ACTIVATIONS or keeps_operands_in_registers(precision, target):
        smaller = smaller[-1:]
    elif activation == "identity" or (activation in LIGHT_ACTIVATIONS and not derivative):
        return tile
    return min(tile, fit_stages(smaller[0], dtype, target), key=lambda each: each.block_m * each.block_n)


def with_more_rows(tile: GemmTile, M: int, N: int, target: Target) -> GemmTile:
    """The tile on a CPU, of a product [M, K] x [K, N].

    Each program packs its [K, BLOCK_N]: so there are few long ones, but enough to share among the threads. Fewer are
    enough where each has all rows, and none packs what another has packed.
    """
    block_m, threads = tile.block_m, target.processors
    while block_m < M and block_m * tile.block_n < _LONGEST_CPU_TILE:
        row_tiles = ceil_div(M, 2 * block_m)
        programs = 1 if threads == 1 else 2 * threads if row_tiles == 1 else 4 * threads
        if row_tiles * ceil_div(N, tile.block_n) < programs:
            break
        block_m *= 2
    return tile._replace(block_m=block_m)


def with_more_columns(tile: GemmTile, M: int, N: int, K: int, target: Target) -> GemmTile:
    """The tile on a CPU, of a product [M, K] x [K, N] whose first operand is transposed.

    Each program packs its [BLOCK_M, K] of that, or it spends its time storing long rows: so columns are many, where
    programs are still enough to share.
    """
    threads = target.processors
    least = 1 if threads == 1 else 4 * threads
    while target.kind == "cpu" and not MOST_ROWS_OF_STORES < K < 256 and tile.block_n < min(_MOST_CPU_COLUMNS, N):
        if ceil_div(M, tile.block_m) * ceil_div(N, 2 * tile.block_n) < least:
            break
        tile = tile._replace(block_n=2 * tile.block_n)
    return tile


def _balanced(tile: GemmTile, M: int, N: int, target: Target) -> GemmTile:
    """The tile with as few columns as let a CPU's threads finish a product of few tiles at about the same time."""
    best = tile
    while tile.block_n > 32 and ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n) < 8 * target.processors:
        tile = tile._replace(block_n=tile.block_n // 2)
        if _longest_share(tile, M, N, target) < _WORTH_BALANCING * _longest_share(best, M, N, target):
            best = tile
    return best


def _longest_share(tile: GemmTile, M: int, N: int, target: Target) -> int:
    """How many elements the busiest thread computes.

    Each has an equal part of the tiles, one after another, and then helps the next thread with the rest of its part.
    """
    tiles = [
        min(tile.block_m, M - row) * min(tile.block_n, N - column)
        for column in range(0, N, tile.block_n)
        for row in range(0, M, tile.block_m)
    ]
    threads = target.processors
    parts = [tiles[len(tiles) * n // threads : len(tiles) * (n + 1) // threads] for n in range(threads)]
    shares = [0] * threads
    while any(parts):
        thread = shares.index(min(shares))
        part = next(part for part in parts[thread:] + parts[:thread] if part)
        shares[thread] += part.pop(0)
    return max(shares)


def _deeper(tile: GemmTile, M: int, N: int, K: int, dtype: torch.dtype, target: Target) -> GemmTile:
    """The tile with steps twice as deep where programs of at most eight steps would result, which need not be split.

    Only where tiles are so few that most of the chip is idle: a program then has shared memory enough.
    """
    tiles, steps = ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n), ceil_div(K, tile.block_k)
    deep = fit_stages(tile._replace(block_k=2 * tile.block_k, num_stages=3), dtype, target)
    return deep if 2 * tiles < target.processors and 8 < steps <= 16 and deep.num_stages > 1 else tile


def fuses_derivative(activation: str, target: Target) -> bool:
    """Whether a product's epilogue has registers for the derivative of this activation, or a pass of its own is due."""
    return target.kind not in ("cuda", "hip") or activation not in _HEAVY_ACTIVATIONS


def fit_stages(tile: GemmTile, dtype: torch.dtype, target: Target) -> GemmTile:
    """The same tile with as many pipeline stages, at most its own, as the chip's shared memory holds."""
    stage = (tile.block_m + tile.block_n) * tile.block_k * dtype.itemsize
    stages = min(tile.num_stages, target.shared_memory // stage)
    if target.kind == "hip":
        stages = min(stages, 2)
    return tile._replace(num_stages=max(stages, 1))


@lru_cache(maxsize=4096)
def split_count(tiles: int, steps: int, target: Target) -> int:
    """How many ways to split a long reduction so that its programs fill the chip twice.

    Each split has about eight steps, so that its pipeline is worth filling: at most eight where most of a GPU would be
    idle, at least eight elsewhere.

    Args:
        tiles: output tiles, that is programs without a split.
        steps: steps of the reduction loop without a split.
        target: where it runs.
    """
    if target.kind == "interpreter":
        return 2 if steps >= 2 else 1  # enough to test the reduction
    if target.kind == "cpu":
        return max(1, min(ceil_div(target.processors, tiles), steps // 8))
    most = ceil_div(steps, 8) if 2 * tiles < target.processors else steps // 8
    return max(1, min(ceil_div(2 * target.processors, tiles), most))


def balancing_splits(tile: GemmTile, N: int, K: int, steps: int, target: Target) -> int:
    """How many ways to split a long reduction so that a CPU's threads finish a small [N, K] at about the same time.

    Each thread then has all tiles, of its part of the reduction.
    """
    threads = target.processors
    if target.kind != "cpu" or threads == 1 or ceil_div(N, tile.block_m) * ceil_div(K, tile.block_n) >= 8 * threads:
        return 1
    is_balanced = _WORTH_BALANCING * threads * _longest_share(tile, N, K, target) <= N * K
    return 1 if is_balanced else min(threads, max(steps // 8, 1))


@lru_cache(maxsize=4096)
def product_splits(tiles: int, steps: int, target: Target) -> int:
    """How many ways to split the reduction of a product that has an epilogue: only where most of a GPU would be idle.

    A second launch then adds the parts. Parts have at most eight steps, or fill the chip once; none is empty.

    Args:
        tiles, steps, target: as of `split_count`.
    """
    if target.kind not in ("cuda", "hip") or 2 * tiles >= target.processors:
        return 1
    steps_of_part = ceil_div(steps, min(ceil_div(target.processors, tiles), ceil_div(steps, 8)))
    return ceil_div(steps, steps_of_part)


@lru_cache(maxsize=4096)
def rows_and_columns(rows: int, columns: int, target: Target, activation: str = "identity") -> tuple[int, int, int]:
    """(BLOCK_ROWS, BLOCK_COLUMNS, num_warps) for a kernel that walks a matrix without reusing it.

    Args:
        rows, columns: of the matrix.
        target: where it runs.
        activation: name of the one whose derivative it applies.
    """
    if target.kind == "interpreter":
        return min(256, power_of_2_at_least(rows)), min(256, power_of_2_at_least(columns)), 4
    if target.kind == "cpu":  # several tiles of 1,024 values fit the first-level cache
        block_columns = min(256, max(16, power_of_2_at_least(columns)))
        return min(1024 // block_columns, power_of_2_at_least(rows)), block_columns, 4
    most_rows = 16 if activation in _HEAVY_ACTIVATIONS else 32
    return min(most_rows, power_of_2_at_least(rows)), min(128, max(16, power_of_2_at_least(columns))), 4


@lru_cache(maxsize=4096)
def flat_block(elements: int, target: Target) -> tuple[int, int]:
    """(BLOCK, num_warps) for an elementwise kernel over `elements` values."""
    if target.kind == "interpreter":
        return min(1 << 16, power_of_2_at_least(elements)), 4
    if target.kind == "cpu":
        return min(4096, power_of_2_at_least(elements)), 4
    return 1024, 4


def keeps_operands_in_registers(precision: str, target: Target) -> bool:
    """Whether a product's operands are split in registers, which leaves those for a 64 x 64 tile only.

    Three tf32 products stand for one there (see `matmul_precision`); sm_90 and sm_100 read them from shared memory.
    """
    return precision == "tf32x3" and target.architecture not in (90, 100, 103)


def every_register(rows: int, precision: str, target: Target) -> dict[str, int]:
    """Launch options that let a program with a product of `rows` rows use as many registers as there are.

    NVIDIA's assembler otherwise aims at more programs per multiprocessor than shared memory allows, and spills for it.
    But where a product splits its operands in registers it fills any limit that is set, and spills at that.
    """
    split = precision == "tf32x3" and (rows < 64 or keeps_operands_in_registers(precision, target))
    return {"maxnreg": 255} if target.kind == "cuda" and not split else {}
