"""Convolutions in thin groups on a CPU: against float64 PyTorch, and what must not pass between groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, tolerance

from tinynet.ops.activation import as_activation
from tinynet.ops.conv import conv2d, conv3d, convolution
from tinynet.ops.convolution_operator import convolution_reference
from tinynet.ops.convolution_spec import convolution_spec
from tinynet_kernels.conv.grouped import GroupTile, multiplies_groups
from tinynet_kernels.conv.spec import Normalization
from tinynet_kernels.tiles import Target

pytestmark = pytest.mark.kernels

KERNELS = [
    "convolution_groups_forward_kernel",
    "convolution_groups_input_gradient_kernel",
    "convolution_groups_weight_gradient_kernel",
]
# image shape, groups, kernel size, and how the window slides
CASES = {
    "3x3 of 8 groups of 4": ((2, 32, 7, 9), 8, (3, 3), {"padding": 1}),
    "3x3 stride 2 of 9 groups of 2": ((1, 18, 9, 8), 9, (3, 3), {"padding": 1, "stride": 2}),
    "3x2 of 3 groups of 8": (
        (2, 24, 9, 7),
        3,
        (3, 2),
        {"padding": (2, 0), "dilation": (2, 1), "stride": (1, 3)},
    ),
    "5x5 of 2 groups of 16": ((1, 32, 6, 5), 2, (5, 5), {"padding": 2, "stride": (3, 2), "dilation": (1, 2)}),
    "1x1 stride 2": ((2, 12, 5, 4), 3, (1, 1), {"stride": 2}),
    "more taps than bits": ((1, 16, 8, 9), 4, (7, 5), {"padding": (3, 1)}),
    "one pixel": ((1, 8, 1, 1), 2, (3, 3), {"padding": 1}),
}


@pytest.fixture(autouse=True)
def groups_on_any_engine() -> Any:
    """The rule of the CPU engine, in the interpreter too."""

    def rule(inputs: int, outputs: int, groups: int, target: Target) -> bool:
        return multiplies_groups(inputs, outputs, groups, target._replace(kind="cpu"))

    with forced_tiles(multiplies_groups=rule):
        yield


def make(
    shape: tuple[int, ...],
    groups: int,
    kernel_size: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    torch.manual_seed(sum(shape) + groups)
    channels = shape[1]
    taps = math.prod(kernel_size) * channels // groups
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(channels, channels // groups, *kernel_size, device=device) / taps**0.5).to(dtype)
    return x, weight.requires_grad_(), torch.randn(channels, device=device).to(dtype).requires_grad_()


def check(function: Any, tensors: Any, activation: str | None = None, **sliding: Any) -> list[str]:
    x, weight, _ = tensors
    arguments: Any = {"stride": 1, "padding": 0, "dilation": 1, **sliding}
    spec = convolution_spec(function.__name__, *tensors, **arguments)
    launches = check_against_reference(
        lambda *tensors: function(*tensors, **arguments, activation=activation),
        lambda x, weight, bias: convolution_reference(x, weight, bias, spec, as_activation(activation)),
        *tensors,
        error=2 * tolerance(x.dtype, weight[0].numel()),
        gradient_errors=4 * tolerance(x.dtype, max(weight[0].numel(), x[:, 0].numel())),
    )
    assert set(KERNELS) <= set(launches)
    return launches


@pytest.mark.parametrize("case", CASES)
def test_windows(case: str, device: str) -> None:
    shape, groups, kernel_size, sliding = CASES[case]
    check(conv2d, make(shape, groups, kernel_size, device=device), groups=groups, **sliding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", list(CASES)[:4])
def test_dtypes(case: str, dtype: torch.dtype, device: str) -> None:
    shape, groups, kernel_size, sliding = CASES[case]
    check(conv2d, make(shape, groups, kernel_size, dtype, device), "gelu", groups=groups, **sliding)


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_more_than_one_tile(width: int, device: str) -> None:
    """Tiles that end within the pixels, and within a vector of the last groups."""
    tile = GroupTile(32, 32 // width, width)
    with forced_tiles(group_tile=tile, group_weight_tile=tile, SPLIT_BYTES=1 << 13):
        groups = 48 // width + 1
        check(conv2d, make((3, groups * width, 5, 7), groups, (3, 3), device=device), "relu", groups=groups, padding=1)


@pytest.mark.parametrize("taps", [(3, 3, 3), (2, 5, 4)])
def test_volumes(taps: tuple[int, int, int], device: str) -> None:
    """Planes of taps: within the bits of a number, and past them."""
    tensors = make((2, 16, 5, 4, 6), 4, taps, device=device)
    check(conv3d, tensors, groups=4, padding=1, stride=(2, 1, 2))


def test_rest_of_the_epilogue(device: str) -> None:
    x, weight, bias = (tensor.detach() for tensor in make((2, 32, 9, 8), 8, (3, 3), device=device))
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1, groups=8)
    error = 2 * tolerance(torch.float32, weight[0].numel())

    with counted_launches() as launches:
        pooled = conv2d(x, weight, bias, padding=1, groups=8, activation="relu", pool=2)
    assert KERNELS[0] in launches
    assert_close(pooled, torch.nn.functional.max_pool2d(exact.relu(), 2), error)

    mean, variance = torch.randn(32, device=device), torch.rand(32, device=device) + 0.5
    norm = Normalization(mean, variance, None, bias, 1e-5)
    sliding = {"stride": 1, "padding": 1, "dilation": 1, "groups": 8, "activation": as_activation("relu")}
    normalized, partial = convolution("conv2d", x, weight, bias, **sliding, norm=norm, want_statistics=True)
    expected = torch.nn.functional.batch_norm(exact, mean.double(), variance.double(), None, bias.double(), eps=1e-5)
    assert_close(normalized, expected.relu(), error)
    assert partial is not None
    count, means, squares = partial.double().unbind(1)
    mean_of_all = (count * means).sum(0) / count.sum(0)
    assert_close(mean_of_all, expected.relu().mean((0, 2, 3)), error)
    deviations = squares.sum(0) + (count * (means - mean_of_all) ** 2).sum(0)
    assert_close(deviations / count.sum(0), expected.relu().var((0, 2, 3), unbiased=False), 4 * error)


@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nothing_passes_to_another_group(width: int, value: float, device: str) -> None:
    x, weight, bias = make((1, 4 * width, 5, 6), 4, (3, 3), device=device)
    with torch.no_grad():
        x[0, width, 2, 3] = value
        weight[3 * width] = math.nan  # infinity times the zeros around the image is NaN
    check(conv2d, (x, weight, bias), groups=4, padding=1)


def test_other_groups_keep_their_kernels(device: str) -> None:
    """Groups of 3, and those with another number of outputs."""
    for inputs, outputs in ((3, 3), (4, 8)):
        x = torch.randn(1, 4 * inputs, 5, 4, device=device)
        weight = torch.randn(4 * outputs, inputs, 3, 3, device=device)
        with counted_launches() as launches:
            y = conv2d(x, weight, groups=4)
        assert not set(KERNELS) & set(launches)
        assert_close(y, torch.nn.functional.conv2d(x.double(), weight.double(), groups=4), 1e-5)
