"""linear_cross_entropy against PyTorch in float64: chunks of rows, every target and option, and its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forced_tiles import forced_tiles
from helpers import DTYPES, assert_close, counted_launches, nan_filled_memory, tolerance
from torch import Tensor

from tinynet import nn
from tinynet.ops.arguments import REDUCTIONS
from tinynet.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_operator

kernels = pytest.mark.kernels

K, C = 20, 11


def chunks_of(rows: int, policy: str = "auto") -> Any:
    """Options as PyTorch's, which older versions lack."""
    adjusted = SimpleNamespace(batch_chunk_size=rows)
    return SimpleNamespace(batch_chunk_size=rows, chunking_method=None, acc_policy=policy, _adjust=lambda *_: adjusted)


def reference(
    x: Tensor, linear_weight: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor | None, **options: Any
) -> Tensor:
    matrix = linear_weight.flatten(0, -2)
    logits = F.linear(x, matrix, None if bias is None else bias.flatten())
    logits = logits.view(*x.shape[:-1], *linear_weight.shape[:-1])
    return F.cross_entropy(logits, target, weight, **options)


def check(
    shape: tuple[int, ...],
    inner: tuple[int, ...] = (),
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    probabilities: bool = False,
    with_bias: bool = True,
    weighted: bool = False,
    chunking: Any = None,
    **options: Any,
) -> list[str]:
    """Compares the loss and every gradient with float64; returns the launches."""
    torch.manual_seed(0)
    lead = shape[:-1]
    bias = torch.randn(C, *inner).requires_grad_() if with_bias else None
    target = torch.randint(C, (*lead, *inner))
    if probabilities:
        target = torch.rand(*lead, C, *inner).softmax(len(lead)).requires_grad_()
    weight = torch.rand(C) + 0.1 if weighted else None
    given = torch.randn(shape, requires_grad=True), torch.randn(C, *inner, K, requires_grad=True), bias, target, weight
    ours: list[Any] = []
    exact: list[Any] = []
    for tensor in given:
        if tensor is None or not tensor.is_floating_point():
            ours.append(None if tensor is None else tensor.to(device))
            exact.append(ours[-1])
        else:
            ours.append(tensor.detach().to(device, dtype).requires_grad_(tensor.requires_grad))
            exact.append(ours[-1].detach().double().requires_grad_(tensor.requires_grad))
    x, linear_weight, bias, target, weight = ours
    with counted_launches() as launches, nan_filled_memory():
        actual = linear_cross_entropy(
            x, linear_weight, target, linear_bias=bias, weight=weight, options=chunking, **options
        )
        grad = torch.randn_like(actual)
        wanted = [i for i, tensor in enumerate(ours) if tensor is not None and tensor.requires_grad]
        gradients = torch.autograd.grad(actual, [ours[i] for i in wanted], grad)
    expected = reference(*exact, **options)
    expected_gradients = torch.autograd.grad(expected, [exact[i] for i in wanted], grad.double())
    assert launches and actual.dtype is dtype
    error = 16 * tolerance(dtype, 4 * shape[0] * K)
    assert_close(actual, expected, error, "loss")
    for i, a, e in zip(wanted, gradients, expected_gradients, strict=True):
        assert a.dtype is dtype
        assert_close(a, e, error, f"gradient of operand {i}")
    return launches


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks(dtype: torch.dtype, reduction: str, device: str) -> None:
    launches = check((37, K), dtype=dtype, device=device, reduction=reduction, chunking=chunks_of(16))
    assert launches.count("linear_cross_entropy_kernel") == (6 if reduction == "none" else 3)
    assert launches.count("linear_weight_gradient_kernel") == launches.count("linear_input_gradient_kernel") == 3


@kernels
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_targets_and_options(reduction: str, device: str) -> None:
    given: dict[str, Any] = {"device": device, "reduction": reduction}
    check((9, K), weighted=True, label_smoothing=0.1, ignore_index=3, with_bias=False, **given)
    check((9, K), probabilities=True, weighted=True, label_smoothing=0.1, chunking=chunks_of(4), **given)
    check((9, K), (3, 2), weighted=True, chunking=chunks_of(4), **given)
    check((9, K), (3,), probabilities=True, **given)
    check((K,), **given)


@kernels
def test_sums_in_the_weights_dtype(device: str) -> None:
    check((37, K), dtype=torch.bfloat16, device=device, chunking=chunks_of(16, "compact"))


@kernels
def test_small_tiles(device: str) -> None:
    from tinynet_kernels.cross_entropy import CrossEntropyTile
    from tinynet_kernels.tiles import GemmTile

    tiles = {"cross_entropy_tile": CrossEntropyTile(2, 4, 4), "linear_tile": GemmTile(16, 16, 16, 4, 1)}
    with forced_tiles(**tiles):
        check((21, K), device=device, chunking=chunks_of(8))
        check((5, K), (3,), device=device, probabilities=True, chunking=chunks_of(4), reduction="none")


@kernels
def test_backward_twice_and_second_derivatives(device: str) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(n, K, device=device, requires_grad=True) for n in (9, C))
    target = torch.randint(C, (9,), device=device)
    loss = linear_cross_entropy(x, weight, target)
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient, expected in zip(torch.autograd.grad(loss * 3, (x, weight), retain_graph=True), kept, strict=True):
        assert_close(gradient, expected * 3, 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    results = []
    for y, pair in ((loss, (x, weight)), (F.cross_entropy(exact[0] @ exact[1].t(), target), exact)):
        (dx,) = torch.autograd.grad(y, pair[0], create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), pair))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-4)


@kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_registered_operator_and_compile(reduction: str, device: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, device=device, requires_grad=True) for shape in ((6, K), (C, K), (C,)))
    target = torch.randint(C, (6, 1), device=device)
    settings = (-100, reduction, 0.1, 4, True)
    torch.library.opcheck(linear_cross_entropy_operator.forward, (x, weight, bias, target, None, *settings, True))
    saved = [x.detach(), weight.detach(), bias.detach(), target, None]
    grad = torch.randn((6, 1) if reduction == "none" else (), device=device)
    wanted = [True, True, True, False, False]
    torch.library.opcheck(linear_cross_entropy_operator.backward, ([grad], saved, *settings, wanted))

    def total(x: Tensor) -> Tensor:
        return linear_cross_entropy(x, weight, target[:, 0], linear_bias=bias, reduction=reduction).sum()

    (expected,) = torch.autograd.grad(total(x), x)
    with counted_launches() as launches:
        torch.compile(total, fullgraph=True, backend="aot_eager")(x).backward()
    assert "linear_cross_entropy_kernel" in launches and x.grad is not None
    torch.testing.assert_close(x.grad, expected)


@kernels
def test_autocast(device: str) -> None:
    x, weight = torch.randn(5, K, device=device, requires_grad=True), torch.randn(C, K, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, weight, torch.zeros(5, dtype=torch.int64, device=device))
    loss.backward()
    assert loss.dtype is torch.float32 and x.grad is not None and x.grad.dtype is torch.float32


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="PyTorch 2.13 has the class")
@kernels
def test_module(device: str) -> None:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4)  # pyright: ignore[reportAttributeAccessIssue]
    arguments: dict[str, Any] = {"out_features": (3,), "bias": True, "weight": torch.rand(C), "label_smoothing": 0.1}
    ours = getattr(nn, "LinearCrossEntropyLoss")(K, C, **arguments, options=options).to(device)  # noqa: B009
    theirs = getattr(torch.nn, "LinearCrossEntropyLoss")(K, C, **arguments).to(device)  # noqa: B009
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, target = torch.randn(9, K, device=device), torch.randint(C, (9, 3), device=device)
    with counted_launches() as launches:
        assert_close(ours(x, target), theirs(x, target), 1e-5)
    assert "linear_cross_entropy_kernel" in launches and list(ours.state_dict()) == list(theirs.state_dict())


GIVEN = {"input": torch.randn(4, 3), "linear_weight": torch.randn(5, 3), "target": torch.tensor([0, 1, 2, 0])}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.randn(())}, ValueError, "expected input"),
        ({"input": torch.randn(4, 2)}, ValueError, "linear_weight must end in 2"),
        ({"input": torch.ones(4, 3).long()}, TypeError, "input must be floating point"),
        ({"linear_weight": torch.randn(5, 3).half()}, TypeError, "linear_weight has dtype"),
        ({"linear_bias": torch.randn(4)}, ValueError, "linear_bias must be"),
        ({"weight": torch.randn(4)}, ValueError, "weight must be"),
        ({"target": torch.zeros(3).long()}, ValueError, "target must be labels"),
        ({"target": torch.zeros(4)}, TypeError, "int64 or uint8"),
        ({"target": torch.zeros(4, 5).long()}, TypeError, "target must be floating point"),
        ({"target": torch.rand(4, 5), "ignore_index": 1}, ValueError, "ignore_index"),
        ({"target": torch.tensor([0, 1, 9, 0])}, IndexError, "[Tt]arget 9"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing"),
        ({"reduction": "all"}, ValueError, "reduction must be"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**GIVEN, **change})
