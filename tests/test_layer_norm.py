"""layer_norm and rms_norm against PyTorch in float64: whole and long rows, residuals, activations, partial operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance
from torch import Tensor

from tinynet import nn
from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.layer_norm import add_layer_norm_operator, layer_norm, layer_norm_operator, rms_norm
from tinynet_kernels.activation_spec import Activation
from tinynet_kernels.layer_norm.rows import LayerNormTile

pytestmark = pytest.mark.kernels

SHAPES = [((5, 8), 1), ((3, 129), 1), ((7, 20), 1), ((2, 3, 4, 5), 2), ((3,), 1), ((2, 6, 3), 1)]
ACTIVATIONS = [None, "relu", "gelu", "sigmoid", Activation("leaky_relu", negative_slope=0.2)]
# Tiles of whole rows, and of parts of a row, several of them for each program.
TILES = [LayerNormTile(2, 128, True, 1), LayerNormTile(2, 16, False, 1)]


def operands(shape: tuple[int, ...], axes: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    x = (torch.randn(shape, device=device) * 2 + 3).to(dtype).requires_grad_()
    weight, bias = (torch.randn(shape[-axes:], device=device).to(dtype).requires_grad_() for _ in range(2))
    return x, weight, bias


def of(axes: int, activation: Any = None, ours: bool = True) -> Callable[..., Tensor]:
    """LayerNorm of (x, weight, bias) over the last `axes` dimensions, ours or PyTorch's."""
    if ours:
        return lambda x, w, b: layer_norm(x, x.shape[-axes:], w, b, activation=activation)
    function = as_activation(activation)
    return lambda x, w, b: activation_reference(F.layer_norm(x, x.shape[-axes:], w, b), function)


def of_rms(axes: int, activation: Any = None, ours: bool = True) -> Callable[..., Tensor]:
    """RMSNorm of (x, weight), ours or PyTorch's."""
    if ours:
        return lambda x, w: rms_norm(x, x.shape[-axes:], w, 1e-6, activation=activation)
    function = as_activation(activation)
    return lambda x, w: activation_reference(F.rms_norm(x, x.shape[-axes:], w, 1e-6), function)


def errors(dtype: torch.dtype, x: Tensor) -> dict[str, Any]:
    # Gradients are sums whose terms cancel: their rounding is larger beside them than beside one term.
    return {"error": 2 * tolerance(dtype, x.shape[-1]), "gradient_errors": 8 * tolerance(dtype, x.numel())}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axes", SHAPES)
def test_forward_and_gradients(shape: tuple[int, ...], axes: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = operands(shape, axes, dtype, device)
    for each in (x, non_contiguous(x)):
        launches = check_against_reference(of(axes), of(axes, ours=False), each, weight, bias, **errors(dtype, x))
        assert launches[:2] == ["layer_norm_forward_kernel", "layer_norm_backward_kernel"] and len(launches) <= 4
        check_against_reference(of_rms(axes), of_rms(axes, ours=False), each, weight, **errors(dtype, x))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_small_tiles(activation: Any, tile: LayerNormTile, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = operands((7, 40), 1, torch.float32, device)
    parameter_tile = LayerNormTile(2, 16, False, 2)
    with forced_tiles(layer_norm_tile=tile, backward_tile=tile._replace(tiles=2), parameter_tile=parameter_tile):
        launches = check_against_reference(
            of(1, activation), of(1, activation, ours=False), x, weight, bias, **errors(torch.float32, x)
        )
        assert tile.whole == ("layer_norm_backward_kernel" in launches)
        check_against_reference(
            of_rms(1, activation), of_rms(1, activation, ours=False), x, weight, **errors(torch.float32, x)
        )


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [True, False])
def test_residual(center: bool, dtype: torch.dtype, tile: LayerNormTile, device: str) -> None:
    """The sum is, to the bit, that of a separate addition; what is computed from it agrees up to rounding."""
    torch.manual_seed(0)
    x = operands((5, 3, 40), 1, dtype, device)[0]
    residual = non_contiguous(torch.randn_like(x).detach()).requires_grad_()
    norm = nn.LayerNorm(40, activation="gelu") if center else nn.RMSNorm(40, activation="gelu")
    norm.to(device, dtype)
    inputs = [x, residual, *norm.parameters()]
    with forced_tiles(layer_norm_tile=tile, backward_tile=tile._replace(tiles=2)):
        y, total = norm(x, residual)
        assert torch.equal(total, x + residual)
        # Not to the bit: where the residual has other strides, a GPU's threads divide the rows otherwise.
        assert_close(y, norm(x + residual), tolerance(dtype, 40))
        upstream = torch.randn_like(y), torch.randn_like(y)
        actual = torch.autograd.grad((y, total), inputs, upstream, retain_graph=True)
        only_normalized = torch.autograd.grad(y, inputs, upstream[0], retain_graph=True)
        only_sum = torch.autograd.grad(total, inputs, upstream[1], allow_unused=True)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    exact_sum = (x + residual).detach().double() + (exact[0] - exact[0].detach()) + (exact[1] - exact[1].detach())
    function = F.layer_norm if center else F.rms_norm
    exact_y = F.gelu(function(exact_sum, (40,), *exact[2:], eps=norm.eps or torch.finfo(torch.float32).eps))
    both = [t.double() for t in upstream]
    expected = torch.autograd.grad((exact_y, exact_sum), exact, both, retain_graph=True)
    expected_normalized = torch.autograd.grad(exact_y, exact, both[0])
    for a, e in zip((*actual, *only_normalized), (*expected, *expected_normalized), strict=True):
        assert_close(a, e, errors(dtype, x)["gradient_errors"])
    for gradient in only_sum[:2]:
        assert_close(gradient, upstream[1], tolerance(dtype))


def test_a_sum_of_frozen_operands_requires_no_gradient(device: str) -> None:
    x, residual = torch.randn(2, 5, 8, device=device)
    y, total = nn.LayerNorm(8, device=device)(x, residual)
    assert y.requires_grad and not total.requires_grad


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("tile", TILES)
def test_computes_only_wanted_gradients(wanted: tuple[bool, ...], tile: LayerNormTile, device: str) -> None:
    torch.manual_seed(0)
    inputs = operands((5, 40), 1, torch.float32, device)
    inputs = [t.detach().requires_grad_(want) for t, want in zip(inputs, wanted, strict=True)]
    with forced_tiles(layer_norm_tile=tile):
        check_against_reference(of(1), of(1, ours=False), *inputs, error=1e-5)
        for present in ((None, inputs[2]), (inputs[1], None)):
            if any(t is not None and t.requires_grad for t in (inputs[0], *present)):
                check_against_reference(of(1), of(1, ours=False), inputs[0], *present, error=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_float32_parameters_with_16_bit_input(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = operands((5, 40), 1, torch.float32, device)
    x = x.detach().to(dtype).requires_grad_()
    check_against_reference(of(1), of(1, ours=False), x, weight, bias, **errors(dtype, x))
    check_against_reference(of_rms(1), of_rms(1, ours=False), x, weight, **errors(dtype, x))


@pytest.mark.parametrize("eps", [1e-12, 0.0, 1.0, np.float32(1e-3)])
def test_eps(eps: float, device: str) -> None:
    x = torch.randn(3, 20, device=device) * 1e-3
    shape: Any = (np.int64(20),)
    for ours, theirs in ((layer_norm, F.layer_norm), (rms_norm, F.rms_norm)):
        assert_close(ours(x, shape, eps=eps), theirs(x.double(), (20,), eps=float(eps)), 1e-5)
    assert_close(rms_norm(x, (20,)), F.rms_norm(x, (20,)), 1e-5)
    assert_close(rms_norm(x.bfloat16(), (20,)), F.rms_norm(x.bfloat16(), (20,)), 1e-2)


def test_large_mean_and_non_finite_rows(device: str) -> None:
    """Squares of deviations, not differences of squares; a NaN or infinity stays in its row."""
    x = torch.randn(4, 300, device=device) + 1e4
    for tile in (LayerNormTile(1, 512, True, 1), LayerNormTile(1, 64, False, 1)):
        with forced_tiles(layer_norm_tile=tile):
            assert_close(layer_norm(x, (300,)), F.layer_norm(x.double(), (300,)), 1e-3)
            bad = x.clone()
            bad[1, 5], bad[2, 7] = float("nan"), float("inf")
            assert torch.equal(layer_norm(bad, (300,)).isnan(), F.layer_norm(bad, (300,)).isnan())
            assert torch.equal(rms_norm(bad, (300,)).isnan(), F.rms_norm(bad, (300,)).isnan())


def test_modules_registered_operators_and_compile(device: str) -> None:
    x = torch.randn(4, 6, device=device, requires_grad=True)
    norm = nn.LayerNorm(6, activation="relu", device=device)
    rest = norm.weight, norm.bias, 1e-5, True, "relu", True
    torch.library.opcheck(layer_norm_operator.forward, (x, *rest))
    torch.library.opcheck(add_layer_norm_operator.forward, (x, x.detach().clone(), *rest))
    saved = [x.detach(), norm.weight.detach(), norm.bias.detach(), torch.zeros(4), torch.ones(4)]
    saved = [t.to(device) for t in saved]
    grads = [torch.randn_like(x) for _ in range(2)]
    torch.library.opcheck(layer_norm_operator.backward, (grads[:1], saved, 1e-5, True, "relu", [True] * 3))
    torch.library.opcheck(add_layer_norm_operator.backward, (grads, saved, 1e-5, True, "relu", [True] * 4))
    with counted_launches() as launches:
        y, total = torch.compile(norm, fullgraph=True, backend="aot_eager")(x, x.detach())
        (y.sum() + total.sum()).backward()
    assert launches[:2] == ["layer_norm_forward_kernel", "layer_norm_backward_kernel"]
    torch.testing.assert_close(y, F.relu(F.layer_norm(2 * x, (6,))))
    assert repr(norm) == repr(torch.nn.LayerNorm(6))[:-1] + ", activation=relu)"
    for layer in (nn.LayerNorm(6, bias=False), nn.LayerNorm(6, elementwise_affine=False), nn.RMSNorm((2, 3))):
        twin = getattr(torch.nn, type(layer).__name__)
        shape = layer.normalized_shape
        torch.testing.assert_close(layer.to(device)(x.view(4, *shape)), twin(shape).to(device)(x.view(4, *shape)))


def test_refuses(device: str) -> None:
    x = torch.randn(2, 6, device=device)
    with pytest.raises(ValueError, match=r"layer_norm: input \(2, 6\) must end with the normalized_shape \(5,\)"):
        layer_norm(x, (5,))
    with pytest.raises(ValueError, match=r"rms_norm: weight must have the shape \(6,\), got \(5,\)"):
        rms_norm(x, (6,), torch.ones(5, device=device))
    with pytest.raises(ValueError, match="residual must have the shape"):
        layer_norm(x, (6,), residual=x[:1])
    with pytest.raises(TypeError, match="normalized_shape must be a sequence of integers"):
        layer_norm(x, 6)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="input must be floating point"):
        layer_norm(x.long(), (6,))
    with pytest.raises(TypeError, match="weight has dtype"):
        layer_norm(x.bfloat16(), (6,), torch.ones(6, device=device), torch.ones(6, device=device).bfloat16())
