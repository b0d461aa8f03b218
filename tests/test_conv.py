"""conv2d: kernels against float64 PyTorch, layouts, its registered operators, the module, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forced_tiles import GPU, forced_tiles
from helpers import (
    DTYPES,
    assert_close,
    check_against_reference,
    convolution_precision,
    counted_launches,
    nan_filled_memory,
    tolerance,
)

from tinynet.nn.conv import Conv2d
from tinynet.nn.conv_transpose import ConvTranspose2d
from tinynet.ops.activation_like import ActivationLike, as_activation
from tinynet.ops.conv import conv2d
from tinynet.ops.convolution_operator import convolution_operator, convolution_reference
from tinynet.ops.convolution_spec import convolution_spec
from tinynet.ops.max_pool import max_pool2d
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.conv.tiles import ConvolutionWeightTile, convolution_weight_tile
from tinynet_kernels.tiles import GemmTile

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


def make(
    shape: tuple[int, int, int, int],
    channels_out: int,
    kernel_size: tuple[int, int] = (3, 3),
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = True,
    bias: bool = True,
    grad: bool = True,
) -> Any:
    torch.manual_seed(sum(shape) * 100 + channels_out)
    order = torch.channels_last if channels_last else torch.contiguous_format
    group_inputs = shape[1] // groups
    taps = kernel_size[0] * kernel_size[1]
    x = torch.randn(shape, device=device).to(dtype, memory_format=order).requires_grad_(grad)
    weight = torch.randn(channels_out, group_inputs, *kernel_size, device=device) / (group_inputs * taps) ** 0.5
    weight = weight.to(dtype, memory_format=order).requires_grad_(grad)
    b = torch.randn(channels_out, device=device).to(dtype).requires_grad_(grad) if bias else None
    return x, weight, b


def check(tensors: Any, activation: ActivationLike = None, **sliding: Any) -> list[str]:
    x, weight, bias = tensors
    function = as_activation(activation)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sliding}
    spec = convolution_spec("conv2d", x, weight, bias, **arguments)
    window = weight[0].numel()
    return check_against_reference(
        lambda x, weight, bias: conv2d(x, weight, bias, **arguments, activation=activation),
        lambda x, weight, bias: convolution_reference(x, weight, bias, spec, function),
        x,
        weight,
        bias,
        error=2 * tolerance(x.dtype, window),
        gradient_errors=4 * tolerance(x.dtype, max(window, x[:, 0].numel())),
    )


def check_pooled(tensors: Any, activation: str, **sliding: Any) -> list[str]:
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sliding}
    spec = convolution_spec("conv2d", *tensors, **arguments)

    def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(
            convolution_reference(x, weight, bias, spec, as_activation(activation)), 2
        )

    window = tensors[1][0].numel()
    return check_against_reference(
        lambda x, weight, bias: conv2d(x, weight, bias, **arguments, activation=activation, pool=2),
        reference,
        *tensors,
        error=2 * tolerance(torch.float32, window),
        gradient_errors=4 * tolerance(torch.float32, max(window, tensors[0][:, 0].numel())),
    )


# image shape, output channels, kernel size, and how the window slides
CASES = {
    "3x3": ((2, 16, 7, 9), 20, (3, 3), {"padding": 1}),
    "3x3 without padding": ((1, 18, 6, 5), 17, (3, 3), {}),
    "3x3 stride 2": ((2, 16, 9, 8), 17, (3, 3), {"padding": 1, "stride": 2}),
    "stride above the kernel": ((2, 16, 8, 9), 5, (2, 1), {"stride": (3, 2)}),
    "3x3 dilation 2": ((1, 16, 9, 10), 16, (3, 3), {"padding": 2, "dilation": 2}),
    "stride 2 dilation 3": ((1, 17, 11, 12), 3, (3, 3), {"padding": 1, "stride": 2, "dilation": 3}),
    "stride 4 dilation 2": ((1, 16, 13, 11), 6, (3, 2), {"padding": (2, 1), "stride": (4, 2), "dilation": (2, 4)}),
    "stride 2 by 3": ((1, 16, 10, 11), 33, (4, 3), {"padding": (0, 2), "stride": (2, 3)}),
    "7x7 stride 2 of 3 channels": ((1, 3, 13, 15), 18, (7, 7), {"padding": 3, "stride": 2}),
    "7x7 of 16 channels": ((1, 16, 9, 7), 16, (7, 7), {"padding": 3}),
    "5x5 of 3 channels": ((2, 3, 8, 9), 6, (5, 5), {"padding": 2}),
    "3x5 of 2 channels": ((2, 2, 6, 9), 4, (3, 5), {"padding": (1, 2), "stride": (1, 2)}),
    "one channel": ((3, 1, 10, 9), 18, (3, 3), {"padding": 1}),
    "one channel 5x5 stride 2": ((2, 1, 11, 9), 6, (5, 5), {"stride": 2, "dilation": (1, 2)}),
    "1x1": ((2, 17, 5, 7), 19, (1, 1), {}),
    "1x1 stride 2": ((2, 17, 7, 6), 19, (1, 1), {"stride": 2}),
    "1x1 with padding": ((1, 16, 3, 4), 5, (1, 1), {"padding": 1}),
    "2 groups": ((2, 32, 6, 7), 34, (3, 3), {"padding": 1, "groups": 2}),
    "4 thin groups": ((1, 12, 7, 6), 8, (3, 3), {"padding": 1, "groups": 4, "stride": 2}),
    "32 channels": ((2, 32, 7, 9), 20, (3, 3), {"padding": 1}),
    "5x5 of 2 groups of 64": ((2, 128, 9, 11), 6, (5, 5), {"padding": 2, "groups": 2, "stride": (2, 1)}),
    "2x3 of 128 channels": ((1, 128, 6, 7), 17, (2, 3), {"dilation": (2, 1), "padding": (0, 2)}),
    "depthwise": ((2, 17, 8, 7), 17, (3, 3), {"padding": 1, "groups": 17}),
    "depthwise stride 2": ((2, 5, 9, 8), 10, (3, 3), {"padding": 1, "groups": 5, "stride": 2}),
    "depthwise dilation 2": ((1, 6, 9, 10), 18, (5, 2), {"padding": (4, 0), "groups": 6, "dilation": 2}),
    "depthwise 1x1": ((2, 7, 4, 3), 14, (1, 1), {"groups": 7}),
    "same": ((1, 16, 6, 7), 4, (4, 2), {"padding": "same", "dilation": (1, 3)}),
    "valid": ((1, 16, 6, 7), 4, (2, 3), {"padding": "valid"}),
    "window as large as the image": ((3, 16, 4, 5), 7, (4, 5), {}),
    "many pixels": ((5, 16, 41, 41), 18, (3, 3), {"padding": 1}),
    "one pixel": ((1, 16, 1, 1), 1, (3, 3), {"padding": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_windows(case: str, device: str) -> None:
    shape, channels_out, kernel_size, sliding = CASES[case]
    check(make(shape, channels_out, kernel_size, sliding.get("groups", 1), device=device), **sliding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        "3x3",
        "3x3 stride 2",
        "5x5 of 3 channels",
        "one channel",
        "2 groups",
        "32 channels",
        "5x5 of 2 groups of 64",
        "2x3 of 128 channels",
        "depthwise",
        "1x1",
    ],
)
def test_dtypes_and_nchw(case: str, dtype: torch.dtype, device: str) -> None:
    shape, channels_out, kernel_size, sliding = CASES[case]
    tensors = make(shape, channels_out, kernel_size, sliding.get("groups", 1), dtype, device, channels_last=False)
    check(tensors, activation="relu", **sliding)


# A case of `CASES` or another one, the weight gradient's tile, and whether offsets are int64.
SMALL_TILES = {
    "even boxes": (
        ((2, 32, 6, 8), 32, (3, 3), {"padding": 1}),
        ConvolutionWeightTile(16, 16, 1, 2, 8, False, 1, False, 4, 1),
        False,
    ),
    "boxes past every edge": (
        ((3, 48, 7, 9), 40, (3, 2), {"padding": (1, 2), "stride": (2, 3), "dilation": (1, 2), "groups": 2}),
        ConvolutionWeightTile(16, 16, 2, 2, 4, False, 1, False, 4, 1),
        True,
    ),
    "flat boxes": (
        ((3, 24, 5, 6), 20, (2, 3), {"padding": 1, "dilation": (2, 1)}),
        ConvolutionWeightTile(16, 32, 2, 2, 4, True, 1, False, 4, 1),
        False,
    ),
    "consecutive pixels": (
        ((2, 40, 5, 7), 36, (2, 3), {"padding": (0, 1), "stride": (1, 2), "groups": 2}),
        ConvolutionWeightTile(16, 16, 1, 1, 16, False, 1, True, 4, 1),
        False,
    ),
    "several taps per tile, more than a bitmask holds": (
        ((2, 24, 5, 4), 20, (7, 5), {"padding": (3, 2)}),
        ConvolutionWeightTile(16, 128, 1, 1, 16, False, 16, True, 4, 1),
        True,
    ),
    "few channels": (
        ((2, 6, 9, 8), 40, (3, 5), {"padding": (1, 2), "stride": (2, 1), "dilation": (1, 2), "groups": 2}),
        ConvolutionWeightTile(16, 16, 2, 2, 4, True, 1, False, 4, 1),
        False,
    ),
    "few channels of a long window": (
        ((2, 2, 33, 3), 18, (33, 2), {"padding": (1, 1)}),
        ConvolutionWeightTile(16, 64, 1, 1, 8, True, 1, True, 4, 1),
        True,
    ),
}


@pytest.mark.parametrize("name", SMALL_TILES)
def test_small_tiles(name: str, device: str) -> None:
    """Several tiles along every axis, several steps of each reduction, in three splits."""
    (shape, channels_out, kernel_size, sliding), weight_tile, wide = SMALL_TILES[name]
    tensors = make(shape, channels_out, kernel_size, sliding.get("groups", 1), device=device)
    tile = GemmTile(32, 16, 16, 4, 1)
    wide_offsets = {"LARGEST_OFFSET": 0} if wide else {}
    with forced_tiles(
        convolution_tile=tile,
        convolution_few_channels_tile=tile,
        convolution_weight_tile=weight_tile,
        convolution_weight_splits=3,
        GROUP=2,
        **wide_offsets,
    ):
        check(tensors, "gelu", **sliding)


@pytest.mark.parametrize(("channels", "groups"), [(24, 1), (3, 1), (40, 2)])
def test_nan_stays_where_it_belongs(channels: int, groups: int, device: str) -> None:
    """Elements past a reduction's end (the next pixel's or filter's first channel) are not multiplied, even by zero."""
    x, weight, bias = make((2, channels, 5, 6), 20 * groups, (2, 3), groups, device=device)
    tile = GemmTile(32, 16, 16, 4, 1)
    upstream = torch.randn(2, 20 * groups, 4, 4, device=device)
    upstream[0, 0, 1, 2] = float("nan")
    with forced_tiles(convolution_tile=tile, convolution_few_channels_tile=tile):
        gradients = torch.autograd.grad(conv2d(x, weight, bias, groups=groups), (x, weight, bias), upstream)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    y = torch.nn.functional.conv2d(*exact, groups=groups)
    for actual, expected in zip(gradients, torch.autograd.grad(y, exact, upstream.double()), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
    with torch.no_grad(), forced_tiles(convolution_tile=tile, convolution_few_channels_tile=tile):
        x[0, 0, 2, 3] = weight[7, 0, 0, 0] = float("nan")
        y = conv2d(x, weight, bias, groups=groups)
        expected = torch.nn.functional.conv2d(x.double(), weight.double(), groups=groups)
    assert torch.equal(y.isnan(), expected.isnan()) and not y.isnan().all()


@pytest.mark.parametrize(
    "case",
    [
        ((2, 5, 9, 8), 10, (3, 2), {"padding": 1, "groups": 5, "stride": (2, 1), "dilation": (1, 2)}),
        ((3, 6, 7, 6), 6, (2, 3), {"padding": (1, 0), "groups": 6, "stride": (1, 2), "dilation": (3, 1)}),
    ],
    ids=str,
)
def test_small_tiles_of_depthwise(case: Any, device: str) -> None:
    shape, channels_out, kernel_size, sliding = case
    tensors = make(shape, channels_out, kernel_size, sliding["groups"], device=device)
    with forced_tiles(computes_rows=False, rows_and_columns=(16, 4, 4), depthwise_box=(2, 2, 4), split_count=3):
        check(tensors, "gelu", **sliding)


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_small_tiles_of_fused_pooling(channels: int, device: str) -> None:
    """Windows of several tiles, with a last row and column that belong to no window; of few channels also backward."""
    x, weight, bias = make((2, channels, 7, 7), 20, device=device)
    weight_tile = ConvolutionWeightTile(16, 16, 1, 1, 16, True, 1, True, 4, 1)
    with forced_tiles(
        convolution_tile=GemmTile(16, 16, 16, 4, 1),
        convolution_few_channels_tile=GemmTile(16, 16, 16, 4, 1),
        rows_and_columns=(8, 16, 4),
        convolution_weight_tile=weight_tile,
        convolution_weight_splits=3,
        takes_output_gradient=channels < 16,
        multiplies_patches=False,
        GROUP=2,
    ):
        check_pooled((x.detach(), weight, bias), "gelu", padding=1)


@pytest.mark.parametrize("case", ["3x3 stride 2", "5x5 of 3 channels", "one channel", "depthwise stride 2"])
def test_tiles_of_a_gpu(case: str, device: str) -> None:
    shape, channels_out, kernel_size, sliding = CASES[case]
    with forced_tiles(current_target=GPU):
        check(make(shape, channels_out, kernel_size, sliding.get("groups", 1), device=device), "relu", **sliding)


@pytest.mark.parametrize("shape", [(5, 19, 3, 7), (3, 8, 4, 4)])
def test_small_tiles_of_layout_conversions(shape: tuple[int, ...], device: str) -> None:
    from tinynet_kernels.layout import to_channels_last, to_contiguous

    x = torch.randn(shape, device=device)
    with forced_tiles(convolution_transpose_tile=(2, 8, 4, 4)), nan_filled_memory():
        images = to_channels_last(x)
        assert images.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, x)
        assert torch.equal(to_contiguous(images), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "tanh", Activation("leaky_relu", negative_slope=-0.5)])
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_fused_activation(channels: int, activation: str | Activation, dtype: torch.dtype, device: str) -> None:
    launches = check(make((2, channels, 5, 6), 9, dtype=dtype, device=device), activation, padding=1)
    assert launches.count("activation_backward_kernel") == 1
    assert sum(name.endswith("forward_kernel") or "few_channels" in name for name in launches) == 1


@pytest.mark.parametrize(("setting", "expected"), [("tf32", "tf32"), ("ieee", "tf32x3")])
def test_tf32_where_pytorch_allows_it(setting: str, expected: str, device: str) -> None:
    from tinynet_kernels.conv import tiles
    from tinynet_kernels.tiles import Target

    x, weight, bias = make((2, 16, 5, 6), 8, device=device, grad=False)
    with convolution_precision(setting):
        chip = Target("cuda", 80, 108, 163 * 1024)
        assert tiles.convolution_precision(x.dtype, chip) == expected
        y = conv2d(x, weight, bias)
    assert_close(y, torch.nn.functional.conv2d(x.double(), weight.double(), bias.double()), 2e-3)


POOLED = ["3x3", "3x3 stride 2", "5x5 of 3 channels", "one channel", "2 groups", "depthwise", "1x1"]


@pytest.mark.parametrize("case", POOLED)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_fused_pooling(activation: str, case: str, device: str) -> None:
    shape, channels_out, kernel_size, sliding = CASES[case]
    tensors = make(shape, channels_out, kernel_size, sliding.get("groups", 1), device=device)
    launches = check_pooled(tensors, activation, **sliding)
    assert "max_pool_forward_kernel" not in launches
    assert launches.count("pooled_gradient_kernel") == 1
    assert not {"max_pool_backward_kernel", "activation_backward_kernel"} & set(launches)


def whole_numbers(tensor: torch.Tensor, largest: int = 16) -> None:
    """Fills it with numbers whose products and sums are exact in fp32, regardless of the order of additions."""
    with torch.no_grad():
        tensor.copy_(torch.randint(-largest, largest + 1, tensor.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 16])
def test_fused_pooling_is_that_of_separate_layers(channels: int, dtype: torch.dtype, device: str) -> None:
    """To the bit, including ties and NaN; also where a larger z has a smaller act(z), and in NCHW.

    The two have different tiles, which may add in different orders: with whole numbers that makes no difference.
    """
    x, weight, bias = make((2, channels, 7, 6), 5, dtype=dtype, device=device, channels_last=False)
    for tensor in (x, weight, bias):
        whole_numbers(tensor)
    with torch.no_grad():
        x[0, 0, 0, 1] = float("nan")
        x[1, :, :4] = 0.0
    for activation in ("relu", None, Activation("leaky_relu", negative_slope=-0.5)):
        y = conv2d(x, weight, bias, padding=1, activation=activation, pool=2)
        expected = max_pool2d(conv2d(x, weight, bias, padding=1, activation=activation), 2)
        assert isinstance(expected, torch.Tensor) and y.stride() == expected.stride() and y.isnan().any()
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            plain = conv2d(x, weight, bias, padding=1, activation=activation, pool=2)
        torch.testing.assert_close(plain, y, rtol=0, atol=0, equal_nan=True)
        upstream = torch.empty_like(y)
        whole_numbers(upstream)
        pairs = zip(*(torch.autograd.grad(out, (x, weight, bias), upstream) for out in (y, expected)), strict=True)
        for actual, exact in pairs:
            torch.testing.assert_close(actual, exact, rtol=0, atol=0, equal_nan=True)


def test_fused_pooling_under_capture_and_as_a_module(device: str) -> None:
    x, weight, bias = make((1, 16, 5, 4), 8, device=device)
    function = lambda *a: conv2d(*a, activation="relu", pool=2)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), function(x, weight, bias))
    layer = Conv2d(16, 8, 3, activation="relu", pool=2, device=device)
    assert list(layer.state_dict()) == ["weight", "bias"] and layer.extra_repr().endswith(", pool=2")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert_close(layer(x), torch.nn.functional.max_pool2d(torch.nn.Conv2d.forward(layer, x).relu(), 2), 1e-5)
    with pytest.raises(ValueError, match="pool must be 1 or 2"):
        Conv2d(16, 8, 3, pool=4)


FEW_CHANNELS = ["one channel", "5x5 of 3 channels", "4 thin groups", "3x5 of 2 channels"]


@pytest.mark.parametrize("case", FEW_CHANNELS)
@pytest.mark.parametrize("activation", ["relu", "gelu", None])
@pytest.mark.parametrize("pool", [1, 2])
def test_first_layer_computes_its_gradients_in_one_pass(
    pool: int, activation: str | None, case: str, device: str
) -> None:
    """Few channels that want no gradient: dW and db straight from dY. Chosen on a CPU, right on every engine."""
    shape, channels_out, kernel_size, sliding = CASES[case]
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sliding}
    function = as_activation(activation)
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = make(shape, channels_out, kernel_size, arguments["groups"], dtype, device)
        spec = convolution_spec("conv2d", x, weight, bias, **arguments)

        def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, spec: Any = spec) -> torch.Tensor:
            y = convolution_reference(x, weight, bias, spec, function)
            return torch.nn.functional.max_pool2d(y, 2) if pool == 2 else y

        with forced_tiles(
            takes_output_gradient=True,
            multiplies_patches=False,
            convolution_weight_tile=lambda *a: convolution_weight_tile(*a)._replace(consecutive=True),
        ):
            launches = check_against_reference(
                lambda x, weight, bias: conv2d(x, weight, bias, **arguments, activation=activation, pool=pool),
                reference,
                x.detach(),
                weight,
                bias,
                error=2 * tolerance(dtype, weight[0].numel()),
                # Pooling in 16 bits may choose another of two values that round to one.
                gradient_errors=4 * tolerance(dtype, x[:, 0].numel()) * (1 if pool == 1 or dtype.itemsize == 4 else 25),
            )
        assert launches.count("convolution_weight_gradient_runs_kernel") == 1
        assert not {"activation_backward_kernel", "max_pool_backward_kernel"} & set(launches)


def test_first_layer_on_the_cpu(device: str) -> None:
    """On a CPU a first layer's backward is one pass and its second stages; elsewhere it is not."""
    from tinynet_kernels.tiles import current_target

    x, weight, bias = make((2, 1, 8, 8), 16, device=device)
    launches = check((x.detach(), weight, bias), "relu", padding=1)
    assert ("activation_backward_kernel" not in launches) == (current_target().kind == "cpu")


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_first_layer_under_capture(activation: str | None, device: str) -> None:
    """An operator returns an empty tensor where nothing was saved."""
    x, weight, bias = make((2, 1, 5, 6), 8, device=device)
    function = lambda weight, bias: conv2d(x.detach(), weight, bias, activation=activation)  # noqa: E731
    gradients = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        y = call(weight, bias)
        gradients.append(torch.autograd.grad(y, (weight, bias), torch.ones_like(y)))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_without_bias(device: str) -> None:
    check(make((1, 16, 5, 4), 8, device=device, bias=False), "relu", padding=1)


def test_channels_last_runs_without_conversions(device: str) -> None:
    launches = check(make((2, 16, 6, 5), 8, device=device), "relu", padding=1)
    assert "transpose_kernel" not in launches
    launches = check(make((2, 16, 6, 5), 8, device=device, channels_last=False), "relu", padding=1)
    # forward: x, W, y; backward: dY, dX (dW is written in W's order)
    assert launches.count("transpose_kernel") == 5


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("orders", [(True, True), (False, False), (False, True), (True, False)])
def test_layouts_are_pytorchs(channels: int, orders: tuple[bool, bool], device: str) -> None:
    """The output is channels_last if input or weight is; gradients have the layout of their tensors."""
    x, _, bias = make((2, channels, 6, 5), 8, device=device, channels_last=orders[0])
    _, weight, _ = make((2, channels, 6, 5), 8, device=device, channels_last=orders[1])
    for activation in (None, "gelu"):
        y = conv2d(x, weight, bias, padding=1, activation=activation)
        expected = torch.nn.functional.conv2d(x.detach(), weight.detach(), padding=1)
        assert y.stride() == expected.stride()
        dx, dw = torch.autograd.grad(y, (x, weight), torch.randn_like(y))
        assert dx.stride() == x.stride() and dw.stride() == weight.stride()


def test_strided_inputs_and_either_layout_of_the_upstream_gradient(device: str) -> None:
    x, weight, bias = make((2, 16, 6, 5), 8, device=device, grad=False)
    wide = torch.full((2, 16, 6, 10), float("nan"), device=device)
    wide[..., ::2] = x
    x = wide[..., ::2].requires_grad_()
    weight = weight.transpose(2, 3).requires_grad_()
    check((x, weight, bias.requires_grad_()), padding=1)
    y = conv2d(x, weight, bias, padding=1)
    upstream = torch.randn(y.shape, device=device)
    for gradient in (upstream, upstream.contiguous(memory_format=torch.channels_last), upstream[:1].expand_as(y)):
        actual = torch.autograd.grad(y, (x, weight, bias), gradient, retain_graph=True)
        leaves: Any = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
        expected = torch.autograd.grad(torch.nn.functional.conv2d(*leaves, padding=1), leaves, gradient.double())
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, 1e-5)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_the_wanted_gradients(wanted: tuple[bool, ...], device: str) -> None:
    tensors = make((2, 16, 5, 6), 9, device=device, grad=False)
    for tensor, want in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(want)
    launches = check(tensors, "relu", padding=1)
    assert ("convolution_input_gradient_kernel" in launches) == wanted[0]
    assert any("convolution_weight_gradient" in name for name in launches) == wanted[1]


def test_pointwise_is_a_linear_layer(device: str) -> None:
    launches = check(make((2, 16, 3, 5), 8, (1, 1), device=device), "gelu")
    assert launches.count("linear_forward_kernel") == 1
    assert not any("convolution" in name for name in launches)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 7, 2), (1, 70, 9, 33), (65, 5, 1, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_conversions(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    from tinynet_kernels.layout import as_rows, is_channels_last, to_channels_last, to_contiguous

    x = torch.randn(shape, device=device).to(dtype)
    with counted_launches() as launches:
        images = to_channels_last(x)
        back = to_contiguous(images)
    assert len(launches) == (0 if shape[1] == 1 else 2)
    assert images.is_contiguous(memory_format=torch.channels_last) and not is_channels_last(x)
    assert back.is_contiguous() and back.stride() == x.stride()
    assert torch.equal(images, x) and torch.equal(back, x)
    assert torch.equal(as_rows(images), x.permute(0, 2, 3, 1).reshape(-1, shape[1]))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_results_may_be_written_in_place(size: int, channels_last: bool, device: str) -> None:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 4, size, size, device=device).to(memory_format=memory).requires_grad_()
    for layer in (Conv2d(4, 5, 1), Conv2d(4, 5, size), ConvTranspose2d(4, 5, 1)):
        layer.to(device)
        y = layer(x)
        (found,) = torch.autograd.grad(y.mul_(3.0).sum(), x)
        torch.testing.assert_close(found, 3 * torch.autograd.grad(layer(x).sum(), x)[0])


def test_unbatched(device: str) -> None:
    x, weight, bias = make((1, 16, 5, 6), 8, device=device)
    image = x.detach()[0].clone().requires_grad_()
    y = conv2d(image, weight, bias, padding=1)
    assert y.shape == (8, 5, 6)
    exact: Any = [tensor.detach().double() for tensor in (image, weight, bias)]
    assert_close(y, torch.nn.functional.conv2d(*exact, padding=1), 1e-5)
    y.square().sum().backward()
    assert image.grad is not None and image.grad.shape == image.shape


def test_empty_batch(device: str) -> None:
    _, weight, bias = make((1, 16, 5, 6), 8, device=device)
    y = conv2d(torch.empty(0, 16, 5, 6, device=device), weight, bias, padding=1)
    assert y.shape == (0, 8, 5, 6)
    y.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_autocast(device: str) -> None:
    x, weight, bias = make((2, 16, 5, 6), 8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), counted_launches() as launches:
        y = conv2d(x, weight, bias, padding=1, activation="relu")
    assert y.dtype is torch.bfloat16 and launches
    y.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype is torch.float32


@pytest.mark.parametrize("case", ["3x3", "32 channels", "one channel", "2 groups", "depthwise", "1x1"])
def test_autocast_rounds_no_gradient_of_a_float32_tensor(case: str, device: str) -> None:
    shape, channels_out, kernel_size, sliding = CASES[case]
    x, weight, bias = make(shape, channels_out, kernel_size, sliding.get("groups", 1), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = conv2d(x, weight, bias, **sliding)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    with torch.no_grad():
        copies = [t.bfloat16().double().requires_grad_() for t in (x, weight, bias)]
    spec = convolution_spec(
        "conv2d", x, weight, bias, **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **sliding}
    )
    convolution_reference(copies[0], copies[1], copies[2], spec, as_activation(None)).backward(gradient.double())
    for tensor, exact in zip((x, weight, bias), copies, strict=True):
        assert tensor.grad.dtype is torch.float32
        assert_close(tensor.grad, exact.grad, 1e-5, "gradient")


SPEC = [1, 1, 1, 1, 1, 1, 1, 1, 1]  # padding 1, all else one


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_registered_operator(activation: str, channels_last: bool, device: str) -> None:
    tensors = make((1, 3, 4, 5), 2, device=device, channels_last=channels_last)
    torch.library.opcheck(convolution_operator.forward, (*tensors, SPEC, activation, True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_registered_backward_operator(channels_last: bool, device: str) -> None:
    x, weight, _ = make((1, 3, 4, 5), 1, device=device, channels_last=channels_last, grad=False)
    y = torch.randn(1, 1, 4, 5, device=device)
    for wanted in ([True, True, True], [False, True, False]):
        arguments = ([torch.randn_like(y)], [x, weight, y], SPEC, "relu", wanted)
        torch.library.opcheck(convolution_operator.backward, arguments)


def test_compiled_fullgraph(device: str) -> None:
    x, weight, bias = make((1, 16, 5, 4), 8, device=device, channels_last=False)
    expected = conv2d(x, weight, bias, padding="same", activation="gelu")
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    function = lambda *a: conv2d(*a, padding="same", activation="gelu")  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        actual = compiled(x, weight, bias)
        actual.square().sum().backward()
    assert "convolution_forward_kernel" in launches
    assert any("convolution_weight_gradient" in name for name in launches)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(x.grad, gradient)


def test_exported_with_a_dynamic_batch(device: str) -> None:
    layer = Conv2d(16, 4, 3, padding=1, activation="relu", device=device)
    x = torch.randn(3, 16, 5, 4, device=device)
    batch = torch.export.Dim("batch", min=2, max=64)
    with convolution_precision("tf32"):  # torch.export fails where convolutions and recurrent layers differ
        program = torch.export.export(layer, (x[:2],), dynamic_shapes=({0: batch},))
    assert any("tinynet.convolution" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (0, 1), "same"])
def test_module_is_torch_nns(mode: str, padding: Any, device: str) -> None:
    arguments: Any = (16, 8, (3, 2), 1, padding, 1, 2, True, mode)
    torch.manual_seed(3)
    ours = Conv2d(*arguments, device=device, activation="relu")
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(*arguments, device=device, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 16, 5, 6, device=device)
    assert_close(ours(x), theirs(x.double()).relu(), 1e-5)


def test_module_copies_and_prints(device: str) -> None:
    layer = Conv2d(16, 8, 3, activation=Activation("leaky_relu", negative_slope=0.2), device=device)
    x = torch.randn(1, 16, 5, 6, device=device)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    plain = torch.nn.Conv2d(16, 8, 3)
    assert layer.extra_repr() == f"{plain.extra_repr()}, activation={layer.activation}"
    assert Conv2d(16, 8, 3, stride=2, padding="valid", bias=False).extra_repr() == (
        torch.nn.Conv2d(16, 8, 3, stride=2, padding="valid", bias=False).extra_repr()
    )


def test_costs(device: str) -> None:
    """Operations are counted by the definition, bytes once each."""
    from tinynet_kernels.conv.forward import convolution_forward_kernel
    from tinynet_kernels.launch import Cost, cost_of

    x, weight, bias = make((2, 32, 6, 7), 34, groups=2, device=device, grad=False)
    y = torch.empty(2, 34, 6, 7, device=device)
    arguments = {"x_ptr": x, "weight_ptr": weight, "bias_ptr": bias, "y_ptr": y, "z_ptr": None, "argmax_ptr": None}
    cost = cost_of(convolution_forward_kernel, {**arguments, "pixels": 84})
    assert cost == Cost(2 * 84 * 34 * 16 * 9, 4 * (x.numel() + weight.numel() + 34 + y.numel()))


def test_refuses_what_does_not_fit(device: str) -> None:
    x, weight, bias = make((1, 4, 6, 5), 8, device=device, grad=False)
    conv2d(x, weight, bias, stride=(1, 1))
    conv2d(x, weight, bias, dilation=(1, 1))
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "input must be", {"input": x[0, 0]}),
        (ValueError, "weight must be", {"weight": weight[0]}),
        (ValueError, "has 3 channels", {"input": x[:, :3]}),
        (ValueError, "takes 8", {"groups": 2}),
        (ValueError, "groups must be positive and divide", {"groups": 3}),
        (ValueError, "groups must be positive", {"groups": 0}),
        (TypeError, "groups must be an integer", {"groups": 1.0}),
        (ValueError, "bias must be", {"bias": bias[:3]}),
        (ValueError, "needs", {"weight": torch.zeros(8, 4, 7, 3, device=device)}),
        (ValueError, "needs", {"dilation": 3}),
        (ValueError, "stride must be at least 1", {"stride": 0}),
        (ValueError, "stride must be at least 1", {"stride": (1, -1)}),
        (ValueError, "stride must be one number", {"stride": (1, 1, 1)}),
        (TypeError, "stride must be an integer", {"stride": 1.5}),
        (TypeError, "stride must be an integer", {"stride": (1.0, 1)}),  # equals one that was looked up before
        (TypeError, "dilation must be an integer", {"dilation": (1, True)}),
        (ValueError, "dilation must be at least 1", {"dilation": 0}),
        (ValueError, "padding must be at least 0", {"padding": -1}),
        (ValueError, "'same' needs stride 1", {"padding": "same", "stride": 2}),
        (ValueError, "padding must be numbers", {"padding": "full"}),
        (TypeError, "floating point", {"input": x.int()}),
        (TypeError, "weight has dtype", {"weight": weight.half()}),
        (ValueError, "meta", {"weight": weight.to("meta")}),
        (ValueError, "activation: got 'rleu'", {"activation": "rleu"}),
        (ValueError, "pool must be 1 or 2", {"pool": 3}),
        (ValueError, "pool=2 needs an output", {"pool": 2, "stride": 5}),
    ]
    for error, message, arguments in wrong:
        with pytest.raises(error, match=message):
            conv2d(**{"input": x, "weight": weight, "bias": bias, **arguments})
