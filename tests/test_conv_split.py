"""Convolutions whose reduction is split over programs, as on a GPU with few tiles: every part, and every epilogue."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import GPU, forced_tiles
from helpers import assert_close, check_against_reference, convolution_precision, counted_launches, tolerance
from torch import Tensor
from torch.nn.grad import conv2d_input

from tinynet import nn
from tinynet.ops.activation_like import as_activation
from tinynet.ops.conv import conv2d, conv3d
from tinynet.ops.conv_transpose import conv_transpose2d
from tinynet.ops.convolution_operator import convolution_reference
from tinynet.ops.convolution_spec import convolution_spec
from tinynet_kernels.conv.spec import ConvolutionSpec
from tinynet_kernels.tiles import GemmTile

pytestmark = pytest.mark.kernels

SPLIT = ["convolution_forward_kernel", "finish_convolution_kernel"]
SPLIT_GRADIENT = ["convolution_input_gradient_kernel", "finish_product_kernel"]
TILE = GemmTile(32, 16, 16, 4, 1)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


def in_parts(parts: int, **others: Any) -> Any:
    """Within it, all convolutions have so many parts and several tiles."""
    rules = {"convolution_tile": TILE, "product_splits": parts, "GROUP": 2, "flat_block": (256, 4)}
    return forced_tiles(**rules, is_eligible=False, **others)


def make(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], dtype: torch.dtype, device: str, channels_last: bool = True
) -> list[Tensor]:
    """x, W and b."""
    order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    order = order if channels_last else torch.contiguous_format
    x, bias = torch.randn(shape, device=device), torch.randn(weight_shape[0], device=device)
    weight = torch.randn(weight_shape, device=device) / math.prod(weight_shape[1:]) ** 0.5
    x, weight = (tensor.to(dtype, memory_format=order) for tensor in (x, weight))
    return [tensor.requires_grad_() for tensor in (x, weight, bias.to(dtype))]


# image shape, output channels, kernel size, how the window slides, parts
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any], int]] = {
    "parts end within channels": ((1, 40, 5, 7), 20, (3, 3), {"padding": 1}, 4),
    "stride and dilation": ((1, 33, 11, 12), 18, (3, 2), {"padding": 1, "stride": 2, "dilation": (3, 1)}, 3),
    "phases without taps": ((2, 36, 7, 6), 35, (1, 1), {"stride": (2, 3)}, 2),
    "phases of unequal taps": ((2, 18, 8, 9), 40, (3, 3), {"padding": 1, "stride": 2}, 3),
    "more taps than bits": ((1, 20, 8, 7), 17, (7, 5), {"padding": (3, 2)}, 5),
    "more parts than steps": ((1, 20, 4, 5), 18, (1, 1), {"padding": 1}, 4),
    "even groups": ((1, 64, 5, 6), 64, (3, 3), {"padding": 1, "groups": 2}, 4),
    "volume": ((1, 20, 3, 4, 5), 18, (3, 2, 3), {"padding": 1}, 5),
    "strided volume": ((1, 18, 5, 6, 7), 33, (3, 3, 2), {"padding": 1, "stride": 2}, 3),
}


HUGE = ("even groups", "strided volume")  # cases whose offsets are int64


@pytest.mark.parametrize("case", CASES)
def test_windows(case: str, device: str) -> None:
    """Every second case in halves, in PyTorch's memory order and without a bias."""
    shape, channels_out, kernel_size, sliding, parts = CASES[case]
    plain = list(CASES).index(case) % 2 == 0
    dtype = torch.float32 if plain else torch.bfloat16
    weight_shape = channels_out, shape[1] // sliding.get("groups", 1), *kernel_size
    x, weight, bias = make(shape, weight_shape, dtype, device, channels_last=plain)
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sliding}
    function, activation = conv2d if x.dim() == 4 else conv3d, "gelu" if plain else "relu"
    spec = convolution_spec(function.__name__, x, weight, None, **given)
    with in_parts(parts, **({"LARGEST_OFFSET": 0} if case in HUGE else {})):
        launches = check_against_reference(
            lambda x, weight, bias: function(x, weight, bias, **given, activation=activation),
            lambda x, weight, bias: convolution_reference(x, weight, bias, spec, as_activation(activation)),
            *(x, weight, bias if plain else None),
            error=2 * tolerance(dtype, weight[0].numel()),
            gradient_errors=4 * tolerance(dtype, max(weight[0].numel(), x[:, 0].numel())),
        )
    assert [name for name in launches if name in SPLIT + SPLIT_GRADIENT] == SPLIT + SPLIT_GRADIENT


def test_pooling(device: str) -> None:
    tensors = make((2, 40, 7, 7), (20, 40, 3, 3), torch.float32, device)
    with in_parts(3):
        launches = check_against_reference(
            lambda x, weight, bias: conv2d(x, weight, bias, padding=1, activation="gelu", pool=2),
            lambda x, weight, bias: F.max_pool2d(F.gelu(F.conv2d(x, weight, bias, padding=1)), 2),
            *tensors,
            error=2 * tolerance(torch.float32, 360),
            gradient_errors=4 * tolerance(torch.float32, 360),
        )
    assert launches[:2] == SPLIT and "max_pool_forward_kernel" not in launches


@pytest.mark.parametrize("training", [True, False])
def test_normalization(training: bool, device: str) -> None:
    """In training the second stage computes the statistics; in inference it normalizes."""
    model = nn.Sequential(nn.Conv2d(40, 36, 3, padding=1), nn.BatchNorm2d(36), nn.SiLU()).to(device).train(training)
    convolution: Any = model[0]
    norm: Any = model[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    x = torch.randn(3, 40, 5, 6, device=device)
    z = F.conv2d(x.double(), convolution.weight.double(), convolution.bias.double(), padding=1)
    constants = (None, None) if training else (norm.running_mean.double(), norm.running_var.double())
    with torch.no_grad(), in_parts(3), counted_launches() as launches:
        y = model(x)
    assert_close(y, F.silu(F.batch_norm(z, *constants, training=training)), 4 * tolerance(torch.float32, 360))
    assert [name for name in launches if name != "transpose_kernel"] == [
        *SPLIT,
        *(["merge_statistics_kernel", "normalize_kernel"] if training else []),
    ]


def test_transposed(device: str) -> None:
    x, weight, _ = make((2, 40, 4, 5), (40, 18, 3, 3), torch.float32, device)
    bias = torch.randn(18, device=device, requires_grad=True)
    window: Any = {"stride": 2, "padding": 1, "output_padding": 1}
    with in_parts(3):
        launches = check_against_reference(
            lambda x, weight, bias: conv_transpose2d(x, weight, bias, **window, activation="mish"),
            lambda x, weight, bias: F.mish(F.conv_transpose2d(x, weight, bias, **window)),
            *(x, weight, bias),
            error=2 * tolerance(torch.float32, 360),
            gradient_errors=4 * tolerance(torch.float32, 360),
        )
    assert launches[:2] == SPLIT_GRADIENT and set(SPLIT) < set(launches)


def test_reruns_are_bitwise_equal(device: str) -> None:
    x, weight, bias = make((1, 64, 5, 5), (20, 64, 3, 3), torch.float32, device)
    with in_parts(5):
        first, second = (torch.autograd.grad(conv2d(x, weight, bias).square().sum(), (x, weight)) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_only_few_tiles_with_many_steps_are_split(device: str) -> None:
    """Of a GPU; the CPU engine's threads share the tiles of one image."""
    few = make((1, 64, 5, 5), (16, 64, 3, 3), torch.float32, device)  # one tile of 18 steps
    short = make((1, 64, 5, 5), (16, 64, 2, 2), torch.float32, device)  # 8 steps
    many = make((4, 64, 8, 8), (16, 64, 3, 3), torch.float32, device)  # 4 tiles for 4 processors
    for tensors, is_split in ((few, True), (short, False), (many, False)):
        with torch.no_grad(), forced_tiles(current_target=GPU), counted_launches() as launches:
            conv2d(tensors[0], tensors[1])
        assert launches == (SPLIT if is_split else SPLIT[:1])


@pytest.mark.parametrize("taps", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
def test_phases_with_taps(taps: int, stride: int, dilation: int) -> None:
    """Those whose pixels get a gradient."""
    weight, size = torch.ones(1, 1, taps, taps), 40 + stride
    dy = torch.ones_like(F.conv2d(torch.ones(1, 1, size, size), weight, None, stride, 1, dilation))
    dx = conv2d_input((1, 1, size, size), weight, dy, stride, 1, dilation)[0, 0, 12:, 12:]
    reached = sum(bool(dx[h::stride, w::stride].any()) for h in range(stride) for w in range(stride))
    spec = ConvolutionSpec((stride, stride), (1, 1), (1, 1), (dilation, dilation))
    assert spec.compiled((taps, taps)).phases_with_taps == reached
