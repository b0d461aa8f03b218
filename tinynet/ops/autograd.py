"""What all our autograd functions share.

A backward through kernels reads plain upstream gradients and returns gradients without a history. Where more is needed
(`create_graph=True`, batched gradients, a lazy or wrapped upstream gradient), PyTorch's own operators compute them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tinynet.dispatch import is_plain_eager
from tinynet.ops.arguments import without_autocast

Backward = Callable[..., Any]


class EagerFunction(torch.autograd.Function):
    """An autograd function that is only applied to plain tensors, outside of function transforms.

    Attributes:
        run: `apply`, without its search for function transforms and for their tensors, which takes 2 us.
    """

    run: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.run = super(torch.autograd.Function, cls).apply  # pyright: ignore[reportAttributeAccessIssue]


def through_kernels(in_pytorch: Backward) -> Callable[[Backward], Backward]:
    """Makes the decorated `backward(ctx, *grads)` one for first derivatives alone.

    Args:
        in_pytorch: takes the same and returns the same gradients, computed by PyTorch's own operators from tensors that
            know their history. Inputs past the end of what it returns get no gradient.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def run(ctx: Any, *grads: Tensor | None) -> Any:
            if not torch.is_grad_enabled() and is_plain_eager(*grads):
                return backward(ctx, *grads)
            gradients = in_pytorch(ctx, *grads)
            return (*gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients)))

        return run

    return decorate


def gradients_of(
    function: Callable[..., Any], inputs: Sequence[Any], wanted: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `function(*inputs)`, which can be differentiated again where autograd records.

    Args:
        function: takes the inputs; returns a tensor or a tuple of tensors (or None).
        inputs: tensors, and whatever else it takes.
        wanted: which of them need a gradient.
        grads: upstream, one per output; None for zeros.

    Returns:
        One per input, None where not wanted or where `function` doesn't depend on it.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(next(grad for grad in grads if grad is not None)):
        # One alias per input: a tensor may be given twice, and the gradients end here.
        given = [
            (x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()) if want else x
            for x, want in zip(inputs, wanted, strict=True)
        ]
        outputs = function(*given)
        pairs = [
            (y, grad)
            for y, grad in zip(outputs if isinstance(outputs, tuple) else (outputs,), grads, strict=False)
            if y is not None and grad is not None and y.requires_grad
        ]
        results = torch.autograd.grad(
            [y for y, _ in pairs],
            [x for x, want in zip(given, wanted, strict=True) if want],
            [grad for _, grad in pairs],
            create_graph=again,
            allow_unused=True,
        )
    remaining = iter(results)
    return [next(remaining) if want else None for want in wanted]


def hold(*tensors: Tensor | None) -> list[tuple[Tensor | None, int]]:
    """Inputs that first derivatives don't read, with their versions, to be left on `ctx`.

    Autograd's own saving would refuse first derivatives after a change in place that PyTorch's layers allow.
    """
    return [(tensor, 0 if tensor is None else tensor._version) for tensor in tensors]


def held(pairs: list[tuple[Tensor | None, int]]) -> list[Any]:
    """The tensors given to `hold`.

    Raises:
        RuntimeError: one was changed in place since.
    """
    for tensor, version in pairs:
        if tensor is not None and tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"tensor of shape {list(tensor.shape)} is at version {tensor._version}; expected version {version}"
            )
    return [tensor for tensor, _ in pairs]
