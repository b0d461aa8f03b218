"""Activations, gated units and dropouts on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import tolerance
from hypothesis import assume, given, note
from hypothesis import strategies as st
from random_checks import assert_near, check, snapshot
from random_tensors import ACTIVATIONS, dtypes, shapes, sometimes_non_finite, tensors
from torch import Tensor

from tinynet import functional
from tinynet.ops.activation import activate, activation_reference
from tinynet.ops.dropout import alpha_scale
from tinynet.ops.softmax import gumbel_softmax

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:dropout2d")]


@given(st.data())
def test_activation(device: str, data: st.DataObject) -> None:
    draw, function = data.draw, data.draw(st.sampled_from(ACTIVATIONS))
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes), draw(sometimes_non_finite)))
    check(draw, partial(activate, activation=function), partial(activation_reference, activation=function), x)


IN_PLACE: dict[str, tuple[float, ...]] = {
    "relu_": (),
    "leaky_relu_": (-0.3,),
    "elu_": (0.7,),
    "selu_": (),
    "celu_": (1.5,),
    "hardtanh_": (-0.5, 0.25),
    "threshold_": (0.1, 3.0),
    "rrelu_": (0.2, 0.2, True),
}


@given(st.data())
def test_activation_in_place(device: str, data: st.DataObject) -> None:
    """It writes the elements of a view, and no memory between them."""
    draw, name, dtype = data.draw, data.draw(st.sampled_from(sorted(IN_PLACE))), data.draw(dtypes)
    view = draw(tensors(device, draw(shapes(0, 4, 17)), dtype, draw(sometimes_non_finite), differentiable=False))
    assume(all(stride or size == 1 for stride, size in zip(view.stride(), view.shape, strict=True)))
    expected = getattr(F, name)(view.double(), *IN_PLACE[name])
    result = getattr(functional, name)(view, *IN_PLACE[name])
    assert result is view
    assert_near(view, expected, 2 * tolerance(dtype), 1.0, name)
    view.zero_()
    memory = snapshot(view).view(dtype)
    assert memory.isnan().sum() == memory.numel() - view.numel(), "memory between elements was written"


@given(st.data())
def test_glu(device: str, data: st.DataObject) -> None:
    draw, shape = data.draw, data.draw(shapes(1, 4, 17))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    shape = [2 * size if axis == dim % len(shape) else size for axis, size in enumerate(shape)]
    x = draw(tensors(device, tuple(shape), draw(dtypes), draw(sometimes_non_finite)))
    check(draw, partial(functional.glu, dim=dim), partial(F.glu, dim=dim), x)


@given(st.data())
def test_prelu(device: str, data: st.DataObject) -> None:
    draw, shape, dtype = data.draw, data.draw(shapes(1, 4, 17)), data.draw(dtypes)
    slopes = shape[1] if len(shape) > 1 and draw(st.booleans()) else 1
    x = draw(tensors(device, shape, dtype, draw(sometimes_non_finite)))
    weight = draw(tensors(device, (slopes,), dtype))
    check(draw, functional.prelu, F.prelu, x, weight, lengths=(1, 1, math.prod(shape) // max(slopes, 1)))


@given(st.data())
def test_rrelu(device: str, data: st.DataObject) -> None:
    draw = data.draw
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes)))
    slope = draw(st.floats(-1, 1))
    same = partial(functional.rrelu, lower=slope, upper=slope, training=draw(st.booleans()))
    check(draw, same, partial(F.leaky_relu, negative_slope=slope), x)


@given(st.data())
def test_rrelu_of_random_slopes(device: str, data: st.DataObject) -> None:
    draw, lower, width = data.draw, data.draw(st.floats(0.1, 1)), data.draw(st.floats(0.1, 1))
    x = draw(tensors(device, draw(shapes(0, 4, 17)), torch.float32))
    slopes: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        y = functional.rrelu(x, lower, lower + width, training=True)
        slopes.append(torch.where(x < 0, y.detach() / x.detach(), 1.0).double())
        return y

    torch.manual_seed(draw(st.integers(0, 2**20)))
    check(draw, function, lambda x: x * slopes[0], x)
    negative = slopes[0][x.detach() < 0]
    assert ((negative > lower - 1e-5) & (negative < lower + width + 1e-5)).all()


@given(st.data())
def test_dropout(device: str, data: st.DataObject) -> None:
    draw = data.draw
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes)))
    p = draw(st.floats(0.05, 0.95))
    masks = []

    def function(x: Tensor) -> Tensor:
        y = functional.dropout(x, p)
        masks.append((y != 0).double())
        return y

    torch.manual_seed(draw(st.integers(0, 2**20)))
    check(draw, function, lambda x: x * masks[0] / (1 - p), x)


@given(st.data())
def test_alpha_dropout(device: str, data: st.DataObject) -> None:
    draw, p = data.draw, data.draw(st.floats(0.05, 0.95))
    x = draw(tensors(device, draw(shapes(0, 4, 17)), draw(dtypes)))
    seed = draw(st.integers(0, 2**20))

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return functional.alpha_dropout(x, p, training=True)

    # Another tensor of the same strides loses the same elements; there no other has the value of those.
    divisor, shift, dropped = alpha_scale(p)
    threes = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).fill_(3.0)
    kept = (function(threes).double() - dropped).abs() > 0.25
    check(draw, function, lambda x: torch.where(kept, x / divisor + shift, dropped), x)


CHANNEL_DROPOUTS: dict[str, tuple[int, ...]] = {
    "dropout1d": (2, 3),
    "dropout2d": (3, 4),
    "dropout3d": (4, 5),
    "feature_alpha_dropout": (2, 3, 4, 5),
}


@given(st.data())
def test_channel_dropout(device: str, data: st.DataObject) -> None:
    """Each drops the channels that PyTorch drops after the same seed."""
    draw, name = data.draw, data.draw(st.sampled_from(sorted(CHANNEL_DROPOUTS)))
    dimensions = draw(st.sampled_from(CHANNEL_DROPOUTS[name]))
    x = draw(tensors(device, draw(shapes(dimensions, dimensions, 9)), draw(dtypes)))
    seed, p = draw(st.integers(0, 2**20)), draw(st.floats(0.05, 0.95))
    note(f"{name}, p {p}")

    def run(library: Any, x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return getattr(library, name)(x, p, training=True)

    # Of ones in x's dtype, so that both draw alike.
    change = run(F, torch.ones(x.shape, dtype=x.dtype, device=device)).double()
    if name == "feature_alpha_dropout":
        divisor, shift, dropped = alpha_scale(p)
        kept = (change - dropped).abs() > (change - 1 / divisor - shift).abs()
        check(draw, partial(run, functional), lambda x: torch.where(kept, x / divisor + shift, dropped), x)
    else:
        check(draw, partial(run, functional), lambda x: x * (change > 0) / (1 - p), x)


@given(st.data())
def test_gumbel_softmax(device: str, data: st.DataObject) -> None:
    draw, shape = data.draw, data.draw(shapes(1, 4, 17))
    dim, tau = draw(st.integers(-len(shape), len(shape) - 1)), draw(st.sampled_from([0.5, 1.0, 3.0]))
    assume(shape[dim])
    seed, hard = draw(st.integers(0, 2**20)), draw(st.booleans())
    x = draw(tensors(device, shape, torch.float32))

    def reference(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        noise = -torch.empty(shape, dtype=torch.float32, device=device).exponential_().log().double()
        soft = ((x + noise) / tau).softmax(dim)
        if not hard:
            return soft
        return torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0) - soft.detach() + soft

    def function(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return gumbel_softmax(x, tau, hard, dim=dim)

    check(draw, function, reference, x, lengths=(16, 16 * shape[dim]))
