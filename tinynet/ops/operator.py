"""Registered operators: a column's launchers under `torch.library`, from one description.

`torch.compile`, `torch.export` and dispatch modes such as `FlopCounterMode` can't look into a launch. They see an
operator `tinynet::NAME` and its gradient `tinynet::NAME_backward`, and learn from the description what both return and
how much they compute. Eager calls launch without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tinynet.ops.autograd import gradients_of, held, hold

# What a function below returns: one tensor for each result or gradient, None for one that is absent.
Tensors = Sequence[Tensor | None]


class Operator:
    """tinynet::NAME and tinynet::NAME_backward.

    In a graph every result is a tensor: one that is absent (None in the functions below) is empty there.

    Args:
        schema: name, arguments and results, as in "linear(Tensor x, Tensor weight, Tensor? bias, str name, bool save)
            -> (Tensor, Tensor)": first the tensors, then the settings, last "bool save", whether a backward follows.
        forward: the results, of the arguments. The first `outputs` of them are differentiable.
        fake: the same results without their values.
        saves: the tensors that the backward reads, of (arguments, results).
        backward: one gradient for each tensor argument, of (upstream gradients, saved tensors, *settings, wanted).
        fake_backward: the same without values; None where each gradient is like the saved tensor at its position.
        reference: the differentiable outputs in plain PyTorch, of the tensors and the settings: it serves what
            `backward` does not, such as second derivatives.
        flops: multiplications and additions in matrix products, of (wanted, *tensors and settings); `wanted` is None
            for the forward, and for the backward the saved tensors come first. None counts none.
        outputs: how many results are differentiable.
    """

    def __init__(
        self,
        schema: str,
        *,
        forward: Callable[..., Tensors],
        fake: Callable[..., Tensors],
        saves: Callable[[Sequence[Any], Sequence[Tensor]], Tensors],
        backward: Callable[..., Tensors],
        reference: Callable[..., Any],
        fake_backward: Callable[..., Tensors] | None = None,
        flops: Callable[..., int] | None = None,
        outputs: int = 1,
    ) -> None:
        name, signature = schema.split("(", 1)
        arguments, results = signature.split(") -> ")
        kinds = arguments.split(", ")
        tensors = sum(kind.startswith("Tensor") for kind in kinds)
        settings = "".join(f", {kind}" for kind in kinds[tensors:-1])
        single = not results.startswith("(")

        def run(*arguments: Any) -> Any:
            made = _present(forward(*arguments), arguments[0])
            return made[0] if single else made

        def pretend(*arguments: Any) -> Any:
            made = _present(fake(*arguments), arguments[0])
            return made[0] if single else made

        def run_backward(grads: list[Tensor], saved: list[Tensor | None], *rest: Any) -> list[Tensor]:
            return list(_present(backward(grads, _absent(saved), *rest), grads[0]))

        def pretend_backward(grads: list[Tensor], saved: list[Tensor | None], *rest: Any) -> list[Tensor]:
            return list(_present((fake_backward or like_saved)(grads, _absent(saved), *rest), grads[0]))

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            made = (output,) if single else output
            ctx.save_for_backward(*saves(inputs, made))
            ctx.given = hold(*inputs[:tensors])
            ctx.settings = inputs[tensors:-1]
            ctx.mark_non_differentiable(*made[outputs:])

        def differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            wanted = list(ctx.needs_input_grad[:tensors])
            upstream = list(grads[:outputs])
            if torch.is_grad_enabled():
                gradients = gradients_of(lambda *x: reference(*x, *ctx.settings), held(ctx.given), wanted, upstream)
            else:
                made = self.backward(upstream, list(ctx.saved_tensors), *ctx.settings, wanted)
                gradients = [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]
            return (*gradients, *[None] * (len(kinds) - tensors))

        define = torch.library.custom_op
        self.forward = define(f"tinynet::{name}", run, mutates_args=(), schema=f"({arguments}) -> {results}")
        self.forward.register_fake(pretend)
        self.forward.register_autograd(differentiate, setup_context=setup_context)
        self.backward = define(
            f"tinynet::{name}_backward",
            run_backward,
            mutates_args=(),
            schema=f"(Tensor[] grads, Tensor?[] saved{settings}, bool[] wanted) -> Tensor[]",
        )
        self.backward.register_fake(pretend_backward)
        if flops is not None:
            operators = torch.ops.tinynet
            _FORMULAS[getattr(operators, name)] = lambda *given, out_val: flops(None, *given)
            _FORMULAS[getattr(operators, f"{name}_backward")] = lambda grads, saved, *rest, out_val: flops(
                rest[-1], *saved, *rest[:-1]
            )

    def __call__(self, *arguments: Any) -> Any:
        """The results of these arguments, in the schema's order."""
        _tell_flop_counters()
        return self.forward(*arguments)


# How much each operator computes, in the form that `torch.utils.flop_counter` takes.
_FORMULAS: dict[Any, Callable[..., int]] = {}


def _tell_flop_counters() -> None:
    """Gives the formulas to PyTorch's counters, those at work too. To import their module would import Triton."""
    if "torch.utils.flop_counter" not in sys.modules or torch.compiler.is_compiling():
        return
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    flop_registry.update(_FORMULAS)
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry.update(_FORMULAS)


def _present(results: Tensors, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if result is None else result for result in results)


def _absent(saved: Tensors) -> list[Tensor | None]:
    return [tensor if tensor is not None and tensor.numel() else None for tensor in saved]


def contiguous_like(x: Tensor) -> Tensor:
    """A contiguous tensor of x's shape, without its values."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def like_saved(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> list[Tensor | None]:
    """A `fake_backward`: each gradient is like the saved tensor at its position."""
    wanted = rest[-1]
    return [torch.empty_like(x) if want else None for x, want in zip(saved, wanted, strict=False)]
