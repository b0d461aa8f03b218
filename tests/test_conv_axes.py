"""Convolutions of one and three spatial axes, and transposed ones of all three; those of two are in `test_conv.py`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import assert_close, check_against_reference, convolution_precision, counted_launches, tolerance
from torch import Tensor

from tinynet import functional, nn
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet_kernels.tiles import GemmTile

SIZES = {1: (23,), 2: (9, 11), 3: (5, 6, 7)}
# (C, K, groups): a product of taps, of (tap, channel) pairs, no product
CHANNELS = (16, 24, 1), (6, 8, 2), (8, 16, 8)
WINDOWS: tuple[dict[str, Any], ...] = (
    {"padding": 1},
    {"stride": 2, "padding": 1},
    {"stride": 3, "padding": 2, "dilation": 2},
)

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    with convolution_precision("ieee"):
        yield


def tensors(
    axes: int, channels: tuple[int, int, int], transposed: bool, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """x, W and b."""
    C, K, groups = channels
    shape = (C, K // groups) if transposed else (K, C // groups)
    options: Any = {"device": device}
    values = torch.randn(2, C, *SIZES[axes], **options), torch.randn(*shape, *(3,) * axes, **options), torch.randn(K)
    return [value.to(device, dtype).requires_grad_() for value in values]


def check(axes: int, transposed: bool, inputs: list[Tensor], activation: Any = None, **window: Any) -> list[str]:
    name = f"conv_transpose{axes}d" if transposed else f"conv{axes}d"

    def reference(*x: Tensor) -> Tensor:
        return activation_reference(getattr(F, name)(*x, **window), as_activation(activation))

    pixels = inputs[0][:, 0].numel()
    taps = inputs[1][0].numel()
    dtype = inputs[0].dtype
    errors = [tolerance(dtype, taps), 4 * tolerance(dtype, pixels), 4 * tolerance(dtype, pixels)]
    ours = partial(getattr(functional, name), activation=activation, **window)
    return check_against_reference(ours, reference, *inputs, error=tolerance(dtype, taps), gradient_errors=errors)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("axes", [1, 3])
def test_convolution(axes: int, channels: tuple[int, int, int], window: dict[str, Any], device: str) -> None:
    inputs = tensors(axes, channels, False, torch.float32, device)
    check(axes, False, inputs, "silu", groups=channels[2], **window)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed(axes: int, channels: tuple[int, int, int], window: dict[str, Any], device: str) -> None:
    inputs = tensors(axes, channels, True, torch.float32, device)
    extra = {"output_padding": 1} if "stride" in window else {}
    check(axes, True, inputs, "relu", groups=channels[2], **window, **extra)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_16_bits_in_another_memory_order(transposed: bool, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = tensors(3, (16, 24, 1), transposed, dtype, device)
    images = x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    strided = weight.detach().transpose(-1, -2).requires_grad_()
    check(3, transposed, [images, strided, bias], None, stride=(1, 2, 1), padding=(0, 1, 1))
    function = functional.conv_transpose3d if transposed else functional.conv3d
    assert function(images, strided, bias).is_contiguous(memory_format=torch.channels_last_3d)
    assert function(x, weight, bias).is_contiguous()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, 3])
def test_small_tiles(axes: int, transposed: bool, device: str) -> None:
    """Tiles that end within rows, planes and channels; a step of several channel blocks."""
    tile = GemmTile(16, 16, 16, 4, 1)
    with forced_tiles(convolution_tile=tile, convolution_few_channels_tile=tile):
        check(axes, transposed, tensors(axes, (20, 18, 1), transposed, torch.float32, device), "gelu", padding=1)


@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_windows_that_cover_the_image(axes: int, stride: int, activation: Any, device: str) -> None:
    """The one output pixel's gradient, and a transposed convolution of one pixel, are plain products."""
    size = (5, 4, 3)[-axes:]
    for dtype, function in ((torch.float32, activation), (torch.bfloat16, None)):
        values: list[Any] = [torch.randn(3, 6, *size), torch.randn(20, 6, *size) / 8, torch.randn(20)]
        values = [value.to(device, dtype).requires_grad_() for value in values]
        launches = check(axes, False, values, function, stride=stride)
        assert "linear_input_gradient_kernel" in launches
        assert not any("convolution_input_gradient" in name for name in launches)
        values = [torch.randn(3, 20, *(1,) * axes), torch.randn(20, 6, *size) / 8, torch.randn(6)]
        for without_bias in (False, True):
            inputs = [value.to(device, dtype).requires_grad_() for value in values[: 2 if without_bias else 3]]
            launches = check(axes, True, inputs, function, stride=stride)
            assert "linear_forward_kernel" in launches
    padded = [torch.randn(3, 6, *size), torch.randn(20, 6, *size) / 8, torch.randn(20)]
    check(axes, False, [value.to(device).requires_grad_() for value in padded], activation, stride=stride, padding=1)
    one = [torch.randn(3, 20, *(1,) * axes), torch.randn(20, 6, *size) / 8, torch.randn(6)]
    options = {"stride": 2, "output_padding": 1}
    check(axes, True, [value.to(device).requires_grad_() for value in one], activation, **options)


def test_windows_of_planes_and_of_one_tap(device: str) -> None:
    """A volume whose windows see single planes is a batch of planes; one tap is a linear layer."""
    x = torch.randn(2, 16, 4, 6, 5, device=device, requires_grad=True)
    for taps, window in (((1, 3, 3), {"padding": (0, 1, 1)}), ((1, 1, 1), {}), ((1, 3, 3), {"stride": (2, 1, 1)})):
        weight = torch.randn(8, 16, *taps, device=device, requires_grad=True)
        bias = torch.randn(8, device=device, requires_grad=True)
        check(3, False, [x, weight, bias], None, **window)
    many = torch.randn(2, 3, 4, 6, 70, device=device, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 5, device=device, requires_grad=True)
    check(3, False, [many, weight, torch.randn(4, device=device, requires_grad=True)], None, dilation=(1, 2, 1))


def test_unbatched_and_registered(device: str) -> None:
    x, weight, bias = tensors(2, (6, 8, 2), True, torch.float32, device)
    y = functional.conv_transpose2d(x, weight, bias, 2, groups=2)
    torch.testing.assert_close(functional.conv_transpose2d(x[1], weight, bias, 2, groups=2), y[1])
    compiled = torch.compile(partial(functional.conv_transpose2d, stride=2, groups=2), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, weight, bias), y)
    from tinynet.ops.conv_transpose import conv_transpose_operator
    from tinynet.ops.convolution_spec import transposed_spec

    spec, size = transposed_spec("conv_transpose2d", x, weight, bias, 2, 0, 0, 2, 1)
    torch.library.opcheck(conv_transpose_operator.forward, (x, weight, bias, spec.values, list(size), "gelu", True))


def test_second_derivatives(device: str) -> None:
    x, weight, bias = tensors(1, (6, 8, 2), True, torch.float32, device)

    def penalty(function: Any, *inputs: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(function(*inputs, 2, groups=2).tanh().sum(), inputs[0], create_graph=True)
        return torch.stack([grad.norm() for grad in torch.autograd.grad(slope.square().sum(), inputs[:2])])

    twins = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    assert_close(penalty(functional.conv_transpose1d, x, weight, bias), penalty(F.conv_transpose1d, *twins), 1e-4)


@pytest.mark.parametrize("name", ["Conv1d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
def test_modules(name: str, device: str) -> None:
    torch.manual_seed(0)
    axes = int(name[-2])
    ours = getattr(nn, name)(6, 8, 3, stride=2, padding=1, groups=2, activation="relu", device=device)
    lazy = getattr(nn, f"Lazy{name}")(8, 3, stride=2, padding=1, groups=2, activation="relu", device=device)
    twin = getattr(torch.nn, name)(6, 8, 3, stride=2, padding=1, groups=2, device=device)
    twin.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, *SIZES[axes], device=device)
    with counted_launches() as launches:
        y = ours(x)
    assert launches
    torch.testing.assert_close(y, twin(x).relu())
    lazy(x)
    assert type(lazy) is type(ours) and lazy.weight.shape == ours.weight.shape
    assert repr(ours) == repr(twin)[:-1] + ", activation=relu)"
    if "Transpose" in name:
        size = [2 * side for side in SIZES[axes]]
        torch.testing.assert_close(ours(x, size), twin(x, size).relu())
    else:
        circular = getattr(nn, name)(6, 8, 3, padding=1, padding_mode="circular", device=device)
        twin = getattr(torch.nn, name)(6, 8, 3, padding=1, padding_mode="circular", device=device)
        twin.load_state_dict(circular.state_dict())
        torch.testing.assert_close(circular(x), twin(x))


def test_refuses_what_does_not_fit() -> None:
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 3, 3, 3)
    transpose = functional.conv_transpose2d
    for message, arguments in {
        "input must be": (x[0, 0], weight),
        "weight must be": (x, weight[0]),
        "4 channels, but weight": (x, torch.randn(3, 4, 3, 3)),
        "bias must be": (x, weight, torch.randn(4)),
        "groups must be positive": (x, weight, None, 1, 0, 0, 3),
        "output_padding must be smaller": (x, weight, None, 2, 0, 2),
        "gives an output of": (x[..., :1, :1], weight, None, 1, 2),
        "padding must be at least 0": (x, weight, None, 1, -1),
    }.items():
        with pytest.raises(ValueError, match=message):
            transpose(*arguments)
    with pytest.raises(TypeError, match="stride must be an integer"):
        functional.conv1d(torch.randn(2, 4, 5), torch.randn(3, 4, 3), stride=1.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="conv3d: input must be"):
        functional.conv3d(x[0], torch.randn(3, 4, 3, 3, 3))
    with pytest.raises(ValueError, match="ConvTranspose2d: padding_mode must be 'zeros'"):
        layer = nn.ConvTranspose2d(4, 3, 3)
        layer.padding_mode = "reflect"
        layer(x)
