"""Muon, Lookahead and the moving average of weights on random operands, against their formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import UNIT, counted_launches
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import assert_near, plain, snapshot
from random_tensors import Draw, dtypes, shapes, sizes, small_integers, tensors
from test_random_optimizers import EXACT, ExactOptimizer, optimizer_options
from torch import Tensor

from tinynet import optim
from tinynet.ops.muon import orthogonalize

pytestmark = pytest.mark.kernels

COEFFICIENTS = [(3.4445, -4.775, 2.0315), (1.5, -0.5, 0.0)]


def exact_orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> Tensor:
    """Newton and Schulz's iteration on [..., M, N]."""
    a, b, c = coefficients
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class ExactMuon(ExactOptimizer):
    """Jordan et al. 2024; a filter is the matrix of its rows."""

    def move(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum, (rows, columns) = group["momentum"], param.flatten(1).shape
        average = state.setdefault("momentum_buffer", torch.zeros_like(param))
        average.copy_(momentum * average + (1 - momentum) * grad)
        update = momentum * average + (1 - momentum) * grad if group["nesterov"] else average
        step = exact_orthogonalize(update.flatten(1), group["ns_coefficients"], group["ns_steps"], group["eps"])
        original = math.sqrt(max(1, rows / max(1, columns)))
        ratio = 0.2 * math.sqrt(max(rows, columns)) if group["adjust_lr_fn"] == "match_rms_adamw" else original
        param.copy_((1 - group["lr"] * group["weight_decay"]) * param - group["lr"] * ratio * step.view_as(param))


@st.composite
def parameters(draw: Draw, device: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    return draw(tensors(device, shape, dtype, differentiable=False, dense=True)).requires_grad_()


def give_gradients(draw: Draw, params: list[Tensor], others: list[Tensor]) -> None:
    """Random gradients, or none; those of `others` are the same, in each one's dtype."""
    for param, other in zip(params, others, strict=True):
        param.grad = other.grad = None
        if draw(st.integers(0, 5)):
            gradient = draw(tensors(param.device.type, param.shape, param.dtype, differentiable=False))
            param.grad, other.grad = gradient, gradient.to(other.dtype)


@given(st.data())
def test_orthogonalize(device: str, data: st.DataObject) -> None:
    draw, steps, coefficients = data.draw, data.draw(st.integers(0, 5)), data.draw(st.sampled_from(COEFFICIENTS))
    shape = [draw(sizes(3, least=0)), draw(sizes(65)), draw(sizes(65))]
    matrices = draw(tensors(device, shape, torch.float32, differentiable=False))
    note(f"{steps} steps, {coefficients}")
    with counted_launches() as launches:
        result = orthogonalize(matrices, coefficients, steps, dtype=None)
    assert launches == ["batched_product_kernel"] * (3 * steps if matrices.numel() else 0)
    # Singular values near 0 grow by the first coefficient in each step, and their rounding errors with them.
    error = 32 * UNIT[torch.float32] * coefficients[0] ** steps
    assert_near(result, exact_orthogonalize(plain(matrices), coefficients, steps), error, 1.0, "result")


@given(st.data())
def test_muon(device: str, data: st.DataObject) -> None:
    """In few steps of the iteration, which magnify the rounding of its bfloat16 products less."""
    draw = data.draw
    options: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.01, 0.1])),
        "weight_decay": draw(st.sampled_from([0.0, 0.5])),
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.95])),
        "nesterov": draw(st.booleans()),
        "ns_coefficients": draw(st.sampled_from(COEFFICIENTS)),
        "ns_steps": draw(st.integers(0, 2)),
        "eps": draw(st.sampled_from([1e-7, 100.0])),
        "adjust_lr_fn": draw(st.sampled_from([None, "original", "match_rms_adamw"])),
    }
    dtype, kinds = draw(dtypes), [draw(shapes(2, 4, 17)) for _ in range(draw(st.integers(1, 2)))]
    ours = [draw(parameters(device, draw(st.sampled_from(kinds)), dtype)) for _ in range(draw(st.integers(1, 4)))]
    exact = [plain(param).requires_grad_() for param in ours]
    optimizer, expected = optim.Muon(ours, **options), ExactMuon(exact, **{**options, "maximize": False})
    note(f"{options}")
    for _ in range(2):
        for param, other in zip(ours, exact, strict=True):  # each step starts from our parameters
            other.data.copy_(param.detach())
            for key, value in optimizer.state[param].items():
                expected.state[other][key].copy_(value)
        give_gradients(draw, ours, exact)
        gradients = [param.grad for param in ours if param.grad is not None]
        before, starts = [snapshot(gradient) for gradient in gradients], [param.detach().clone() for param in exact]
        optimizer.step()
        expected.step()
        for gradient, old in zip(gradients, before, strict=True):
            assert torch.equal(snapshot(gradient), old), "a gradient was changed"
        for param, other, start in zip(ours, exact, starts, strict=True):
            decayed = start * (1 - options["lr"] * options["weight_decay"]) if other.grad is not None else start
            rounding = UNIT[dtype] * param.detach().double().norm()
            assert (param - other).norm() <= 0.1 * (other - decayed).norm() + rounding
            if param.numel() and other.grad is not None:
                state = optimizer.state[param]["momentum_buffer"], expected.state[other]["momentum_buffer"]
                assert_near(*state, 2 * UNIT[dtype], 0.1, "momentum_buffer")


@given(st.data())
def test_lookahead(device: str, data: st.DataObject) -> None:
    """Around an optimizer that the reference has too. Misaligned memory is computed in another order."""
    draw, (name, options), dtype = data.draw, data.draw(optimizer_options()), data.draw(dtypes)
    k, alpha = draw(st.integers(1, 3)), draw(st.sampled_from([0.25, 0.5, 1.0]))
    ours = [draw(parameters(device, draw(shapes(0, 3, 17)), dtype)) for _ in range(draw(st.integers(1, 3)))]
    alike = [param.detach().clone().requires_grad_() for param in ours]
    slow = [param.detach().clone() for param in ours]
    error = 20 * UNIT[dtype] if dtype is torch.float32 else 4 * UNIT[dtype]
    # Any of torch.optim's interface; float16 is too narrow for the eps of PyTorch's own.
    library = torch.optim if dtype is torch.float32 and name not in EXACT and draw(st.booleans()) else optim
    build = getattr(library, name)
    optimizer, inner = optim.Lookahead(build(ours, **options), k=k, alpha=alpha), build(alike, **options)
    note(f"{library.__name__}, {name}, {options}, k {k}, alpha {alpha}")
    for step in range(1, 5):
        give_gradients(draw, ours, alike)
        optimizer.step()
        inner.step()
        for param, other, weight in zip(ours, alike, slow, strict=True):
            if step % k == 0:
                weight.copy_(plain(weight) + alpha * (plain(other) - plain(weight)))
                other.data.copy_(weight)
            assert_near(param, other, error, 1.0, "parameter")


@given(st.data())
def test_moving_average(device: str, data: st.DataObject) -> None:
    draw, decay = data.draw, data.draw(st.sampled_from([0.0, 0.3, 0.999, 1.0]))
    model = torch.nn.Module()
    for index in range(draw(st.integers(1, 3))):
        param = draw(parameters(device, draw(shapes(0, 3, 17)), draw(dtypes)))
        model.register_parameter(f"parameter{index}", torch.nn.Parameter(param.detach()))
    for index in range(draw(st.integers(0, 2))):
        dtype, values = draw(st.sampled_from([*UNIT, torch.int64])), small_integers
        shape = draw(shapes(0, 3, 9))
        model.register_buffer(
            f"buffer{index}", draw(tensors(device, shape, dtype, values, differentiable=False, dense=True))
        )
    average = optim.EMA(model, decay)
    note(f"decay {decay}")
    exact: dict[str, Tensor] = {}
    for update in range(3):
        for value in model.state_dict().values():
            value.copy_(draw(tensors(device, value.shape, value.dtype, small_integers, differentiable=False)))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        average.update_parameters(model)
        for name, value in average.module.state_dict().items():
            own = before[name]
            assert torch.equal(model.state_dict()[name], own), f"{name} of the model was changed"
            if update == 0 or not value.is_floating_point():
                assert torch.equal(value, own), name
            else:
                expected = decay * exact[name] + (1 - decay) * plain(own)
                assert_near(value, expected, 2 * UNIT[value.dtype], 1.0, name)
            exact[name] = plain(value)
