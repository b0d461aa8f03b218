"""Linear layers and embeddings on random operands, against PyTorch in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, note
from hypothesis import strategies as st
from random_checks import check
from random_tensors import (
    dtypes,
    fused_activations,
    normal,
    shapes,
    sizes,
    sometimes_non_finite,
    tensors,
    with_non_finite,
)
from torch import Tensor

from tinynet.ops.activation import activation_reference
from tinynet.ops.activation_like import as_activation
from tinynet.ops.bilinear import bilinear
from tinynet.ops.embedding import embedding
from tinynet.ops.embedding_bag import MODES, embedding_bag
from tinynet.ops.linear import linear

pytestmark = pytest.mark.kernels


@given(st.data())
def test_linear(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    function, values = draw(fused_activations())
    if draw(st.integers(0, 4)) == 0:
        function, values = as_activation(draw(st.sampled_from([None, "relu"]))), with_non_finite
    make = partial(tensors, device, dtype=dtype, values=values)
    lead, K, N = draw(shapes(0, 3, 9)), draw(sizes(129)), draw(sizes(65))
    bias = draw(make([N])) if draw(st.booleans()) else None
    check(
        draw,
        partial(linear, activation=function),
        lambda x, weight, bias: activation_reference(F.linear(x, weight, bias), function),
        draw(make([*lead, K])),
        draw(make([N, K])),
        bias,
        lengths=(K, N, math.prod(lead), math.prod(lead)),
    )


@given(st.data())
def test_bilinear(device: str, data: st.DataObject) -> None:
    draw, dtype = data.draw, data.draw(dtypes)
    function = as_activation(draw(st.sampled_from([None, "tanh", "gelu"])))
    lead, first, second, outputs = draw(shapes(0, 2, 9)), draw(sizes(17)), draw(sizes(17)), draw(sizes(17))
    make = partial(tensors, device, dtype=dtype)
    rows, pairs = math.prod(lead), first * second
    check(
        draw,
        partial(bilinear, activation=function),
        lambda *operands: activation_reference(F.bilinear(*operands), function),
        draw(make([*lead, first])),
        draw(make([*lead, second])),
        draw(make([outputs, first, second])),
        draw(make([outputs])) if draw(st.booleans()) else None,
        # Products of 16-bit pairs are rounded.
        lengths=(4 * pairs, 4 * outputs * second, 4 * outputs * first, 4 * rows, rows),
    )


@given(st.data())
def test_embedding(device: str, data: st.DataObject) -> None:
    draw, rows, columns = data.draw, data.draw(sizes(33)), data.draw(sizes(65))
    integer = draw(st.sampled_from([torch.int32, torch.int64]))
    shape = draw(shapes(0, 3, 9))
    index = draw(tensors(device, shape, integer, partial(torch.randint, 0, rows), differentiable=False))
    options = {
        "padding_idx": draw(st.one_of(st.none(), st.integers(-rows, rows - 1))),
        "scale_grad_by_freq": draw(st.booleans()),
    }
    note(f"{options}")
    check(
        draw,
        partial(embedding, **options),
        partial(F.embedding, **options),
        index,
        draw(tensors(device, [rows, columns], draw(dtypes), draw(sometimes_non_finite))),
        lengths=(1, 1, max(math.prod(shape), 1)),
    )


@given(st.data())
def test_embedding_bag(device: str, data: st.DataObject) -> None:
    draw, rows, columns = data.draw, data.draw(sizes(33)), data.draw(sizes(65))
    mode, dtype = draw(st.sampled_from(MODES)), draw(dtypes)
    integer = draw(st.sampled_from([torch.int32, torch.int64]))
    options: dict[str, Any] = {"mode": mode, "padding_idx": draw(st.one_of(st.none(), st.integers(-rows, rows - 1)))}
    by_frequency = mode != "max" and draw(st.booleans())  # PyTorch has no such maximum
    if draw(st.booleans()):
        shape = [draw(sizes(9, least=0)), draw(sizes(9))]
        longest = shape[1]
    else:
        lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))
        options["include_last_offset"] = draw(st.booleans())
        starts = [0, *lengths] if options["include_last_offset"] else [0, *lengths[:-1]]
        options["offsets"] = torch.tensor(starts, device=device).cumsum(0).to(integer)
        shape, longest = [sum(lengths)], max(lengths)
    index = draw(tensors(device, shape, integer, partial(torch.randint, 0, rows), differentiable=False))
    weighted = mode == "sum" and draw(st.booleans())
    note(f"{options}, by frequency {by_frequency}")

    def ours(index: Tensor, weight: Tensor, factor: Tensor | None) -> Tensor:
        return embedding_bag(index, weight, per_sample_weights=factor, scale_grad_by_freq=by_frequency, **options)

    def reference(index: Tensor, weight: Tensor, factor: Tensor | None) -> Tensor:
        if by_frequency and weight.requires_grad:  # PyTorch's own divides by the counts of other rows
            counts = index.flatten().long().bincount(minlength=rows).clamp(min=1)
            weight = weight.clone()
            weight.register_hook(lambda gradient: gradient / counts.unsqueeze(1))
        return F.embedding_bag(index, weight, per_sample_weights=factor, **options)

    count = max(math.prod(shape), 1)
    check(
        draw,
        ours,
        reference,
        index,
        # A maximum that is NaN depends on the order in PyTorch.
        draw(tensors(device, [rows, columns], dtype, normal if mode == "max" else draw(sometimes_non_finite))),
        draw(tensors(device, shape, dtype)) if weighted else None,
        lengths=(longest, 1, count, columns),
    )
