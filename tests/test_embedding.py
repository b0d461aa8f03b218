"""embedding: look-up and gradient against float64 PyTorch, padding, renormalization, frequency scaling."""

from __future__ import annotations

import pytest
import torch
from forced_tiles import forced_tiles
from helpers import DTYPES, check_against_reference, counted_launches, non_contiguous, tolerance

from tinynet import nn
from tinynet.ops.embedding import (
    embedding,
    embedding_operator,
    embedding_reference,
)

pytestmark = pytest.mark.kernels


def make(V: int, D: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(V + D)
    return torch.randint(0, V, shape, device=device), torch.randn(V, D, device=device).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("V", "D", "shape"), [(1, 1, (1,)), (17, 63, (5, 7)), (9, 129, (2, 3, 17)), (5, 4, ())])
def test_lookup_and_gradient(V: int, D: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    index, weight = make(V, D, shape, dtype, device)
    check_against_reference(embedding, embedding_reference, index, weight, error=tolerance(dtype, index.numel()))


def test_small_tiles(device: str) -> None:
    index, weight = make(6, 19, (5, 4), torch.float32, device)
    with forced_tiles(rows_and_columns=(8, 8, 4)):
        check_against_reference(embedding, embedding_reference, index, non_contiguous(weight), error=1e-6)


def test_more_columns_than_a_block(device: str) -> None:
    index, weight = make(3, 1030, (9,), torch.float32, device)
    check_against_reference(embedding, embedding_reference, index, weight, error=1e-6)


@pytest.mark.parametrize("padding_idx", [0, -1, 3])
@pytest.mark.parametrize("scale", [False, True])
def test_padding_and_frequency(padding_idx: int, scale: bool, device: str) -> None:
    index, weight = make(6, 10, (30,), torch.float32, device)
    check_against_reference(
        lambda i, w: embedding(i, w, padding_idx, scale_grad_by_freq=scale),
        lambda i, w: embedding_reference(i, w, padding_idx, scale),
        index,
        weight,
        error=1e-6,
    )


def test_int32_and_strides(device: str) -> None:
    index, weight = make(8, 12, (4, 6), torch.float32, device)
    for i, w in (
        (index.int(), weight),
        (index.t(), weight),
        (index, non_contiguous(weight)),
        (index, weight.detach().t().contiguous().t().requires_grad_()),
    ):
        check_against_reference(embedding, embedding_reference, i, w, error=1e-6)


def test_max_norm_changes_only_the_requested_rows(device: str) -> None:
    index, weight = make(10, 6, (4,), torch.float32, device)
    ours, theirs = weight.detach().clone(), weight.detach().clone()
    y = embedding(index, ours, max_norm=0.7, norm_type=2.0)
    torch.testing.assert_close(y, torch.nn.functional.embedding(index, theirs, max_norm=0.7))
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, weight.detach())


def test_module_follows_torch_nn(device: str) -> None:
    torch.manual_seed(1)
    ours = nn.Embedding(12, 5, padding_idx=2, max_norm=1.0, scale_grad_by_freq=True, device=device)
    theirs = torch.nn.Embedding(12, 5, padding_idx=2, max_norm=1.0, scale_grad_by_freq=True, device=device)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    index = torch.randint(0, 12, (3, 9), device=device)
    a, b = ours(index), theirs(index)
    torch.testing.assert_close(a, b)
    upstream = torch.randn_like(a)
    a.backward(upstream)
    b.backward(upstream)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_registered_operators_and_compile(device: str) -> None:
    index, weight = make(7, 4, (9,), torch.float32, device)
    torch.library.opcheck(embedding_operator.forward, (index, weight, 7, 2, True, True))
    grad = torch.randn(9, 4, device=device)
    torch.library.opcheck(embedding_operator.backward, ([grad], [index], 7, None, False, [False, True]))
    compiled = torch.compile(lambda i, w: embedding(i, w), fullgraph=True, backend="aot_eager")
    with counted_launches() as launches:
        compiled(index, weight).sum().backward()
    assert launches == ["embedding_forward_kernel", "embedding_backward_kernel"]


def test_refuses(device: str) -> None:
    index, weight = make(7, 4, (9,), torch.float32, device)
    with pytest.raises(ValueError, match="sparse"):
        embedding(index, weight, sparse=True)
    with pytest.raises(ValueError, match="padding_idx must be"):
        embedding(index, weight, padding_idx=7)
    with pytest.raises(TypeError, match="int32 or int64"):
        embedding(index.float(), weight)
    with pytest.raises(ValueError, match=r"weight must be \[V, D\]"):
        embedding(index, weight[0])
    if device == "cpu":
        with pytest.raises(IndexError, match="index 7 is outside the table of 7 rows"):
            embedding(index.clone().fill_(7), weight)
        with pytest.raises(IndexError, match="index -1"):
            embedding(index.clone().fill_(-1), weight)
    assert embedding(index[:0], weight).shape == (0, 4)
