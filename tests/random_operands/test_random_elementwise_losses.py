"""Losses of each element on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import check
from random_tensors import Draw, Values, dtypes, in_between, normal, shapes, signs, sometimes_non_finite, tensors
from torch import Tensor

from tinynet import functional
from tinynet.ops.arguments import REDUCTIONS

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore:Using a target size"),
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides"),
]

# Each loss in either library, the values of its operands, and how many of them get gradients. No derivative jumps where
# 16-bit values are likely.
ELEMENTWISE: dict[str, tuple[Callable[..., Tensor], list[Values], int]] = {
    "l1": (lambda f, x, t, **o: f.l1_loss(x, t, **o), [normal, normal], 2),
    "hinge": (lambda f, x, t, **o: f.hinge_embedding_loss(x, t, margin=0.7, **o), [normal, signs], 1),
    "ranking": (
        lambda f, x, t, y, **o: f.margin_ranking_loss(x, y, t, margin=0.3, **o),
        [normal, signs, normal],
        3,
    ),
    "mse": (lambda f, x, t, **o: f.mse_loss(x, t, **o), [normal, normal], 2),
    "smooth_l1": (lambda f, x, t, **o: f.smooth_l1_loss(x, t, beta=0.3, **o), [normal, normal], 2),
    "huber": (lambda f, x, t, **o: f.huber_loss(x, t, **o), [normal, normal], 2),
    "bce": (lambda f, x, t, w, **o: f.binary_cross_entropy(x, t, w, **o), [in_between] * 3, 2),
    "logits": (
        lambda f, x, t, w, p, **o: f.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, **o),
        [normal, *[in_between] * 3],
        2,
    ),
    "multilabel": (
        lambda f, x, t, w, **o: f.multilabel_soft_margin_loss(x, t, w, **o),
        [normal, in_between, in_between],
        3,
    ),
    "soft_margin": (lambda f, x, t, **o: f.soft_margin_loss(x, t, **o), [normal, signs], 1),
    "kl_div": (lambda f, x, t, **o: f.kl_div(x, t, **o), [normal, in_between], 2),
    "gaussian": (lambda f, x, t, v, **o: f.gaussian_nll_loss(x, t, v, full=True, **o), [normal, normal, in_between], 3),
    "poisson": (lambda f, x, t, **o: f.poisson_nll_loss(x, t, full=True, **o), [normal, in_between], 2),
}
SAME_SHAPE = ("bce", "logits", "gaussian")  # of input and target
# PyTorch defines their values and gradients for inputs that are not finite.
TAKE_NON_FINITE = ("l1", "mse", "smooth_l1", "huber", "hinge", "soft_margin")


@given(st.data())
def test_elementwise_loss(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    name = draw(st.sampled_from(sorted(ELEMENTWISE)))
    call, values, differentiable = ELEMENTWISE[name]
    shape = draw(shapes(1 if name == "multilabel" else 0, 4, 17))
    reduction = draw(st.sampled_from(REDUCTIONS))
    first = draw(sometimes_non_finite) if name in TAKE_NON_FINITE else values[0]
    operands, repeats = [draw(tensors(device, shape, dtype, first))], [1]
    for position, made in enumerate(values[1:], 1):
        part = list(shape) if name in SAME_SHAPE and position == 1 else broadcast(draw, shape, one=name == "gaussian")
        operands.append(draw(tensors(device, part, dtype, made, differentiable=position < differentiable)))
        repeats.append(math.prod(shape) // max(math.prod(part), 1))
    elements = max(math.prod(shape), 1)
    note(f"{name}, {reduction}")
    check(
        draw,
        partial(call, functional, reduction=reduction),
        partial(call, F, reduction=reduction),
        *operands,
        lengths=(1 if reduction == "none" else elements, *repeats),
        magnitude=1 / elements if reduction == "mean" else 1.0,
    )


def broadcast(draw: Draw, shape: Sequence[int], *, one: bool) -> list[int]:
    """The shape, with 1 for some of its sizes; for `one` of them at most."""
    if one:
        at = draw(st.one_of(st.none(), st.sampled_from(range(len(shape))))) if shape else None
        return [1 if position == at else size for position, size in enumerate(shape)]
    return [size if draw(st.integers(0, 5)) else 1 for size in shape]
