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
        architecture: 80, 90, ... for CUDA, "gfx942", ... for HIP, "" elsewhere.
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
_targets: dict[tuple[int, int, int], Target] = {}


def current_target() -> Target:
    """The target of the next launch: Triton's active driver and current device, cached for each number of threads."""
    if INTERPRETED:
        return _INTERPRETER
    driver: Any = triton.runtime.driver.active
    device = driver.get_current_device()
    key = (id(driver), device, torch.get_num_threads())
    target = _targets.get(key)
    if target is None:
        target = _targets[key] = _ask(driver, device)
    return target


def _ask(driver: Any, device: int) -> Target:
    backend = driver.get_current_target()
    if backend.backend not in ("cuda", "hip"):
        return Target("cpu", "", torch.get_num_threads(), 1 << 30)
    properties = driver.utils.get_device_properties(device)
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


def convolution_precision(dtype: torch.dtype, target: Target) -> str:
    """As `matmul_precision`, of convolutions, by `torch.backends.cudnn.conv.fp32_precision`."""
    if dtype is not torch.float32 or target.kind != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "tf32x3"  # pyright: ignore


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
    candidates = GPU_TILES_32_BIT if dtype is torch.float32 else GPU_TILES_16_BIT
    candidates = [fit_stages(tile, dtype, target) for tile in candidates]
    candidates = [tile for tile in candidates if tile.num_stages >= 2] or candidates[-1:]
    for tile in candidates:
        if tile.block_n > 64 and tile.block_n >= 2 * N:
            continue
        if ceil_div(M, tile.block_m) * ceil_div(N, tile.block_n) >= target.processors:
            return tile
    return candidates[-1]


# Epilogues that need hardly a register beside the accumulator, and those that need most: a logarithm.
_LIGHT_ACTIVATIONS = frozenset({"identity", "relu", "leaky_relu", "relu6", "hardtanh"})
_HEAVY_ACTIVATIONS = frozenset({"mish", "softplus", "log_sigmoid"})


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
    if target.kind not in ("cuda", "hip"):
        return tile
    smaller = GPU_TILES_32_BIT if dtype is torch.float32 else GPU_TILES_16_BIT[1:]
    if not aligned or activation in _HEAVY_ACTIVATIONS or _keeps_operands_in_registers(precision, target):
        smaller = smaller[-1:]
    elif activation == "identity" or (activation in _LIGHT_ACTIVATIONS and not derivative):
        return tile
    return min(tile, fit_stages(smaller[0], dtype, target), key=lambda each: each.block_m * each.block_n)


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

    Each split has at least eight steps, so that its pipeline is worth filling.

    Args:
        tiles: output tiles, that is programs without a split.
        steps: steps of the reduction loop without a split.
        target: where it runs.
    """
    if target.kind == "interpreter":
        return 2 if steps >= 2 else 1  # enough to test the reduction
    if target.kind == "cpu":
        return max(1, min(ceil_div(target.processors, tiles), steps // 8))
    return max(1, min(ceil_div(2 * target.processors, tiles), steps // 8))


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


class ConvolutionWeightTile(NamedTuple):
    """The tile of one program of a convolution's weight gradient.

    Attributes:
        block_rows: output channels.
        block_columns: input channels of one tap or, where `flat`, (tap, channel) pairs.
        box: (images, rows, columns) of output pixels in one step of the reduction, each a power of two.
        flat: whether a tile's columns run over all taps.
        taps: how many taps' channels stand side by side in a tile; more than one only where their number divides.
        consecutive: whether a box is as many pixels in memory order instead, whatever its sides.
        num_warps: warps of a program.
        num_stages: stages of its pipeline.
    """

    block_rows: int
    block_columns: int
    box: tuple[int, int, int]
    flat: bool
    taps: int
    consecutive: bool
    num_warps: int
    num_stages: int


# Half of a small second-level cache: the other half is for the tiles themselves.
_CACHED_BYTES = 512 << 10


# Elements of an fp32 tile that leaves the second-level cache to the operands.
_LONGEST_CPU_TILE = 1 << 15


@lru_cache(maxsize=4096)
def convolution_tile(
    pixels: int,
    channels_out: int,
    channels_in: int,
    dtype: torch.dtype,
    precision: str,
    target: Target,
    is_gradient: bool = False,
    pooled: str | None = None,
) -> GemmTile:
    """The tile for a convolution, or its data gradient: [pixels, channels_in] x [channels_in, channels_out].

    A step of the reduction is one tap of BLOCK_K channels, so BLOCK_K should divide the channels: their largest power
    of two is taken where it is worth a step, else the last step of each tap is masked.

    Args:
        pixels: of all images of the output.
        channels_out: columns of the output, in one group.
        channels_in: reduced over, in one group.
        dtype: of the operands.
        precision: of their products; see `matmul_precision`.
        target: where it runs.
        is_gradient: whether it is the data gradient, whose addresses take more registers.
        pooled: the activation before a fused pooling, whose epilogue takes more registers; None without.
    """
    tile = gemm_tile(pixels, channels_out, channels_in, dtype, target)
    if is_gradient and tile == fit_stages(GPU_TILES_16_BIT[0], dtype, target) and not _keeps_sums_apart(target):
        tile = fit_stages(GPU_TILES_16_BIT[1], dtype, target)
    if pooled is not None and target.kind in ("cuda", "hip"):
        tiles = GPU_TILES_32_BIT if dtype is torch.float32 else GPU_TILES_16_BIT[1:]
        largest = fit_stages(tiles[0 if pooled in _LIGHT_ACTIVATIONS else -1], dtype, target)
        if tile.block_m * tile.block_n > largest.block_m * largest.block_n:
            tile = largest
    if target.kind in ("cuda", "hip") and (channels_in % 16 or _keeps_operands_in_registers(precision, target)):
        tile = GemmTile(64, 64, 32, 8, 2)  # unaligned loads are one value each and fill registers too
    divisor = min(tile.block_k, channels_in & -channels_in)
    if divisor < (16 if dtype is torch.float32 else 32):
        divisor = min(tile.block_k, max(16, power_of_2_at_least(channels_in)))
    block_n = min(tile.block_n, max(16, power_of_2_at_least(channels_out)))
    block_m = tile.block_m
    if target.kind == "cpu":  # each program packs the weights: few long ones, but enough to share among the threads
        while block_m * block_n < _LONGEST_CPU_TILE and pixels >= 32 * target.processors * block_m:
            block_m *= 2
    return tile._replace(block_m=block_m, block_n=block_n, block_k=divisor)


@lru_cache(maxsize=4096)
def convolution_few_channels_tile(
    pixels: int, channels_out: int, reduction: int, dtype: torch.dtype, target: Target
) -> GemmTile:
    """The tile for a convolution whose reduction runs over all taps of a few channels."""
    if target.kind in ("cpu", "interpreter"):
        return gemm_tile(pixels, channels_out, reduction, dtype, target)
    block_n = min(64, max(16, power_of_2_at_least(channels_out)))
    return GemmTile(128, block_n, 32 if dtype.itemsize == 2 else 16, 8, 2)


# Of one tile that holds several taps: its sums stay in the second-level cache.
_MANY_COLUMNS = 512


@lru_cache(maxsize=4096)
def convolution_weight_tile(
    channels_out: int,
    channels_in: int,
    taps: int,
    output: tuple[int, int, int],
    dtype: torch.dtype,
    precision: str,
    target: Target,
) -> ConvolutionWeightTile:
    """The tile for a convolution's weight gradient, a product over all output pixels.

    Args:
        channels_out: in one group.
        channels_in: in one group.
        taps: of the kernel.
        output: images, rows and columns of output pixels.
        dtype: of the operands.
        precision: of their products; see `matmul_precision`.
        target: where it runs.
    """
    flat = channels_in < 16
    pixels = output[0] * output[1] * output[2]
    columns = channels_in * taps if flat else channels_in
    tile = gemm_tile(channels_out, columns, pixels, dtype, target)
    if target.kind in ("cuda", "hip"):
        # Few tiles are no reason for small ones: the reduction is split until the chip is full.
        small = _keeps_operands_in_registers(precision, target)
        rows = 64 if small or flat or channels_out <= 64 else 128
        width = min(64 if small or flat else 128, max(16, power_of_2_at_least(columns)))
        warps = 8 if rows == 128 and width == 128 else 4
        tile = fit_stages(GemmTile(rows, width, 32 if dtype is torch.float32 else 64, warps, 3), dtype, target)
    box = _box(tile.block_k, output)
    consecutive = target.kind == "cpu"
    width, taps_a_tile = tile.block_n, 1
    if consecutive and dtype is not torch.float32 and not flat and channels_in % width == 0 and width >= 32:
        # dZ in halves is packed before each product, x too: many taps share the packed dZ.
        taps_a_tile = min(power_of_2_at_least(taps), max(1, _MANY_COLUMNS // width))
        width *= taps_a_tile
    return ConvolutionWeightTile(
        tile.block_m, width, box, flat, taps_a_tile, consecutive, tile.num_warps, tile.num_stages
    )


@lru_cache(maxsize=4096)
def convolution_weight_splits(tiles: int, boxes: int, box_bytes: int, target: Target) -> int:
    """How many ways to split the reduction of a convolution's weight gradient.

    On a CPU the programs of one split follow each other: they find the split's pixels in the second-level cache.

    Args:
        tiles: output tiles, that is programs of one split.
        boxes: steps of the reduction without a split.
        box_bytes: what all tiles together read in one step.
        target: where it runs.
    """
    splits = split_count(tiles, boxes, target)
    if target.kind == "cpu" and tiles > 1:
        return max(splits, min(boxes * box_bytes // _CACHED_BYTES, boxes // 8))
    return splits


def _keeps_sums_apart(target: Target) -> bool:
    """Whether a warpgroup shares a product's sums (sm_90) or holds them in a memory of their own (sm_100)."""
    return target.architecture in (90, 100, 103)


def _keeps_operands_in_registers(precision: str, target: Target) -> bool:
    """Whether a product's operands are split in registers, which leaves those for a 64 x 64 tile only.

    Three tf32 products stand for one there (see `matmul_precision`); sm_90 and sm_100 read them from shared memory.
    """
    return precision == "tf32x3" and target.architecture not in (90, 100, 103)


def _box(size: int, output: tuple[int, int, int]) -> tuple[int, int, int]:
    """The box of `size` pixels that covers `output` in the fewest steps; among equals the one with longest rows."""
    boxes = []
    width = size
    while width:
        height = size // width
        while height:
            box = (size // (width * height), height, width)
            steps = ceil_div(output[0], box[0]) * ceil_div(output[1], box[1]) * ceil_div(output[2], box[2])
            boxes.append((steps, box))
            height //= 2
        width //= 2
    return min(boxes, key=lambda entry: entry[0])[1]


@lru_cache(maxsize=4096)
def depthwise_box(output: tuple[int, int, int], target: Target) -> tuple[int, int, int]:
    """(images, rows, columns) of output pixels in one step of a depthwise weight gradient."""
    return _box(1024 if target.kind == "interpreter" else 32, output)


@lru_cache(maxsize=4096)
def convolution_transpose_tile(batch: int, rows: int, columns: int, target: Target) -> tuple[int, int, int, int]:
    """(BLOCK_BATCH, BLOCK_ROWS, BLOCK_COLUMNS, num_warps) for a batched transposition."""
    side, size = (1024, 1 << 18) if target.kind == "interpreter" else (64, 1 << 12)
    block_rows = min(side, power_of_2_at_least(rows))
    block_columns = min(side, power_of_2_at_least(columns))
    block_batch = min(max(1, size // (block_rows * block_columns)), power_of_2_at_least(batch))
    return block_batch, block_rows, block_columns, 4


def every_register(rows: int, precision: str, target: Target) -> dict[str, int]:
    """Launch options that let a program with a product of `rows` rows use as many registers as there are.

    NVIDIA's assembler otherwise aims at more programs per multiprocessor than shared memory allows, and spills for it.
    But where a product splits its operands in registers it fills any limit that is set, and spills at that.
    """
    split = precision == "tf32x3" and (rows < 64 or _keeps_operands_in_registers(precision, target))
    return {"maxnreg": 255} if target.kind == "cuda" and not split else {}
