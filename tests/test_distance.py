"""Similarities, distances and the losses of them against PyTorch in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, check_against_reference, counted_launches, non_contiguous, tolerance
from torch import Tensor

from tinynet import nn
from tinynet.ops import distance
from tinynet.ops.arguments import REDUCTIONS
from tinynet.ops.distance import (
    cosine_embedding_loss,
    cosine_similarity,
    pairwise_distance,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)

kernels = pytest.mark.kernels

POWERS = (1.0, 2.0, math.inf, -math.inf, 0.5, 1.5, 3.0, -1.0)
# Shapes of two operands and the dimension of their vectors.
SHAPES = [
    ((9, 70), (9, 70), 1),
    ((3, 5, 4, 2), (3, 5, 4, 2), 1),
    ((3, 1, 8), (1, 4, 8), -1),
    ((2, 3, 4, 5), (4, 5), -1),
    ((7,), (7,), 0),
    ((4, 6), (4, 1), 0),
]


def vectors(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


def check(function: Any, reference: Any, *inputs: Tensor, **options: Any) -> list[str]:
    return check_against_reference(
        lambda *x: function(*x, **options),
        lambda *x: reference(*x, **options),
        *inputs,
        error=32 * tolerance(inputs[0].dtype, 70),
    )


@kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    for first, second, dim in SHAPES if dtype is torch.float32 else SHAPES[:2]:
        pair = [vectors(*shape, dtype=dtype, device=device) for shape in (first, second)]
        check(cosine_similarity, F.cosine_similarity, *pair, dim=dim)
        check(pairwise_distance, F.pairwise_distance, *pair, eps=1e-3, keepdim=dim == 1)


@kernels
@pytest.mark.parametrize("p", POWERS)
def test_powers(p: float, device: str) -> None:
    torch.manual_seed(0)
    pair = vectors(5, 30, device=device), vectors(5, 30, device=device)
    check(pairwise_distance, F.pairwise_distance, *pair, p=p, eps=0.01)


def test_power_0_counts_differences() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert pairwise_distance(x, torch.tensor([[1.0, 0.0, 0.0]]), p=0, eps=0).tolist() == [2]


@kernels
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf, 1.5])
def test_equal_vectors_ties_and_numbers_that_are_not_finite(p: float, device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, device=device)
    y = x.clone()
    y[1:, :2] += 1
    x[3, 2], x[2, 1] = math.nan, math.inf
    results = []
    for function in (pairwise_distance, F.pairwise_distance):
        leaf = x.clone().requires_grad_()
        distances = function(leaf, y, p, 0.0)
        results.append((distances, *torch.autograd.grad(distances.sum(), leaf)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)
    zero = torch.zeros(2, 6, device=device, requires_grad=True)
    check(cosine_similarity, F.cosine_similarity, zero, vectors(2, 6, device=device))


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses(dtype: torch.dtype, reduction: str, device: str) -> None:
    torch.manual_seed(0)
    a, b, c = (vectors(9, 40, dtype=dtype, device=device) for _ in range(3))
    target = torch.tensor([1, -1, 1, -1, -1, 1, 1, -1, 0], device=device)
    options = {"margin": -0.1, "reduction": reduction}
    check(cosine_embedding_loss, F.cosine_embedding_loss, a, b, target, **options)
    check(triplet_margin_loss, F.triplet_margin_loss, a, b, c, reduction=reduction)


@kernels
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_triplets_that_swap(p: float, device: str) -> None:
    torch.manual_seed(0)
    a, b, c = (vectors(3, 4, 12, device=device) for _ in range(3))
    options = {"swap": True, "p": p, "margin": 0.5, "reduction": "none"}
    check(triplet_margin_loss, F.triplet_margin_loss, a, b, c, **options)
    with torch.no_grad():  # |a - n| = |p - n|
        b.copy_(a)
    check(triplet_margin_loss, F.triplet_margin_loss, a, b, c, **options)


@kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_small_tiles(reduction: str, device: str) -> None:
    """Several programs of rows, several blocks of each vector, strides on every axis."""
    from tinynet_kernels.cross_entropy import CrossEntropyTile

    torch.manual_seed(0)
    images = [vectors(2, 3, 2 * 19, device=device).detach().transpose(1, 2)[:, ::2].requires_grad_() for _ in range(2)]
    a, b, c = (non_contiguous(vectors(5, 19, device=device)) for _ in range(3))
    target = torch.tensor([1, -1, 1, -1, 1], device=device)
    with forced_tiles(vectors_tile=CrossEntropyTile(2, 8, 4)):
        check(cosine_similarity, F.cosine_similarity, *images)
        check(pairwise_distance, F.pairwise_distance, a, b)
        check(pairwise_distance, F.pairwise_distance, a, b, p=math.inf)
        check(cosine_embedding_loss, F.cosine_embedding_loss, a, b, target, reduction=reduction)
        check(triplet_margin_loss, F.triplet_margin_loss, a, b, c, swap=True, reduction=reduction)


@kernels
def test_any_distance(device: str) -> None:
    torch.manual_seed(0)
    a, b, c = (vectors(6, 10, device=device) for _ in range(3))

    def farness(x: Tensor, y: Tensor) -> Tensor:
        return 1 - (cosine_similarity if x.dtype is torch.float32 else F.cosine_similarity)(x, y)

    function, reference = triplet_margin_with_distance_loss, F.triplet_margin_with_distance_loss
    for chosen in (None, farness):
        for reduction in REDUCTIONS:
            check(function, reference, a, b, c, distance_function=chosen, swap=True, reduction=reduction)
    check(nn.TripletMarginWithDistanceLoss(swap=True), torch.nn.TripletMarginWithDistanceLoss(swap=True), a, b, c)


@kernels
def test_mixed_dtypes_take_the_wider_one(device: str) -> None:
    x, y = vectors(3, 4, device=device), vectors(3, 4, device=device, dtype=torch.bfloat16)
    assert_close(cosine_similarity(x, y), F.cosine_similarity(x, y.float()), 1e-5)
    assert pairwise_distance(x, y).dtype is torch.float32
    assert triplet_margin_loss(y, y, x).dtype is torch.float32
    with torch.autocast(device, dtype=torch.bfloat16):
        assert triplet_margin_loss(y, y, y).dtype is torch.float32


@kernels
def test_registered_operators(device: str) -> None:
    torch.manual_seed(0)
    x, y = vectors(3, 5, 2, device=device), vectors(3, 2, 5, device=device).transpose(1, 2).detach().requires_grad_()
    rows = [vectors(3, 5, device=device) for _ in range(3)]
    target = torch.tensor([1, -1, 1], device=device)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (distance.cosine_similarity_operator, (y, x, 1e-8)),
        (distance.pairwise_distance_operator, (x, y, 2.0, 1e-6)),
        (distance.cosine_embedding_loss_operator, (*rows[:2], target, 0.1, "none")),
        (distance.triplet_margin_loss_operator, (*rows, 1.0, 2.0, 1e-6, True, "mean")),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.forward, (*arguments, True))
        given = [each.detach() if isinstance(each, Tensor) else each for each in arguments]
        results = operator.registered(*given, True)
        tensors, settings = given[: operator.tensors], given[operator.tensors :]
        saved = list(operator.saves(given, results))
        wanted = [tensor.is_floating_point() for tensor in tensors]
        torch.library.opcheck(operator.backward, ([torch.randn_like(results[0])], saved, *settings, wanted))


@kernels
def test_compiled(device: str) -> None:
    torch.manual_seed(0)
    x, y = vectors(6, 4, device=device), vectors(6, 4, device=device).detach()
    target = torch.ones(6, device=device)

    def total(x: Tensor) -> Tensor:
        losses = cosine_embedding_loss(x, y, target) + triplet_margin_loss(x, y, -y)
        return losses + cosine_similarity(x, y).sum() + pairwise_distance(x, y).sum()

    (expected,) = torch.autograd.grad(total(x), x)
    with counted_launches() as launches:
        torch.compile(total, fullgraph=True, backend="aot_eager")(x).backward()
    assert sum(name.endswith("backward_kernel") for name in launches) == 4 and x.grad is not None
    torch.testing.assert_close(x.grad, expected)


X = torch.randn(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cosine_similarity(X, torch.randn(3, 5)), (ValueError, RuntimeError), "broadcast|must match"),
        (lambda: cosine_similarity(X, X.long()), TypeError, "x2 must be floating point"),
        (lambda: cosine_similarity(X, X, 2), IndexError, "[Dd]im"),
        (lambda: cosine_similarity(X, X, eps=-1), ValueError, "eps must not be negative"),
        (lambda: pairwise_distance(X.long(), X), TypeError, "x1 must be floating point"),
        (lambda: pairwise_distance(X, X.to("meta")), ValueError, "x2 is on meta"),
        (lambda: cosine_embedding_loss(X, X, torch.ones(3, 1)), ValueError, "target \\(3, 1\\)"),
        (lambda: cosine_embedding_loss(X, X, torch.ones(())), ValueError, "expected inputs"),
        (lambda: cosine_embedding_loss(X, X, [1] * 3), TypeError, "target must be a tensor"),  # pyright: ignore
        (lambda: triplet_margin_loss(X, X, X[0]), ValueError, "same number of dimensions"),
        (lambda: triplet_margin_loss(X, X, X, margin=0), ValueError, "margin must be greater"),
        (lambda: triplet_margin_with_distance_loss(X, X, X, margin=0), ValueError, "margin must be greater"),
        (lambda: triplet_margin_with_distance_loss(X, X, X, reduction="all"), ValueError, "reduction must be"),
    ],
)
def test_refuses(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
