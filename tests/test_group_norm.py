"""group_norm against PyTorch in float64, in both memory orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance
from torch import Tensor

from tinynet import nn
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.channels import as_channels
from tinynet.ops.group_norm import group_norm, group_norm_operator
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.channel_tiles import ChannelTile
from tinynet_kernels.group_norm import takes_rows

pytestmark = pytest.mark.kernels

GROUPS = ["group_norm_forward_kernel", "group_norm_backward_kernel"]
ROWS = ["norm_statistics_kernel", "normalize_kernel", "norm_sums_kernel", "norm_input_gradient_kernel"]
ALONE = ["normalize_kernel", "norm_input_gradient_kernel"]  # where one program has all channels of an image
SHAPES = [((3, 6, 4, 5), 3), ((2, 6, 33), 2), ((4, 20), 2), ((2, 10, 3, 3, 3), 1), ((3, 5, 20), 5)]
ACTIVATIONS = [None, "relu", "gelu", "sigmoid", Activation("leaky_relu", negative_slope=0.2)]


def operands(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    x = (torch.randn(shape, device=device) * 2 + 3).to(dtype).requires_grad_()
    weight, bias = (torch.randn(shape[1], device=device).to(dtype).requires_grad_() for _ in range(2))
    return x, weight, bias


def orders(x: Tensor) -> list[Tensor]:
    """x contiguous, with its channels last in memory, and with gaps."""
    last = x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    return [x, last, non_contiguous(x)]


def of(groups: int, activation: Any = None, ours: bool = True) -> Callable[..., Tensor]:
    """GroupNorm of (x, weight, bias), ours or PyTorch's."""
    if ours:
        return lambda x, w, b: group_norm(x, groups, w, b, activation=activation)
    return lambda x, w, b: activation_reference(F.group_norm(x, groups, w, b), as_activation(activation))


def errors(dtype: torch.dtype, x: Tensor) -> dict[str, Any]:
    # Gradients are sums whose terms cancel: their rounding is larger beside them than beside one term.
    return {"error": 2 * tolerance(dtype, x.numel()), "gradient_errors": 8 * tolerance(dtype, x.numel())}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, groups", SHAPES)
def test_forward_and_gradients(shape: tuple[int, ...], groups: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = operands(shape, dtype, device)
    for each in orders(x):
        launches = check_against_reference(of(groups), of(groups, ours=False), each, weight, bias, **errors(dtype, x))
        rows = takes_rows(as_channels(each), groups)
        assert launches[:2] == GROUPS if not rows else launches[0] in ROWS
        assert len(launches) <= (5 if rows else 4)
        if len(shape) == 4:
            assert group_norm(each, groups).stride() == F.group_norm(each, groups).stride()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pixel_axis", [0, 1])
def test_small_tiles(pixel_axis: int, activation: Any, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = operands((2, 10, 7, 5), torch.float32, device)
    each = orders(x)[1 - pixel_axis]
    with forced_tiles(channel_tile=ChannelTile(2, 16, pixel_axis), takes_rows=False):
        functions = of(2, activation), of(2, activation, ours=False)
        check_against_reference(*functions, each, weight, bias, **errors(torch.float32, x))
        if activation != "gelu":
            return
        for present in ((None, bias.detach()), (weight, None), (None, None)):
            check_against_reference(*functions, each, *present, **errors(torch.float32, x))


@pytest.mark.parametrize("groups", [5, 2, 1])
@pytest.mark.parametrize("tile", [(4, 4, 3, 4), (16, 4, 2, 4), (2, 16, 1, 4), (16, 4, 1, 4)])
def test_small_tiles_of_rows(tile: tuple[int, ...], groups: int, device: str) -> None:
    """Groups that end within a tile, or take several tiles; parts that begin within an image; all in one program."""
    torch.manual_seed(0)
    x, weight, bias = operands((2, 10, 7, 5), torch.float32, device)
    each = orders(x)[1]
    with forced_tiles(norm_tile=tile):
        functions = of(groups, "silu"), of(groups, "silu", ours=False)
        launches = check_against_reference(*functions, each, weight, bias, **errors(torch.float32, x))
        expected = ALONE if tile[0] >= 10 and tile[2] == 1 else ROWS
        assert launches == [*expected, "norm_parameter_gradients_kernel"]
        functions = of(groups), of(groups, ours=False)
        for present in ((None, bias.detach()), (weight, None), (None, None)):
            check_against_reference(*functions, each, *present, **errors(torch.float32, x))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_computes_only_wanted_gradients(wanted: tuple[bool, ...], device: str) -> None:
    torch.manual_seed(0)
    inputs = operands((3, 6, 4, 5), torch.float32, device)
    inputs = [t.detach().requires_grad_(want) for t, want in zip(inputs, wanted, strict=True)]
    check_against_reference(of(3), of(3, ours=False), *inputs, error=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_float32_parameters_with_16_bit_input(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = operands((3, 6, 4, 5), torch.float32, device)
    x = x.detach().to(dtype).requires_grad_()
    check_against_reference(of(3), of(3, ours=False), x, weight, bias, **errors(dtype, x))


def test_large_mean_and_non_finite_groups(device: str) -> None:
    """Squares of deviations, not differences of squares; a NaN or infinity stays in its group."""
    x = torch.randn(2, 6, 300, device=device) + 1e4
    with forced_tiles(channel_tile=ChannelTile(1, 64, 1)):
        assert_close(group_norm(x, 2), F.group_norm(x.double(), 2), 1e-3)
        x[0, 1, 5], x[1, 5, 7] = float("nan"), float("inf")
        assert torch.equal(group_norm(x, 2).isnan(), F.group_norm(x, 2).isnan())


def test_modules_registered_operators_and_compile(device: str) -> None:
    x = torch.randn(2, 4, 3, 5, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = nn.GroupNorm(2, 4, activation="relu", device=device)
    rows, settings = x.detach().flatten(2), (2, 1e-5, "relu")
    torch.library.opcheck(group_norm_operator.forward, (rows.requires_grad_(), norm.weight, norm.bias, *settings, True))
    saved = [rows.detach(), norm.weight.detach(), norm.bias.detach(), *torch.ones(2, 2, 2, device=device)]
    torch.library.opcheck(group_norm_operator.backward, ([rows.detach().clone()], saved, *settings, [True] * 3))
    with counted_launches() as launches:
        y = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
        y.sum().backward()
    assert launches[:2] == GROUPS
    torch.testing.assert_close(y, F.relu(F.group_norm(x, 2)))
    assert repr(norm) == repr(torch.nn.GroupNorm(2, 4))[:-1] + ", activation=relu)"


def test_refuses(device: str) -> None:
    x = torch.randn(2, 6, 3, device=device)
    with pytest.raises(ValueError, match="num_groups must divide the 6 channels of input, got 4"):
        group_norm(x, 4)
    with pytest.raises(ValueError, match=r"weight must be \[6\] for this input, got \(5,\)"):
        group_norm(x, 3, torch.ones(5, device=device))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        group_norm(x[:1, :, 0], 6)
    with pytest.raises(TypeError, match="num_groups must be an integer"):
        group_norm(x, 2.0)  # pyright: ignore[reportArgumentType]
