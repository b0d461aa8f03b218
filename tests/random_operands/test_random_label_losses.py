"""Losses of labels and of vectors, and distances, on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import check
from random_tensors import CONSTANT, dtypes, normal, positive, shapes, sizes, sometimes_non_finite, spread, tensors
from torch import Tensor

from tinynet import functional
from tinynet.ops.arguments import REDUCTIONS
from tinynet.ops.cross_entropy import cross_entropy
from tinynet.ops.distance import cosine_embedding_loss, cosine_similarity, pairwise_distance, triplet_margin_loss
from tinynet.ops.linear_cross_entropy import linear_cross_entropy
from tinynet.ops.margin_loss import multi_margin_loss, multilabel_margin_loss
from tinynet.ops.nll_loss import nll_loss

pytestmark = pytest.mark.kernels


def probabilities(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).softmax(min(1, len(shape) - 1))


@given(st.data())
def test_cross_entropy(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    classes, lead, rest = draw(sizes(129)), draw(st.lists(sizes(33), max_size=1)), []
    if lead:
        rest = draw(st.lists(sizes(5), max_size=2))
    options = {
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
    }
    if draw(st.booleans()):
        target = draw(tensors(device, [*lead, classes, *rest], dtype, probabilities))
    else:
        integer = draw(st.sampled_from([torch.int64, torch.uint8]))
        target = draw(
            tensors(device, [*lead, *rest], integer, partial(torch.randint, 0, classes), differentiable=False)
        )
        options["ignore_index"] = draw(st.sampled_from([-100, 0, classes - 1]))
    weight = draw(st.booleans()) and draw(tensors(device, [classes], dtype, positive, differentiable=False))
    rows = math.prod([*lead, *rest])
    check(
        draw,
        partial(cross_entropy, **options),
        lambda x, target, weight: F.cross_entropy(
            x, target if target.is_floating_point() else target.long(), weight, **options
        ),
        draw(tensors(device, [*lead, classes, *rest], dtype, draw(sometimes_non_finite))),
        target,
        weight if isinstance(weight, Tensor) else None,
        lengths=(1 if options["reduction"] == "none" else rows * classes, classes, 1),
        magnitude=1 / rows if options["reduction"] == "mean" else 1.0,
    )


@given(st.data())
def test_nll_loss(device: str, data: st.DataObject) -> None:
    draw, dtype, classes, rows = data.draw, data.draw(dtypes), data.draw(sizes(129)), data.draw(sizes(33))
    inner = draw(st.lists(sizes(5), max_size=2))
    options = {"reduction": draw(st.sampled_from(REDUCTIONS)), "ignore_index": draw(st.sampled_from([-100, 0]))}
    total = rows * math.prod(inner)
    check(
        draw,
        partial(nll_loss, **options),
        partial(F.nll_loss, **options),
        draw(tensors(device, [rows, classes, *inner], dtype, draw(sometimes_non_finite))),
        draw(tensors(device, [rows, *inner], torch.int64, partial(torch.randint, 0, classes), **CONSTANT)),
        draw(tensors(device, [classes], dtype, positive, **CONSTANT)) if draw(st.booleans()) else None,
        lengths=(1 if options["reduction"] == "none" else total,),
        magnitude=1 / total if options["reduction"] == "mean" else 1.0,
    )


@given(st.data())
def test_margin_losses(device: str, data: st.DataObject) -> None:
    draw, dtype, classes, rows = data.draw, data.draw(dtypes), data.draw(sizes(129)), data.draw(sizes(33))
    reduction = draw(st.sampled_from(REDUCTIONS))
    x, weight = draw(tensors(device, [rows, classes], dtype)), None
    if draw(st.booleans()):
        several = partial(torch.randint, -1, classes)
        target = draw(tensors(device, [rows, classes], torch.int64, several, **CONSTANT))
        functions = multilabel_margin_loss, F.multilabel_margin_loss
    else:
        target = draw(tensors(device, [rows], torch.int64, partial(torch.randint, 0, classes), **CONSTANT))
        weight = draw(tensors(device, [classes], dtype, positive, **CONSTANT)) if draw(st.booleans()) else None
        p = draw(st.sampled_from([1, 2]))
        functions = partial(multi_margin_loss, p=p), partial(F.multi_margin_loss, p=p)

    def of(function: Any) -> Any:
        return lambda x, target, *more: function(x, target, reduction=reduction, **dict(zip(["weight"], more)))  # noqa: B905

    check(
        draw,
        of(functions[0]),
        of(functions[1]),
        x,
        target,
        *([] if weight is None else [weight]),
        lengths=(16 if reduction == "none" else rows * 16, classes),
        magnitude=1 / rows if reduction == "mean" else 1.0,
    )


@given(st.data())
def test_distances(device: str, data: st.DataObject) -> None:
    draw, dtype, shape = data.draw, data.draw(dtypes), data.draw(shapes(1, 4, 17))
    shape = [max(size, 1) for size in shape]
    others = [size if draw(st.integers(0, 5)) or not axis else 1 for axis, size in enumerate(shape)]
    first, second = draw(tensors(device, shape, dtype)), draw(tensors(device, others, dtype))
    if draw(st.booleans()):
        options: dict[str, Any] = {"dim": draw(st.integers(-len(shape), len(shape) - 1)), "eps": 0.1}
        functions: tuple[Any, Any] = cosine_similarity, F.cosine_similarity
    else:
        options = {"p": draw(st.sampled_from([1.0, 2.0, 3.0])), "eps": 0.1, "keepdim": draw(st.booleans())}
        functions = pairwise_distance, F.pairwise_distance
    repeats = math.prod(shape) // math.prod(others)
    ours, theirs = (partial(function, **options) for function in functions)
    check(draw, ours, theirs, first, second, lengths=(shape[-1], 64, 64 * repeats))


@given(st.data())
def test_losses_of_vectors(device: str, data: st.DataObject) -> None:
    draw, dtype, rows, length = data.draw, data.draw(dtypes), data.draw(sizes(33)), data.draw(sizes(65))
    reduction, is_cosine = draw(st.sampled_from(REDUCTIONS)), draw(st.booleans())
    # The gradient of a cosine is large where a vector is short.
    make = partial(tensors, device, [rows, length], dtype, spread if is_cosine else normal)
    operands: list[Tensor] = [draw(make()), draw(make())]
    if is_cosine:
        signs = lambda shape, generator: 2 * torch.randint(2, shape, generator=generator) - 1  # noqa: E731
        operands.append(draw(tensors(device, [rows], torch.int64, signs, **CONSTANT)))
        functions, options = (cosine_embedding_loss, F.cosine_embedding_loss), {"margin": -1.5}
    else:
        operands.append(draw(make()))
        functions, options = (
            (triplet_margin_loss, F.triplet_margin_loss),
            {"margin": 100.0, "swap": draw(st.booleans())},
        )
    ours, theirs = (partial(function, reduction=reduction, **options) for function in functions)
    magnitude = 100.0 if "swap" in options else 1.0
    lengths = (1 if reduction == "none" else rows, length, length, length)
    check(draw, ours, theirs, *operands, lengths=lengths, magnitude=magnitude / (rows if reduction == "mean" else 1))


@given(st.data())
def test_triplet_margin_with_distance_loss(device: str, data: st.DataObject) -> None:
    draw, dtype, rows, length = data.draw, data.draw(dtypes), data.draw(sizes(33)), data.draw(sizes(65))
    reduction, power = draw(st.sampled_from(REDUCTIONS)), draw(st.sampled_from([1.0, 2.0]))
    options = {"margin": 100.0, "swap": draw(st.booleans()), "reduction": reduction}

    def call(library: Any, *operands: Tensor) -> Tensor:
        distance = partial(library.pairwise_distance, p=power)
        return library.triplet_margin_with_distance_loss(*operands, distance_function=distance, **options)

    check(
        draw,
        partial(call, functional),
        partial(call, F),
        *(draw(tensors(device, [rows, length], dtype)) for _ in range(3)),
        # Each distance is rounded.
        lengths=(4 if reduction == "none" else 4 * rows, *[length] * 3),
        magnitude=100.0 / (rows if reduction == "mean" else 1),
    )


@given(st.data())
def test_linear_cross_entropy(device: str, data: st.DataObject) -> None:
    draw, dtype, rows, K, classes = data.draw, data.draw(dtypes), *(data.draw(sizes(33)) for _ in range(3))
    # In 16 bits the logits are rounded: small ones keep the error of their exponentials small.
    small = lambda shape, generator: torch.randn(shape, generator=generator) / 4 / K**0.5  # noqa: E731
    rest = draw(st.lists(sizes(3), max_size=1))
    options: dict[str, Any] = {
        "reduction": draw(st.sampled_from(REDUCTIONS)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
    }
    if draw(st.booleans()):
        target = draw(tensors(device, [rows, classes, *rest], dtype, probabilities))
    else:
        target = draw(tensors(device, [rows, *rest], torch.int64, partial(torch.randint, 0, classes), **CONSTANT))
        options["ignore_index"] = draw(st.sampled_from([-100, 0]))
    weight = draw(tensors(device, [classes], dtype, positive, **CONSTANT)) if draw(st.booleans()) else None
    note(f"{options}")

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factors: Tensor | None) -> Tensor:
        logits = F.linear(x, weight.flatten(0, -2), None if bias is None else bias.flatten())
        return F.cross_entropy(logits.unflatten(1, (classes, *rest)), target, factors, **options)

    count = rows * math.prod(rest)
    summed = 1 if options["reduction"] == "none" else count
    check(
        draw,
        lambda x, weight, bias, target, factors: linear_cross_entropy(
            x, weight, target, linear_bias=bias, weight=factors, **options
        ),
        reference,
        draw(tensors(device, [rows, K], dtype)),
        draw(tensors(device, [classes, *rest, K], dtype, small)),
        draw(tensors(device, [classes, *rest], dtype)) if draw(st.booleans()) else None,
        target,
        weight,
        lengths=(4 * summed, classes * math.prod(rest), count, count, 4),
        magnitude=1 / count if options["reduction"] == "mean" else 1.0,
        gradients_in_forward=options["reduction"] != "none",
    )


@given(st.data())
def test_ctc_loss(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    T, N, C, S = draw(sizes(17)), draw(sizes(5)), draw(sizes(33, least=2)), draw(sizes(9))
    make = partial(tensors, device, differentiable=False)
    blank = draw(st.integers(0, C - 1))

    def labels(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return (torch.randint(1, C, shape, generator=generator) + blank) % C

    targets = draw(make((N, S), draw(st.sampled_from([torch.int32, torch.int64])), labels))
    given_lengths = [draw(st.lists(st.integers(0, most), min_size=N, max_size=N)) for most in (T, S)]
    options = {"blank": blank, "reduction": draw(st.sampled_from(REDUCTIONS)), "zero_infinity": draw(st.booleans())}
    note(f"{given_lengths}, {options}")

    def call(function: Callable[..., Tensor], x: Tensor) -> Tensor:
        steps, lengths = map(torch.tensor, given_lengths)
        return function(x, targets, steps, lengths, **options)

    def log_probabilities(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).log_softmax(-1)

    x = draw(tensors(device, (T, N, C), dtype, log_probabilities))
    error = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    check(draw, partial(call, functional.ctc_loss), partial(call, F.ctc_loss), x, error=error)
