"""Optimizers and clipping of gradients on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import UNIT, counted_launches
from hypothesis import assume, given, note
from hypothesis import strategies as st
from random_checks import assert_near, snapshot
from random_tensors import Draw, dtypes, shapes, sometimes_non_finite, tensors
from torch import Tensor

from tinynet import optim
from tinynet.ops.clip_grad import clip_grad_norm_, clip_grad_value_

pytestmark = pytest.mark.kernels


class ExactOptimizer(torch.optim.Optimizer):
    """An optimizer that PyTorch lacks, by its formulas."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.move(param, -param.grad if group["maximize"] else param.grad, self.state[param], group)

    def move(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class ExactLion(ExactOptimizer):
    """Chen et al. 2023, algorithm 2."""

    def move(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        average = state.setdefault("exp_avg", torch.zeros_like(param))
        step = (beta1 * average + (1 - beta1) * grad).sign()
        param.copy_(param * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * step)
        average.mul_(beta2).add_((1 - beta2) * grad)


class ExactLAMB(ExactOptimizer):
    """You et al. 2020, algorithm 2, with the identity for phi."""

    def move(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        m, v = (state.setdefault(name, torch.zeros_like(param)) for name in ("exp_avg", "exp_avg_sq"))
        m.mul_(beta1).add_((1 - beta1) * grad)
        v.mul_(beta2).add_((1 - beta2) * grad**2)
        corrected = m / (1 - beta1 ** state["step"]), v / (1 - beta2 ** state["step"])
        update = corrected[0] / (corrected[1].sqrt() + group["eps"]) + group["weight_decay"] * param
        norm, length = param.norm(), update.norm()
        param -= group["lr"] * (norm / length if norm > 0 and length > 0 else 1.0) * update


EXACT: dict[str, Any] = {"Lion": ExactLion, "LAMB": ExactLAMB}


@st.composite
def optimizer_options(draw: Draw) -> tuple[str, dict[str, Any]]:
    names = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Lion", "LAMB")
    name = draw(st.sampled_from(names))
    options: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.01, 0.1])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "maximize": draw(st.booleans()),
    }
    if name in ("RMSprop", "Adagrad", "Adadelta"):
        return name, {**options, "eps": draw(st.sampled_from([1e-6, 1e-3]))}
    if name != "SGD":
        options["betas"] = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9)]))
        if name == "LAMB":
            options["eps"] = draw(st.sampled_from([1e-6, 1e-3]))
        if name in ("Adam", "AdamW"):
            options["eps"], options["amsgrad"] = draw(st.sampled_from([1e-8, 1e-3])), draw(st.booleans())
        return name, options
    options["momentum"] = draw(st.sampled_from([0.0, 0.9]))
    if options["momentum"]:
        options["nesterov"] = draw(st.booleans())
        options["dampening"] = 0.0 if options["nesterov"] else draw(st.sampled_from([0.0, 0.3]))
    return name, options


@given(st.data())
def test_optimizers(device: str, data: st.DataObject) -> None:
    draw, (name, options) = data.draw, data.draw(optimizer_options())
    params: list[Tensor] = [
        draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes), differentiable=False, dense=True)).requires_grad_()
        for _ in range(draw(st.integers(1, 4)))
    ]
    exact = [param.detach().double().requires_grad_() for param in params]
    # 16-bit tensors round at every step, so each of their steps starts from our parameters.
    narrow = [param.dtype is not torch.float32 for param in params]
    optimizer = getattr(optim, name)(params, **options)
    expected = (EXACT.get(name) or getattr(torch.optim, name))(exact, **options)
    frozen = [draw(st.integers(0, 5)) == 0 for _ in params]
    note(f"{name}, {options}, frozen {frozen}")
    for _ in range(3):
        for param, other, is_narrow, is_frozen in zip(params, exact, narrow, frozen, strict=True):
            if is_frozen:
                continue
            param.grad = draw(tensors(device, param.shape, param.dtype, differentiable=False))
            other.grad = param.grad.double()
            if is_narrow:
                other.data.copy_(param.detach())
                for key, value in optimizer.state[param].items():
                    if key not in ("step", "mu_product"):
                        expected.state[other][key].copy_(value)
        gradients = [param.grad for param in params if param.grad is not None]
        before = [snapshot(gradient) for gradient in gradients]
        with counted_launches() as launches:
            optimizer.step()
        expected.step()
        assert launches or not any(gradient.numel() for gradient in gradients)
        for gradient, old in zip(gradients, before, strict=True):
            assert torch.equal(snapshot(gradient), old), "a gradient was changed"
        for param, other in zip(params, exact, strict=True):
            error = 20 * UNIT[torch.float32] if param.dtype is torch.float32 else 2 * UNIT[param.dtype]
            assert_near(param, other, error, 1.0, "parameter")
            for key, value in expected.state.get(other, {}).items():
                assert_near(optimizer.state[param][key], value, error, 0.1, key)


@given(st.data())
def test_clipping(device: str, data: st.DataObject) -> None:
    draw = data.draw
    params = [
        torch.zeros(draw(shapes(0, 3, 17)), dtype=draw(dtypes), device=device) for _ in range(draw(st.integers(1, 4)))
    ]
    exact = [param.double() for param in params]
    for param, other in zip(params, exact, strict=True):
        values = draw(sometimes_non_finite)
        param.grad = draw(tensors(device, param.shape, param.dtype, values, differentiable=False, dense=True))
        if 0 in param.grad.stride() and param.numel() > 1:  # expanded: cannot be written
            param.grad = param.grad.clone()
        other.grad = param.grad.double()
    limit, norm_type = draw(st.sampled_from([0.1, 1.0, 100.0])), draw(st.sampled_from([1.0, 2.0, 3.0, math.inf]))
    error = {param.dtype: 4 * UNIT[param.dtype] for param in params}
    if draw(st.booleans()):
        clip_grad_value_(params, limit)
        torch.nn.utils.clip_grad_value_(exact, limit)
    else:
        full = [other for other in exact if other.numel()]  # PyTorch knows no infinity norm of nothing
        assume(full)
        norm = clip_grad_norm_(params, limit, norm_type)
        expected = torch.nn.utils.clip_grad_norm_(full, limit, norm_type)
        if norm_type == 3.0:  # PyTorch's function, which rounds norms to each gradient's dtype
            error = dict.fromkeys(error, 1e-2)
        assert_near(norm, expected, 1e-2 if norm_type == 3.0 else 1e-5, 1e-3, "norm")
    for param, other in zip(params, exact, strict=True):
        assert param.grad is not None and other.grad is not None
        assert_near(param.grad, other.grad, error[param.dtype], 1e-3, "gradient")
