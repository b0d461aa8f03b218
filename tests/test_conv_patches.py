"""Convolutions of images with few channels on a CPU: products of rows of taps against float64 PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, tolerance

from tinynet.ops.activation import as_activation
from tinynet.ops.conv import conv1d, conv2d, conv3d, convolution
from tinynet.ops.convolution_operator import convolution_reference
from tinynet.ops.convolution_spec import convolution_spec
from tinynet_kernels.conv.patches import multiplies_patches
from tinynet_kernels.conv.spec import ConvolutionSpec, Normalization, Sizes
from tinynet_kernels.tiles import GemmTile, Target

pytestmark = pytest.mark.kernels

FORWARD, WEIGHT_GRADIENT = "convolution_patches_forward_kernel", "convolution_patches_weight_gradient_kernel"
# image shape, output channels, kernel size, how the window slides, and whether x is copied
CASES = {
    "7x7 stride 2": ((2, 3, 13, 15), 18, (7, 7), {"padding": 3, "stride": 2}, True),
    "3x3": ((2, 3, 7, 9), 20, (3, 3), {"padding": 1}, True),
    "patchify": ((1, 3, 8, 12), 33, (4, 4), {"stride": 4}, False),
    "patchify with a rest": ((2, 2, 9, 11), 17, (4, 3), {"stride": (4, 3)}, True),
    "11x11 stride 4": ((1, 4, 24, 27), 5, (11, 11), {"padding": 2, "stride": 4}, True),
    "dilated rows": ((1, 3, 12, 8), 16, (3, 5), {"padding": (3, 1), "dilation": (3, 1), "stride": (2, 3)}, True),
    "same": ((1, 3, 6, 7), 4, (4, 2), {"padding": "same"}, True),
    "gray 5x5": ((3, 1, 9, 11), 17, (5, 5), {"padding": 2}, True),
    "gray 3x7 stride 2": ((2, 1, 12, 19), 6, (3, 7), {"stride": (1, 2)}, False),
    "one pixel": ((1, 2, 1, 1), 1, (3, 3), {"padding": 1}, True),
}


@pytest.fixture(autouse=True)
def patches_on_any_engine() -> Any:
    """The rule of the CPU engine, in the interpreter too."""

    def rule(channels: int, kernel_size: Sizes, spec: ConvolutionSpec, target: Target) -> bool:
        return multiplies_patches(channels, kernel_size, spec, target._replace(kind="cpu"))

    with forced_tiles(multiplies_patches=rule):
        yield


def make(case: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    shape, channels_out, kernel_size, *_ = CASES[case]
    torch.manual_seed(sum(shape) + channels_out)
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    taps = math.prod(kernel_size) * shape[1]
    weight = torch.randn(channels_out, shape[1], *kernel_size, device=device) / taps**0.5
    return x, weight.to(dtype).requires_grad_(), torch.randn(channels_out, device=device).to(dtype).requires_grad_()


def check(tensors: Any, activation: str | None = None, pool: int = 1, **sliding: Any) -> list[str]:
    x, weight, _ = tensors
    arguments: Any = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sliding}
    spec = convolution_spec("conv2d", *tensors, **arguments)
    function = as_activation(activation)

    def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = convolution_reference(x, weight, bias, spec, function)
        return torch.nn.functional.max_pool2d(y, 2) if pool == 2 else y

    return check_against_reference(
        lambda x, weight, bias: conv2d(x, weight, bias, **arguments, activation=activation, pool=pool),
        reference,
        *tensors,
        error=2 * tolerance(x.dtype, weight[0].numel()),
        gradient_errors=4 * tolerance(x.dtype, max(weight[0].numel(), x[:, 0].numel())),
    )


@pytest.mark.parametrize("case", CASES)
def test_windows(case: str, device: str) -> None:
    *_, sliding, copied = CASES[case]
    launches = check(make(case, device=device), **sliding)
    assert FORWARD in launches and WEIGHT_GRADIENT in launches
    assert ("pad_lines_kernel" in launches) == copied


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["7x7 stride 2", "3x3", "patchify"])
def test_dtypes(case: str, dtype: torch.dtype, device: str) -> None:
    launches = check(make(case, dtype, device), "gelu", **CASES[case][3])
    assert FORWARD in launches and WEIGHT_GRADIENT in launches


def test_more_than_one_tile(device: str) -> None:
    tile = GemmTile(16, 16, 32, 4, 1)
    with forced_tiles(patches_tile=tile, patches_weight_tile=tile, PATCHES_SPLIT_BYTES=1 << 11):
        assert FORWARD in check(make("7x7 stride 2", device=device), "relu", **CASES["7x7 stride 2"][3])


# In 16 bits another of two values that round to one may be the largest of a window.
@pytest.mark.parametrize(("pool", "dtype"), [(1, torch.float32), (1, torch.bfloat16), (2, torch.float32)])
@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_first_layer(pool: int, activation: str | None, dtype: torch.dtype, device: str) -> None:
    """Images that want no gradient: dW and db straight from dY, as chosen on a CPU."""
    x, weight, bias = make("7x7 stride 2", dtype, device)
    tile = GemmTile(16, 16, 32, 4, 1)
    with forced_tiles(takes_output_gradient=True, patches_weight_tile=tile, PATCHES_SPLIT_BYTES=1 << 11):
        launches = check((x.detach(), weight, bias), activation, pool=pool, padding=3, stride=2)
    assert FORWARD in launches and WEIGHT_GRADIENT in launches
    assert not {"activation_backward_kernel", "max_pool_backward_kernel"} & set(launches)


def test_constant_normalization_and_statistics(device: str) -> None:
    x, weight, bias = (tensor.detach() for tensor in make("3x3", device=device))
    mean, variance = torch.randn(20, device=device), torch.rand(20, device=device) + 0.5
    norm = Normalization(mean, variance, bias, None, 1e-5)
    sliding: Any = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "activation": as_activation("relu")}
    with counted_launches() as launches:
        y, partial = convolution("conv2d", x, weight, bias, **sliding, norm=norm, want_statistics=True)
    assert FORWARD in launches and partial is not None
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    exact = torch.nn.functional.batch_norm(exact, mean.double(), variance.double(), bias.double(), eps=1e-5).relu()
    error = 2 * tolerance(torch.float32, weight[0].numel())
    assert_close(y, exact, error)
    count, means, _ = partial.double().unbind(1)
    assert_close((count * means).sum(0) / count.sum(0), exact.mean((0, 2, 3)), error)


def test_not_finite(device: str) -> None:
    x, weight, bias = make("7x7 stride 2", device=device)
    with torch.no_grad():
        x[0, 1, 0, 14] = math.inf
        x[1, 0, 12, 0] = math.nan
    check((x, weight, bias), **CASES["7x7 stride 2"][3])


def test_signals(device: str) -> None:
    """A signal is an image of one row."""
    x, weight = torch.randn(2, 3, 37, device=device), torch.randn(8, 3, 5, device=device)
    with counted_launches() as launches:
        y = conv1d(x, weight, stride=2, padding=2)
    assert FORWARD in launches
    assert_close(y, torch.nn.functional.conv1d(x.double(), weight.double(), stride=2, padding=2), 1e-5)


def test_others_keep_their_kernels(device: str) -> None:
    """One channel, more than four, dilated columns, volumes."""
    others: Any = ((1, {}), (5, {}), (3, {"dilation": 2}))
    for channels, sliding in others:
        x, weight = torch.randn(1, channels, 8, 7, device=device), torch.randn(4, channels, 3, 3, device=device)
        with counted_launches() as launches:
            y = conv2d(x, weight, **sliding)
        assert launches and FORWARD not in launches
        assert_close(y, torch.nn.functional.conv2d(x.double(), weight.double(), **sliding), 1e-5)
    x, weight = torch.randn(1, 3, 4, 5, 6, device=device), torch.randn(4, 3, 2, 3, 3, device=device)
    with counted_launches() as launches:
        y = conv3d(x, weight)
    assert launches and FORWARD not in launches
    assert_close(y, torch.nn.functional.conv3d(x.double(), weight.double()), 1e-5)


def test_volumes_of_planes(device: str) -> None:
    """Windows that see one plane each slide over a batch of planes."""
    x, weight = torch.randn(2, 3, 3, 5, 6, device=device), torch.randn(4, 3, 1, 3, 3, device=device)
    with counted_launches() as launches:
        y = conv3d(x, weight, padding=(0, 1, 1))
    assert FORWARD in launches
    assert_close(y, torch.nn.functional.conv3d(x.double(), weight.double(), padding=(0, 1, 1)), 1e-5)
