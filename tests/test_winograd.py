"""Winograd's algorithm for 3 x 3 convolutions: results, errors beside the definition's, and where it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from forced_tiles import forced_tiles
from helpers import (
    assert_close,
    check_against_reference,
    counted_launches,
    nan_filled_memory,
    non_contiguous,
    tolerance,
)
from torch import Tensor

from tinynet import functional, nn
from tinynet.functional import conv2d
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet_kernels.activation_spec import IDENTITY
from tinynet_kernels.constants import constexpr
from tinynet_kernels.conv import forward
from tinynet_kernels.conv.spec import ConvolutionShape, ConvolutionSpec, Normalization
from tinynet_kernels.conv.winograd.patches import grid_of, squares_of
from tinynet_kernels.conv.winograd.tiles import WinogradTile, winograd_tile, winograd_weight_tile
from tinynet_kernels.launch import INTERPRETED
from tinynet_kernels.tiles import Target

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(torch.cuda.is_available(), reason="no launcher takes these kernels on a GPU"),
]

CPU = Target("cpu", "", 2, 1 << 30)
FORWARD, WEIGHT_GRADIENT = "winograd_forward_kernel", "winograd_weight_gradient_kernel"
ERROR = {2: 2e-6, 4: 1e-5}  # relative to the largest value
# (N, C, H, W, K, groups, padding): whole and broken tiles and blocks, images smaller than a tile, no and much padding
PROBLEMS = (
    (2, 32, 8, 8, 16, 1, 1),
    (3, 20, 7, 9, 19, 1, 1),
    (2, 34, 5, 13, 40, 2, (0, 2)),
    (5, 16, 3, 4, 16, 1, 0),
    (1, 17, 6, 4, 18, 1, (3, 1)),
)


def forced(m: int, own_filters: bool = True) -> Any:
    """Small tiles, so that problems have several of them."""
    tile = WinogradTile(m, 16, 16, 16)
    return forced_tiles(winograd_tile=tile, winograd_weight_tile=tile, transforms_own_filters=own_filters)


def tensors(N: int, C: int, H: int, W: int, K: int, groups: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, W and b, of which x is channels_last."""
    torch.manual_seed(0)
    x = torch.randn(N, C, H, W, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(K, C // groups, 3, 3, device=device) * (9 * C / groups) ** -0.5
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(K, device=device, requires_grad=True)


@pytest.mark.parametrize("own_filters", [True, False])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("m", [2, 4])
def test_forward_and_gradients(m: int, problem: Any, own_filters: bool, device: str) -> None:
    N, C, H, W, K, groups, padding = problem
    inputs = tensors(N, C, H, W, K, groups, device)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))

    ours = partial(conv2d, padding=padding, groups=groups, activation="gelu")
    with forced(m, own_filters):
        launches = check_against_reference(ours, reference, *inputs, error=ERROR[m], gradient_errors=[4 * ERROR[m]] * 3)
    assert launches.count(FORWARD) == 2 and launches.count(WEIGHT_GRADIENT) == 1
    assert launches.count("winograd_filter_kernel") == (0 if own_filters else 2)
    assert not any(name.startswith("convolution_") for name in launches)


@triton.jit
def first_pixels_kernel(out_ptr, start, N, H, W, C, COUNT: constexpr):
    """Where the squares of COUNT tiles from `start` on begin, in elements of x."""
    squares = squares_of(0, start, start + COUNT, grid_of(N, H, W, 4), H, W, C, 0, 0, 4, COUNT)
    tl.store(out_ptr + tl.arange(0, COUNT), squares.base + squares.offset)  # in bounds: [COUNT]


def test_offsets_are_from_the_first_image_of_a_program(device: str) -> None:
    """So that they fit an int32 in a batch of 2^32 elements."""
    N, H, W, C, tiles = 1 << 18, 16, 16, 64, 16
    out = torch.empty(tiles, dtype=torch.int64, device=device)
    first_pixels_kernel[(1,)](out, (N - 1) * tiles, N, H, W, C, tiles)
    rows = torch.arange(0, H, 4, device=device)[:, None] * W
    expected = ((N - 1) * H * W + rows + torch.arange(0, W, 4, device=device)) * C
    assert torch.equal(out, expected.flatten())


@pytest.mark.parametrize(("own_filters", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_16_bits_round_once(own_filters: bool, dtype: torch.dtype, device: str) -> None:
    inputs = [t.detach().to(dtype).requires_grad_() for t in tensors(2, 20, 9, 10, 18, 1, device)]
    reference, ours = partial(F.conv2d, padding=1), partial(conv2d, padding=1)
    with forced(4, own_filters):
        error = tolerance(dtype)
        launches = check_against_reference(ours, reference, *inputs, error=error, gradient_errors=[error] * 3)
    assert launches.count(FORWARD) == 2 and WEIGHT_GRADIENT in launches


@pytest.mark.parametrize("m", [2, 4])
def test_splits_and_memory_orders(m: int, device: str) -> None:
    x, weight, bias = tensors(3, 32, 9, 10, 24, 1, device)
    strided = non_contiguous(x.detach()).requires_grad_()
    last = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    with forced(m), forced_tiles(winograd_weight_splits=3):
        for operands in ([strided, weight, bias], [x, last, bias]):
            reference = partial(F.conv2d, padding=1)
            ours = partial(conv2d, padding=1)
            errors = [4 * ERROR[m]] * 3
            launches = check_against_reference(ours, reference, *operands, error=ERROR[m], gradient_errors=errors)
            assert "sum_partials_kernel" in launches and WEIGHT_GRADIENT in launches


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("size", [(8, 8), (7, 11)])
@pytest.mark.parametrize("m", [2, 4])
def test_pooling(m: int, size: tuple[int, int], activation: str, device: str) -> None:
    inputs = tensors(2, 16, *size, 20, 1, device)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.max_pool2d(activation_reference(F.conv2d(x, weight, bias, padding=1), as_activation(activation)), 2)

    ours = partial(conv2d, padding=1, activation=activation, pool=2)
    with forced(m):
        launches = check_against_reference(ours, reference, *inputs, error=ERROR[m], gradient_errors=[4 * ERROR[m]] * 3)
        with torch.no_grad():
            _, weight, bias = inputs
            assert conv2d(torch.full_like(inputs[0], math.nan), weight, bias, padding=1, pool=2).isnan().all()
    assert FORWARD in launches


@pytest.mark.parametrize("m", [2, 4])
def test_pooling_takes_the_first_of_equal_values(m: int, device: str) -> None:
    """Weights of 0: all pixels are b, and dW says which of them had the gradient."""
    inputs = tensors(2, 16, 8, 8, 20, 1, device)
    inputs[1].detach().zero_()
    with forced(m):
        launches = check_against_reference(
            partial(conv2d, padding=1, pool=2),
            lambda x, weight, bias: F.max_pool2d(F.conv2d(x, weight, bias, padding=1), 2),
            *inputs,
            error=ERROR[m],
            gradient_errors=[4 * ERROR[m]] * 3,
        )
    assert FORWARD in launches


@pytest.mark.parametrize(("m", "dtype"), [(2, torch.float16), (4, torch.bfloat16)])
def test_16_bits_are_rounded_before_what_follows(m: int, dtype: torch.dtype, device: str) -> None:
    """Pooling picks among rounded values, as a layer of its own does; statistics are those of rounded values."""
    x, weight, bias = (tensor.detach().to(dtype) for tensor in tensors(2, 16, 8, 9, 20, 1, device))
    upstream = torch.randn(2, 20, 4, 4, device=device).to(dtype)
    x.requires_grad_()
    with forced(m):
        pooled = conv2d(x, weight, bias, padding=1, pool=2)
        whole = conv2d(x, weight, bias, padding=1)
        separate = F.max_pool2d(whole, 2)
        assert torch.equal(pooled, separate)
        actual, expected = (torch.autograd.grad(y, x, upstream)[0] for y in (pooled, separate))
        assert torch.equal(actual, expected)
        spec = ConvolutionSpec(padding=(1, 1), padding_end=(1, 1))
        options: Any = {"save": False, "want_statistics": True}
        last = weight.contiguous(memory_format=torch.channels_last)
        y, _, _, partial_statistics = forward.convolution_forward(x.detach(), last, bias, spec, IDENTITY, **options)
    assert partial_statistics is not None
    count, means, _ = partial_statistics.double().unbind(1)
    assert_close((count * means).sum(0) / count.sum(0), y.double().mean((0, 2, 3)), 1e-5)


@pytest.mark.parametrize("m", [2, 4])
def test_normalization_and_statistics(m: int, device: str) -> None:
    x, weight, bias = (tensor.detach() for tensor in tensors(2, 16, 7, 10, 20, 1, device))
    weight = weight.contiguous(memory_format=torch.channels_last)
    mean, scale, shift = torch.randn(3, 20, device=device)
    norm = Normalization(mean, torch.rand(20, device=device) + 0.5, scale, shift, 0.1)
    spec = ConvolutionSpec(padding=(1, 1), padding_end=(1, 1))
    with forced(m), nan_filled_memory(), counted_launches() as launches:
        options: Any = {"save": False, "norm": norm, "want_statistics": True}
        y, _, _, partial_statistics = forward.convolution_forward(x, weight, bias, spec, IDENTITY, **options)
    assert launches == [FORWARD] and partial_statistics is not None
    z = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    exact = F.batch_norm(z, mean.double(), norm.variance.double(), scale.double(), shift.double(), eps=0.1)
    assert_close(y, exact, ERROR[m])
    count, means, squares = partial_statistics.double().unbind(1)
    assert torch.equal(count.sum(0), torch.full((20,), 140.0, device=device, dtype=torch.float64))
    total = (count * means).sum(0) / 140
    assert_close(total, y.double().mean((0, 2, 3)), 1e-5)
    variance = (squares + count * (means - total) ** 2).sum(0) / 140
    assert_close(variance, y.double().var((0, 2, 3), correction=0), 1e-5)


def test_batch_norm_follows_in_training(device: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU()]
    joined, apart = nn.Sequential(*layers).to(device), torch.nn.Sequential(*layers).to(device)
    x = torch.randn(4, 16, 9, 9, device=device).contiguous(memory_format=torch.channels_last)
    with forced(4), counted_launches() as launches:
        y = joined(x)
    assert FORWARD in launches
    torch.testing.assert_close(y, apart(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [2, 4])
def test_transposed(m: int, device: str) -> None:
    x, weight, bias = tensors(2, 32, 6, 9, 16, 1, device)
    turned = weight.detach().transpose(0, 1).contiguous().requires_grad_()

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.tanh(F.conv_transpose2d(x, weight, bias, padding=1))

    ours = partial(functional.conv_transpose2d, padding=1, activation="tanh")
    with forced(m):
        errors = [4 * ERROR[m]] * 3
        launches = check_against_reference(ours, reference, x, turned, bias, error=ERROR[m], gradient_errors=errors)
    assert launches.count(FORWARD) == 2 and WEIGHT_GRADIENT in launches


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
@pytest.mark.parametrize("m", [2, 4])
def test_values_that_are_not_finite_stay_where_they_belong(m: int, value: float, device: str) -> None:
    """Of 3e38 the transforms may overflow, the definition doesn't."""
    x, weight, _ = tensors(2, 16, 8, 8, 16, 1, device)
    with torch.no_grad():
        x[1, 3, 2, 5] = value
        weight[:, 3] = 0.25
    y_grad = torch.randn(2, 16, 8, 8, device=device)

    def results() -> tuple[Tensor, ...]:
        y = conv2d(x, weight, padding=1)
        return y.detach(), *torch.autograd.grad(y, (x, weight), y_grad)

    with forced(m), counted_launches() as launches:
        actual = results()
    assert launches.count(FORWARD) == 2  # of the forward, and of dX, which does not read x
    assert "convolution_input_gradient_kernel" not in launches
    assert "convolution_forward_kernel" in launches or value == 3e38
    with forced_tiles(winograd_tile=None, winograd_weight_tile=None):
        expected = results()
    assert_close(actual[0], expected[0], ERROR[m])
    assert_close(actual[1], expected[1], 4 * ERROR[m])
    assert_close(actual[2], expected[2], 4 * ERROR[m])
    exact = F.conv2d(x.double(), weight.double(), padding=1).float()
    assert torch.equal(actual[0].isfinite(), exact.isfinite())


def rms(error: Tensor) -> float:
    return error.double().square().mean().sqrt().item()


@pytest.mark.skipif(INTERPRETED, reason="NumPy adds in an order of its own, with smaller errors")
@pytest.mark.parametrize("data", [torch.clone, torch.relu], ids=["normal", "relu"])
@pytest.mark.parametrize("m", [2, 4])
def test_errors_beside_those_of_the_definition(m: int, data: Any, device: str) -> None:
    """At most 2.5 times as large with tiles of 4 x 4; no larger with tiles of 2 x 2, in the forward and dX."""
    torch.manual_seed(0)
    x = data(torch.randn(4, 64, 24, 24, device=device)).requires_grad_()
    weight = (torch.randn(64, 64, 3, 3, device=device) * (2 / 576) ** 0.5).requires_grad_()
    upstream = torch.randn(4, 64, 24, 24, device=device)

    def results(x: Tensor, weight: Tensor, function: Any) -> list[Tensor]:
        y = function(x, weight, padding=1)
        return [y.detach(), *torch.autograd.grad(y, (x, weight), upstream.to(y.dtype))]

    exact = results(x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), F.conv2d)
    tile = WinogradTile(m, 64, 64, 64)
    with forced_tiles(winograd_tile=tile, winograd_weight_tile=tile):
        ours = results(x, weight, conv2d)
    with forced_tiles(winograd_tile=None, winograd_weight_tile=None):
        direct = results(x, weight, conv2d)
    ratios = [rms(a - e) / rms(b - e) for a, b, e in zip(ours, direct, exact, strict=True)]
    largest = (1.0, 1.0, 1.6) if m == 2 else (2.5, 2.5, 2.5)
    assert all(ratio <= bound for ratio, bound in zip(ratios, largest, strict=True)), ratios


def shape_of(N: int, C: int, H: int, W: int, K: int, groups: int = 1) -> ConvolutionShape:
    return ConvolutionShape(N, 1, H, W, C, 1, H, W, K, 1, 3, 3, groups)


def side(
    shape: ConvolutionShape, exact: bool = False, target: Target = CPU, dtype: torch.dtype = torch.float32
) -> int | None:
    """Of the forward."""
    tile = winograd_tile(shape, dtype, exact, target)
    return tile and tile.m


def test_where_it_is_used() -> None:
    for shape in ((8, 64, 56, 56, 64), (8, 512, 7, 7, 512), (32, 64, 32, 32, 128)):
        assert side(shape_of(*shape)) == 4 and side(shape_of(*shape), exact=True) == 2
        assert side(shape_of(*shape), exact=True, dtype=torch.float16) == 4, "rounding hides the error"
    assert side(shape_of(1, 256, 14, 14, 256)) == 4
    assert side(shape_of(8, 512, 7, 7, 512), dtype=torch.bfloat16) == 4
    fast = CPU._replace(architecture="bf16")
    assert side(shape_of(8, 512, 7, 7, 512), dtype=torch.bfloat16, target=fast) is None, "products of bf16 are faster"
    few_pixels = shape_of(1, 512, 7, 7, 512)
    assert side(few_pixels) is None, "to transform the filters takes longer than all products"
    gradient = winograd_tile(few_pixels, torch.float32, False, CPU, is_gradient=True)
    assert gradient and gradient.m == 2, "four tiles of 4 x 4 don't fill a product"
    assert side(shape_of(64, 512, 2, 2, 512)) == 2
    assert side(shape_of(64, 256, 1, 1, 256)) is None, "mostly past the edge"
    images = shape_of(8, 128, 28, 28, 128)
    data_tile = winograd_tile(images, torch.float32, False, CPU, is_gradient=True)
    weight_tile = winograd_weight_tile(images, torch.float32, False, CPU)
    assert data_tile and weight_tile and data_tile.m == weight_tile.m == 4
    assert side(shape_of(8, 16, 32, 32, 32)) is None, "products of few channels fill no vector"
    assert side(shape_of(8, 64, 56, 56, 64, groups=2)) == 4 and side(shape_of(8, 64, 56, 56, 64, groups=4)) is None
    assert side(shape_of(8, 3, 64, 64, 64)) is None
    assert side(shape_of(2, 256, 4096, 4096, 64)) is None, "offsets exceed int32"
    for target in (Target("cuda", 90, 132, 227 << 10), Target("interpreter", "", 1, 1 << 30)):
        assert side(shape_of(8, 64, 56, 56, 64), target=target) is None


@pytest.fixture(params=["ieee", "deterministic"])
def exact_products(request: pytest.FixtureRequest) -> Iterator[Callable[[bool], None]]:
    """Switches one of PyTorch's settings that ask for them on or off."""

    def switch(on: bool) -> None:
        if request.param == "ieee":
            torch.backends.mkldnn.conv.fp32_precision = "ieee" if on else "none"  # pyright: ignore
        else:
            torch.use_deterministic_algorithms(on)

    yield switch
    switch(False)


def test_the_user_asks_for_full_precision(exact_products: Callable[[bool], None], device: str) -> None:
    exact_ones: list[bool] = []
    rule = lambda shape, dtype, exact, target: exact_ones.append(exact)  # noqa: E731
    x, weight, _ = (tensor.detach() for tensor in tensors(1, 16, 8, 8, 16, 1, device))
    with forced_tiles(winograd_tile=rule):
        for on in (False, True):
            exact_products(on)
            conv2d(x, weight, padding=1)
    assert exact_ones == [False, True]


def test_other_windows_take_the_definition(device: str) -> None:
    x, weight, _ = (tensor.detach() for tensor in tensors(2, 16, 9, 9, 16, 1, device))
    with forced(4), counted_launches() as launches:
        conv2d(x, weight, stride=2)
        conv2d(x, weight, dilation=2)
        conv2d(x, weight[:, :, :, :2])
    assert launches.count("convolution_forward_kernel") == 3 and FORWARD not in launches


def test_reruns_are_bitwise_equal(device: str) -> None:
    x, weight, bias = tensors(3, 32, 9, 10, 24, 1, device)
    upstream = torch.randn(3, 24, 9, 10, device=device)
    with forced(4), forced_tiles(winograd_weight_splits=2):
        runs = []
        for _ in range(2):
            y = conv2d(x, weight, bias, padding=1)
            runs.append([y.detach(), *torch.autograd.grad(y, (x, weight, bias), upstream)])
    assert all(map(torch.equal, *runs))
