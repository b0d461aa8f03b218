"""PyTorch's own samples of its modules, run through every module that `tinynet.nn` computes itself.

Each sample is compared with torch.nn's module in float64: outputs, and the gradients of inputs and parameters for a
random upstream gradient. The samples that PyTorch lists as errors must raise the same kind of error here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, counted_launches, tolerance
from torch import Tensor
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_leaves, tree_map_only

from tinynet import nn

OURS = {
    info.module_cls.__name__: info
    for info in module_db
    if getattr(getattr(nn, info.module_cls.__name__, None), "__module__", "").startswith("tinynet.nn")
}
# The values are of order one; 1 - tanh(x)^2 and its like cancel.
ERROR = 100 * tolerance(torch.float32)

pytestmark = pytest.mark.kernels


def samples(name: str, training: bool) -> list[Any]:
    torch.manual_seed(0)
    make = OURS[name].module_inputs_func
    return make(OURS[name], device="cpu", dtype=torch.float32, requires_grad=True, training=training)


def each_tensor(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """Arguments or results, `function` of each tensor in them."""
    return tree_map_only(Tensor, function, x)


def tensors_of(x: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of x, in `dtype` if it is floating point."""
    copy = x.detach().to(dtype, copy=True) if x.is_floating_point() else x.clone()
    return copy.requires_grad_(x.requires_grad)


def build(name: str, sample: Any, training: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our module and PyTorch's in float64, with the same parameters."""
    arguments, options = sample.constructor_input.args, dict(sample.constructor_input.kwargs)
    for key in ("device", "dtype"):
        options.pop(key, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated arguments
        ours, theirs = (getattr(module, name)(*arguments, **options).train(training) for module in (nn, torch.nn))
    if any(isinstance(parameter, torch.nn.UninitializedParameter) for parameter in theirs.parameters()):
        for module in (ours, theirs):  # a lazy module takes its shapes from its first call
            module(*sample.forward_input.args, **sample.forward_input.kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs.double()


@pytest.mark.parametrize(
    ("name", "training"),
    [
        pytest.param(name, training, id=f"{name}-{'training' if training else 'evaluation'}")
        for name, info in OURS.items()
        for training in ((True, False) if info.train_and_eval_differ else (True,))
    ],
)
def test_samples(name: str, training: bool, device: str) -> None:
    launched = 0
    for sample in samples(name, training):
        ours, theirs = build(name, sample, training)
        ours.to(device)
        given = sample.forward_input.args, sample.forward_input.kwargs
        inputs = each_tensor(lambda x: leaf(x.to(device), torch.float32), given)
        exact = each_tensor(lambda x: leaf(x, torch.float64), given)
        label = f"{name} {sample.desc}"
        with counted_launches() as launches, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(1)
            actual = ours(*inputs[0], **inputs[1])
            torch.manual_seed(1)
            expected = theirs(*exact[0], **exact[1])
            check_outputs(actual, expected, label)
            backward(actual, expected)
        launched += len(launches)
        gradients = zip(leaves_of(inputs, ours), leaves_of(exact, theirs), strict=True)
        for position, (x, e) in enumerate(gradients):
            assert (x.grad is None) == (e.grad is None), f"{label}: gradient {position} is {x.grad}, not {e.grad}"
            if x.grad is not None and e.grad is not None:
                assert_close(x.grad.cpu(), e.grad, ERROR, f"{label}: gradient {position}")
        for buffer, e in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert_close(buffer.cpu(), e, ERROR, f"{label}: buffer")
    assert launched, f"{name}: no kernel was launched by any sample"


def check_outputs(actual: Any, expected: Any, label: str) -> None:
    for y, e in zip(tensors_of(actual), tensors_of(expected), strict=True):
        assert y.is_floating_point() == e.is_floating_point() and y.requires_grad == e.requires_grad, label
        assert_close(y.cpu(), e, ERROR, label)


def backward(actual: Any, expected: Any) -> None:
    """Both backwards, of the same random upstream gradients."""
    pairs = [(y, e) for y, e in zip(tensors_of(actual), tensors_of(expected), strict=True) if e.requires_grad]
    if pairs:
        upstream = [torch.randn_like(e) for _, e in pairs]
        torch.autograd.backward(
            [y for y, _ in pairs], [grad.to(y) for grad, (y, _) in zip(upstream, pairs, strict=True)]
        )
        torch.autograd.backward([e for _, e in pairs], upstream)


def leaves_of(given: Any, module: torch.nn.Module) -> list[Tensor]:
    return [*(x for x in tensors_of(given) if x.is_floating_point()), *module.parameters()]


def error_samples() -> list[Any]:
    found = []
    for name, info in OURS.items():
        if info.module_error_inputs_func is not None:
            options = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": False}
            given = info.module_error_inputs_func(info, **options)
            found += [pytest.param(name, sample, id=f"{name}-{position}") for position, sample in enumerate(given)]
    return found


@pytest.mark.parametrize(("name", "sample"), error_samples())
def test_errors(name: str, sample: Any, device: str) -> None:
    """PyTorch's RuntimeErrors are ValueErrors or TypeErrors here."""
    given = sample.module_error_input
    arguments, options = given.constructor_input.args, given.constructor_input.kwargs
    if sample.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(sample.error_type):
            getattr(nn, name)(*arguments, **options)
        return
    module = getattr(nn, name)(*arguments, **options).to(device)
    args, kwargs = each_tensor(lambda x: x.to(device), (given.forward_input.args, given.forward_input.kwargs))
    with pytest.raises((sample.error_type, ValueError, TypeError)):
        module(*args, **kwargs)
