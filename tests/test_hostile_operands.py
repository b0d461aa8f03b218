"""Every public function and module given operands that are not plain tensors, one at a time.

Each must compute what PyTorch computes from the same values, or refuse with a sentence that names the argument.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from helpers import assert_close
from operand_cases import module, square
from public_cases import ACTIVATIONS, CASES
from representations import ERROR, SAME_VALUES, assert_both_close, gradients, leaves_of, outputs
from torch import Tensor

from tinynet import functional, nn, optim

# Operands whose first dimension is a batch, or the second from the last of a state.
BATCHED = (
    *("input", "hx", "cx", "target", "x1", "x2", "input1", "input2"),
    *("anchor", "positive", "negative", "var", "residual", "indices", "samples", "per_sample_weights"),
)
# Other names by which a message may call an argument.
ALIASES = {
    "hx": ("h0", "hx", "h"),
    "cx": ("c0", "hx", "c"),
    "input": ("input", "x"),
    "samples": ("_random_samples",),
    "anchor": ("anchor", "x1"),  # of the function between them
    "positive": ("positive", "x2"),
    "negative": ("negative", "x2"),
    "weight_ih_l0": ("parameters[0][0]",),
    "weight_hh_l0": ("parameters[0][1]",),
    "bias_ih_l0": ("parameters[0][2]",),
    "bias_hh_l0": ("parameters[0][3]",),
    "weight_ih": ("parameters[0][0]",),
    "weight_hh": ("parameters[0][1]",),
    "bias_ih": ("parameters[0][2]",),
    "bias_hh": ("parameters[0][3]",),
}


def wrapped(x: Tensor) -> Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(x.detach(), x.detach())


def zeros_without_memory(x: Tensor) -> Tensor:
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)  # pyright: ignore[reportPrivateImportUsage]


# Layouts and kinds without gradients here: correct or refused.
OTHER_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "wrapped": wrapped,
    "sparse_coo": lambda x: x.detach().to_sparse(),
    "sparse_csr": lambda x: x.detach().to_sparse_csr() if x.dim() > 1 else x.detach().to_sparse(),
    "mkldnn": lambda x: x.detach().to_mkldnn() if x.is_floating_point() else x.detach().to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor(list(x.detach())),
    "meta": lambda x: x.detach().to("meta"),
    "zero": zeros_without_memory,
    "other_dtype": lambda x: x.detach().long() if x.is_floating_point() else x.detach().float(),
}


def names_of(operand: str) -> tuple[str, ...]:
    return (operand, *ALIASES.get(operand, ()))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of its prototype features
        yield


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_same_values_in_another_guise(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    exact = leaves_of(case, case.operands, torch.float64)
    expected, expected_gradients = gradients(case.twin, exact, exact)
    for operand in case.operands:
        for kind, disguise in SAME_VALUES.items():
            leaves = leaves_of(case, case.operands)
            actual, actual_gradients = gradients(case.function, leaves, {**leaves, operand: disguise(leaves[operand])})
            what = f"{operand} {kind}"
            for a, e in zip(actual, expected, strict=True):
                assert_close(a, e, ERROR, what)
            for a, e in zip(actual_gradients, expected_gradients, strict=True):
                assert_both_close(a, e, f"gradient, {what}")


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_repeated_values_with_stride_0(name: str) -> None:
    torch.manual_seed(1)
    case = CASES[name]()
    for operand, x in case.operands.items():
        for dimension in range(x.dim()):
            repeated = {**case.operands, operand: x.select(dimension, 0).unsqueeze(dimension).expand(x.shape)}
            leaves, exact = leaves_of(case, repeated), leaves_of(case, repeated, torch.float64)
            leaves[operand] = repeated[operand].detach().requires_grad_(leaves[operand].requires_grad)
            actual, actual_gradients = gradients(case.function, leaves, leaves)
            expected, expected_gradients = gradients(case.twin, exact, exact)
            for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
                assert_both_close(a, e, f"{operand}, dimension {dimension}")


@pytest.mark.parametrize("name", CASES)
def test_other_kinds_are_right_or_refused_by_name(name: str) -> None:
    torch.manual_seed(2)
    case = CASES[name]()
    for operand, x in case.operands.items():
        for kind, convert in OTHER_KINDS.items():
            hostile = {**case.operands, operand: convert(x)}
            what = f"{operand} {kind}"
            try:
                with torch.no_grad():
                    actual = outputs(case.function(**hostile))
            except (TypeError, ValueError, RuntimeError) as error:
                said = str(error)
                assert any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", said) for n in names_of(operand)), (what, said)
                assert "\n" not in said, (what, said)
                continue
            plain = torch.zeros_like(x) if kind == "zero" else x
            if kind == "other_dtype" and operand == "target":  # promoted
                plain = convert(x)
            if kind == "meta":
                assert all(y.is_meta for y in actual), what
                continue
            promoted = kind == "other_dtype" and (operand == "target" or not x.is_floating_point())
            assert kind in ("wrapped", "zero") or promoted, what
            for a, e in zip(actual, outputs(case.twin(**{**case.operands, operand: plain})), strict=True):
                assert_close(getattr(a, "a", a), e, ERROR, what)


@pytest.mark.parametrize("name", CASES)
def test_no_elements(name: str) -> None:
    """An empty batch: what PyTorch returns, or an error if PyTorch raises one."""
    if name.lower().replace("_", "").startswith(("multimargin", "multilabelmargin")):
        pytest.skip("PyTorch returns memory that it has not written")
    torch.manual_seed(3)
    case = CASES[name]()
    batch = 1 if name.lower() in ("rnn", "rnn_tanh", "rnn_relu", "lstm", "gru", "conv_tbc") else 0
    empty = {
        key: x.narrow(batch if key == "input" else x.dim() - 2 if key in ("hx", "cx") else 0, 0, 0).clone()
        if key in BATCHED
        else x
        for key, x in case.operands.items()
    }
    leaves, exact = leaves_of(case, empty), leaves_of(case, empty, torch.float64)
    try:
        expected, expected_gradients = gradients(case.twin, exact, exact)
    except (RuntimeError, IndexError):
        with suppress(RuntimeError, ValueError, IndexError):
            gradients(case.function, leaves, leaves)
        return
    actual, actual_gradients = gradients(case.function, leaves, leaves)
    for a, e in zip((*actual, *actual_gradients), (*expected, *expected_gradients), strict=True):
        assert_both_close(a, e, name)


UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    **SAME_VALUES,
    "stride_0": lambda x: x.flatten()[:1].expand(x.numel()).view(x.shape),
    "zero": zeros_without_memory,
}


@pytest.mark.kernels
@pytest.mark.parametrize("name", CASES)
def test_upstream_gradients(name: str) -> None:
    torch.manual_seed(4)
    case = CASES[name]()
    leaves, exact = leaves_of(case, case.operands), leaves_of(case, case.operands, torch.float64)
    y, z = outputs(case.function(**leaves))[0], outputs(case.twin(**exact))[0]
    wanted = [name for name, leaf in leaves.items() if leaf.requires_grad]
    for kind, disguise in UPSTREAM.items():
        upstream = disguise(torch.randn_like(y).detach())
        before = upstream.clone()
        actual = torch.autograd.grad(y, [leaves[n] for n in wanted], upstream, retain_graph=True, allow_unused=True)
        grad = upstream.clone().double()
        expected = torch.autograd.grad(z, [exact[n] for n in wanted], grad, retain_graph=True, allow_unused=True)
        assert torch.equal(upstream.clone(), before), kind
        for n, a, e in zip(wanted, actual, expected, strict=True):
            if a is not None and e is not None:
                assert_both_close(a, e, f"gradient of {n}, upstream {kind}")


@pytest.mark.kernels
@pytest.mark.parametrize("name", [*ACTIVATIONS, "Linear", "mse_loss", "dropout"])
def test_upstream_gradient_in_the_memory_of_an_input(name: str) -> None:
    torch.manual_seed(5)
    case = CASES[name]()
    if name in ("Linear",):
        case = module("Linear", square, 6, 6)
    leaves, exact = leaves_of(case, case.operands), leaves_of(case, case.operands, torch.float64)
    y, z = outputs(case.function(**leaves))[0], outputs(case.twin(**exact))[0]
    upstream = leaves["input"].detach().flatten()[: y.numel()].view(y.shape)
    (actual,) = torch.autograd.grad(y, leaves["input"], upstream)
    (expected,) = torch.autograd.grad(z, exact["input"], upstream.double())
    assert_close(actual, expected, ERROR, "gradient")


WITH_MOMENTUM = ("RMSprop", "SGD")
OPTIMIZERS = (
    *("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "LAMB", "Lion", "Muon", "NAdam", "RAdam"),
    *WITH_MOMENTUM,
)


@pytest.mark.kernels
@pytest.mark.parametrize("name", [*OPTIMIZERS, "Lookahead"])
@pytest.mark.parametrize("kind", [*SAME_VALUES, "zero", "stride_0"])
def test_optimizers(name: str, kind: str) -> None:
    """Gradients against plain ones: of PyTorch's optimizer, or of ours where PyTorch has none or rounds to bfloat16."""

    def build(library: Any, parameters: list[torch.nn.Parameter]) -> Any:
        if name == "Lookahead":
            return optim.Lookahead(optim.SGD(parameters, lr=0.1), k=2)
        options = {"momentum": 0.9} if name in WITH_MOMENTUM else {}
        return getattr(library, name)(parameters, lr=0.1, weight_decay=0.1, **options)

    torch.manual_seed(6)
    start = [torch.randn(4, 6), torch.randn(5, 3) if name == "Muon" else torch.randn(5)]
    parameters, exact = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizer = build(optim, parameters)
    twin = build(torch.optim if hasattr(torch.optim, name) and name != "Muon" else optim, exact)
    for step in range(3):
        plain = [torch.randn_like(x) for x in start]
        for index, (p, q, grad) in enumerate(zip(parameters, exact, plain, strict=True)):
            hostile = UPSTREAM[kind](grad) if (step + index) % 2 else grad
            p.grad, q.grad = hostile, hostile.clone()
        optimizer.step()
        twin.step()
        for p, q in zip(parameters, exact, strict=True):
            assert_close(p, q, 1e-5, f"{kind}, step {step}")


@pytest.mark.kernels
@pytest.mark.parametrize("name", [*OPTIMIZERS, "Lookahead", "EMA"])
@pytest.mark.parametrize("kind", SAME_VALUES)
def test_parameters_in_another_guise(name: str, kind: str) -> None:
    """They are stepped, or averaged, as plain ones are."""
    if kind == "negated" and name in ("Muon", "Lookahead"):
        pytest.skip("PyTorch's fused operators do not write to negated tensors, and say so")
    torch.manual_seed(7)
    start = [torch.randn(4, 6), torch.randn(5, 3)]
    models = [torch.nn.ParameterList([guise(x.clone()) for x in start]) for guise in (SAME_VALUES[kind], torch.clone)]
    if name == "EMA":
        averages = [optim.EMA(model, decay=0.5) for model in models]
        for average, model in zip(averages, models, strict=True):
            average.update_parameters(model)
            with torch.no_grad():
                for p in model:
                    p.mul_(2.0)
            average.update_parameters(model)
        models = [average.module for average in averages]
    else:
        for model in models:
            inner = getattr(optim, "SGD" if name == "Lookahead" else name)
            optimizer = inner(model.parameters(), lr=0.1)
            if name == "Lookahead":
                optimizer = optim.Lookahead(optimizer, k=1)
            for p, x in zip(model, start, strict=True):
                p.grad = x.cos()
            optimizer.step()
    for p, q in zip(*models, strict=True):
        assert_close(p, q, 1e-5, kind)


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
@pytest.mark.parametrize("kind", SAME_VALUES)
def test_clipping(name: str, kind: str) -> None:
    torch.manual_seed(8)
    start = [torch.randn(4, 6), torch.randn(5)]
    clipped = []
    for library, guise in ((nn.utils, SAME_VALUES[kind]), (torch.nn.utils, torch.clone)):
        parameters = [torch.nn.Parameter(torch.zeros_like(x)) for x in start]
        for p, x in zip(parameters, start, strict=True):
            p.grad = guise(x.clone())
        norm = getattr(library, name)(parameters, 0.5)
        clipped.append([*([] if norm is None else [norm]), *(p.grad for p in parameters)])
    for actual, expected in zip(*clipped, strict=True):
        assert_close(actual, expected, 1e-5, kind)


# Names without a case, and why they need none.
WITHOUT_CASE = {
    **dict.fromkeys(
        ("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"),
        "PyTorch's copy_ of what the function without `_` returns",
    ),
    **dict.fromkeys(
        (name for name in nn.__all__ if name.startswith("Lazy")), "becomes the layer of its name without `Lazy`"
    ),
    "gumbel_softmax": "softmax of random numbers",
    "Sequential": "calls its layers",
    "LinearCrossEntropyLoss": "calls linear_cross_entropy with parameters of its own",
    "parameter_groups": "does not read numbers",
}


def test_every_public_name_has_a_case() -> None:
    public = {
        name
        for library in (functional, nn, nn.utils, optim)
        for name in library.__all__
        if getattr(getattr(library, name), "__module__", "").startswith("tinynet.")
    }
    tested = {name.partition("-")[0] for name in CASES} | {*OPTIMIZERS, "Lookahead", "EMA"}
    tested |= {"clip_grad_norm_", "clip_grad_value_"}
    assert not tested & WITHOUT_CASE.keys()
    assert public == tested | (WITHOUT_CASE.keys() & public)
