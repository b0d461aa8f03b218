"""Clipping gradients against torch.nn.utils in float64, and what goes through PyTorch's functions."""

from __future__ import annotations

import copy

import pytest
import torch
from forced_tiles import GPU, forced_tiles
from helpers import UNIT, assert_close, counted_launches, nan_filled_memory
from torch import Tensor

import tinynet
from tinynet.nn.utils import clip_grad_norm_, clip_grad_value_
from tinynet_kernels.tiles import Target

pytestmark = pytest.mark.kernels

SHAPES = ((1,), (17,), (63, 1), (), (3, 43), (2, 3, 5, 7))


def parameters(
    device: str, dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, ...], ...] = SHAPES
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters with random gradients, and the same in float64."""
    ours = [torch.zeros(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    for parameter in ours:
        parameter.grad = torch.randn(parameter.shape).to(device, dtype)
    exact = [parameter.detach().double().requires_grad_() for parameter in ours]
    for parameter, other in zip(exact, ours, strict=True):
        assert other.grad is not None
        parameter.grad = other.grad.double()
    return ours, exact


def assert_gradients_close(ours: list[Tensor], exact: list[Tensor], error: float) -> None:
    for parameter, other in zip(ours, exact, strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert_close(parameter.grad, other.grad, error, f"gradient {tuple(parameter.shape)}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_norm", [0.3, 1e6])
@pytest.mark.parametrize("norm_type", [2.0, 1, float("inf")])
def test_norm(norm_type: float, max_norm: float, dtype: torch.dtype, device: str) -> None:
    ours, exact = parameters(device, dtype)
    unclipped = torch.zeros(3, device=device, requires_grad=True)
    with counted_launches() as launches, nan_filled_memory():
        norm = clip_grad_norm_([*ours, unclipped], max_norm, norm_type)
    assert launches == ["gradient_norm_kernel", "clip_norm_kernel"] and unclipped.grad is None
    expected = torch.nn.utils.clip_grad_norm_(exact, max_norm, norm_type)
    assert norm.shape == () and norm.dtype is torch.float32
    assert_close(norm, expected, 8 * UNIT[torch.float32], "norm")
    assert_gradients_close(ours, exact, 4 * UNIT[dtype])


def test_tiny_gradients(device: str) -> None:
    """The norm counts as 1e-6 more than it is."""
    ours, exact = parameters(device)
    for parameter in (*ours, *exact):
        assert parameter.grad is not None
        parameter.grad *= 1e-7
    clip_grad_norm_(ours, 1e-7)
    torch.nn.utils.clip_grad_norm_(exact, 1e-7)
    assert_gradients_close(ours, exact, 8 * UNIT[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_value(dtype: torch.dtype, device: str) -> None:
    ours, exact = parameters(device, dtype)
    assert ours[1].grad is not None and exact[1].grad is not None
    for parameter in (ours[1], exact[1]):
        assert parameter.grad is not None
        parameter.grad[3:6] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    with counted_launches() as launches:
        assert clip_grad_value_(ours, 0.75) is None
    assert launches == ["clip_value_kernel"]
    torch.nn.utils.clip_grad_value_(exact, 0.75)
    assert_gradients_close(ours, exact, 0.0)


@pytest.mark.parametrize("target", [GPU, Target("interpreter", "", 1, 1 << 30)])
def test_small_tiles(target: Target, device: str) -> None:
    """Several blocks in one partial sum, full ones and parts; with aligned memory full ones have no mask."""
    ours, exact = parameters(device, shapes=((37,), (3,), (5, 16), (64,)))
    with forced_tiles(flat_block=(16, 4), current_target=target, PARTS=3):
        norm = clip_grad_norm_(ours, 0.5)
        expected = torch.nn.utils.clip_grad_norm_(exact, 0.5)
        assert_close(norm, expected, 8 * UNIT[torch.float32])
        assert_gradients_close(ours, exact, 4 * UNIT[torch.float32])
        clip_grad_value_(ours, 0.01)
        torch.nn.utils.clip_grad_value_(exact, 0.01)
        assert_gradients_close(ours, exact, 4 * UNIT[torch.float32])


def test_dtypes_and_layouts_of_one_call(device: str) -> None:
    ours, exact = parameters(device, shapes=((4, 3, 5, 2), (129,), (0, 3)))
    narrow, exact_narrow = parameters(device, torch.bfloat16, shapes=((7, 3),))
    assert ours[0].grad is not None
    ours[0].grad = ours[0].grad.to(memory_format=torch.channels_last)
    params, doubles = [*ours, *narrow], [*exact, *exact_narrow]
    gradients = [parameter.grad for parameter in params]
    with counted_launches() as launches:
        norm = clip_grad_norm_((parameter for parameter in params), 0.5)
    assert sorted(launches) == ["clip_norm_kernel"] * 2 + ["gradient_norm_kernel"] * 2, "two launches per dtype"
    assert all(parameter.grad is gradient for parameter, gradient in zip(params, gradients, strict=True))
    expected = torch.nn.utils.clip_grad_norm_(doubles, 0.5)
    assert_close(norm, expected, 8 * UNIT[torch.float32])
    assert_gradients_close(params, doubles, 4 * UNIT[torch.bfloat16])


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite(value: float, norm_type: float, device: str) -> None:
    ours, exact = parameters(device)
    for parameter in (ours[1], exact[1]):
        assert parameter.grad is not None
        parameter.grad[3] = value
    before = [copy.copy(parameter.grad) for parameter in ours]
    with pytest.raises(RuntimeError, match="not finite"):
        clip_grad_norm_(ours, 0.5, norm_type, error_if_nonfinite=True)
    for parameter, gradient in zip(ours, before, strict=True):
        assert parameter.grad is not None and gradient is not None
        assert torch.equal(parameter.grad.nan_to_num(), gradient.nan_to_num())
    assert_close(clip_grad_norm_(ours, 0.5, norm_type), torch.nn.utils.clip_grad_norm_(exact, 0.5, norm_type), 0.0)
    assert_gradients_close(ours, exact, 0.0)
    assert clip_grad_norm_(parameters(device)[0], 0.5, norm_type, error_if_nonfinite=True).isfinite()


def test_what_goes_through_pytorchs_functions(device: str) -> None:
    """Other norms, float64, gradients with gaps or that share memory, no gradients."""
    memory = torch.randn(40, device=device)
    halves = [torch.zeros(10, device=device, requires_grad=True) for _ in range(2)]
    shared = memory[:10], memory[5:15]
    for parameter, gradient in zip(halves, shared, strict=True):
        parameter.grad = gradient
    with_gaps = torch.zeros(10, device=device, requires_grad=True)
    with_gaps.grad = memory[20::2]
    ours, exact = parameters(device)
    _, wide = parameters(device)
    with tinynet.engine("auto"), counted_launches() as launches:
        torch.testing.assert_close(clip_grad_norm_(halves, 1e9), torch.linalg.vector_norm(torch.cat(shared)))
        clip_grad_norm_(with_gaps, 0.1)
        assert abs(torch.linalg.vector_norm(memory[20::2]).item() - 0.1) < 1e-5
        clip_grad_norm_(wide, 0.25)
        assert abs(clip_grad_norm_(wide, 1.0).item() - 0.25) < 1e-5
        norm = clip_grad_norm_(ours, 0.5, 3)
        assert_close(norm, torch.nn.utils.clip_grad_norm_(exact, 0.5, 3), 8 * UNIT[torch.float32])
        assert clip_grad_norm_([], 1.0) == 0
        clip_grad_value_([], 1.0)
    assert launches == []


def test_gradients_that_move_and_reruns(device: str) -> None:
    """The table of the last call is renewed, and versions count what was written."""
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        norms = []
        for _ in range(3):
            ours, exact = parameters(device, shapes=((70001,), (5,)))
            assert ours[0].grad is not None
            version = ours[0].grad._version
            norms.append(clip_grad_norm_(ours, 0.5))
            assert ours[0].grad._version > version
            assert_close(norms[-1], torch.nn.utils.clip_grad_norm_(exact, 0.5), 8 * UNIT[torch.float32])
        results.append(torch.stack(norms))
    assert torch.equal(*results)
