"""One description per operator: its kernels for eager calls, and the same kernels under `torch.library`.

`torch.compile`, `torch.export` and dispatch modes such as `FlopCounterMode` can't look into a launch. They see an
operator `tinynet::NAME` and its gradient `tinynet::NAME_backward`, and learn from the description what both return and
how much they compute. Eager calls launch directly, in one autograd function that all operators share; those that need
more than a description can say (chains, several memory orders) have a function of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tinynet.dispatch import Route
from tinynet.ops.arguments import needs_gradient
from tinynet.ops.autograd import EagerFunction, gradients_of, held, hold, through_kernels
from tinynet.ops.settings import setting_of

# What a function below returns: one tensor for each result or gradient, None for one that is absent.
Tensors = Sequence[Tensor | None]
NAMESPACE = "tinynet"  # of torch.ops


class Operator:
    """A differentiable operator whose forward and backward launch kernels.

    Example:
        >>> glu_operator = Operator(
        ...     "glu(Tensor x, int dim) -> Tensor",
        ...     forward=lambda x, dim, save: [kernels.glu_forward(x, dim)],
        ...     fake=lambda x, dim, save: [contiguous_like(x.chunk(2, dim)[0])],
        ...     saves=lambda given, results: given[:1],
        ...     backward=lambda grads, saved, dim, wanted: [kernels.glu_backward(grads[0], saved[0], dim)],
        ...     reference=F.glu,
        ... )
        >>> glu_operator(route("glu", ("input",), x), x, -1)

    Args:
        schema: name, arguments and results, as in "linear(Tensor x, Tensor weight, Tensor? bias, Activation activation)
            -> (Tensor, Tensor)": first the tensors, then the settings, each of a type of PyTorch's schemas or of
            `settings.py`. Lists reach the functions as tuples.
        forward: the results, of the arguments and `save`, whether a backward follows. The first `outputs` of them are
            differentiable.
        fake: the same results without their values.
        saves: the tensors that the backward reads, of (arguments, results).
        backward: one gradient for each tensor argument, of (upstream gradients, saved tensors, *settings, wanted). Of
            several outputs those that were not used may have None for an upstream gradient.
        fake_backward: the same without values; None where each gradient is like the saved tensor at its position.
        reference: the differentiable outputs in plain PyTorch, of the tensors and the settings: it serves what no
            kernel does, such as second derivatives.
        flops: multiplications and additions in matrix products, of (wanted, *tensors and settings); `wanted` is None
            for the forward, and for the backward the saved tensors come first. None counts none.
        outputs: how many results are differentiable.
        returned: how many results a call returns, those included; None for just these.
    """

    def __init__(
        self,
        schema: str,
        *,
        forward: Callable[..., Tensors],
        fake: Callable[..., Tensors],
        saves: Callable[[Sequence[Any], Sequence[Any]], Tensors],
        backward: Callable[..., Tensors],
        reference: Callable[..., Any],
        fake_backward: Callable[..., Tensors] | None = None,
        flops: Callable[..., int] | None = None,
        outputs: int = 1,
        returned: int | None = None,
    ) -> None:
        name, signature = schema.split("(", 1)
        arguments, results = signature.split(") -> ")
        kinds = arguments.split(", ")
        self.tensors = sum(kind.startswith("Tensor") for kind in kinds)
        self.single = not results.startswith("(")
        self.launch_forward, self.launch_backward = forward, backward
        self.saves, self.reference = saves, reference
        self.outputs, self.returned = outputs, returned or outputs
        self.settings = [setting_of(kind) for kind in kinds[self.tensors :]]
        schemas = [setting.schema for setting in self.settings]
        self.forward = self._define(
            name, f"({', '.join([*kinds[: self.tensors], *schemas, 'bool save'])}) -> {results}", forward, fake
        )
        self.forward.register_autograd(self._differentiate, setup_context=self._setup_context)
        self.backward = self._define_backward(f"{name}_backward", schemas, fake_backward or like_saved)
        if flops is not None:
            self._count(name, flops)

    def __call__(self, route: Route, *arguments: Any) -> Any:
        """The returned results of these arguments, in the schema's order: one tensor, or a tuple.

        Args:
            route: who computes.
            arguments: tensors and settings, as `forward` takes them.
        """
        if route is Route.REFERENCE:
            return self.reference(*arguments)
        save = needs_gradient(*arguments[: self.tensors])
        if route is Route.OPERATOR:
            results = self.registered(*arguments, save)
            return results if self.single else self.visible(results)
        if save:
            return _KernelFunction.run(self, *arguments)
        return self.visible(self.launch_forward(*arguments, False))

    def visible(self, results: Sequence[Any]) -> Any:
        """Those of all results that a call returns: one tensor, or a tuple."""
        return results[0] if self.returned == 1 else tuple(results[: self.returned])

    def registered(self, *arguments: Any) -> Any:
        """All results of the operator that PyTorch knows; the last argument is `save`."""
        _tell_flop_counters()
        *settings, save = arguments[self.tensors :]
        encoded = [setting.encode(value) for setting, value in zip(self.settings, settings, strict=True)]
        return self.forward(*arguments[: self.tensors], *encoded, save)

    def _decoded(self, settings: Sequence[Any]) -> list[Any]:
        return [setting.decode(value) for setting, value in zip(self.settings, settings, strict=True)]

    def _define(self, name: str, schema: str, run: Callable[..., Tensors], fake: Callable[..., Tensors]) -> Any:
        def registered(function: Callable[..., Tensors]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                tensors, settings = arguments[: self.tensors], self._decoded(arguments[self.tensors : -1])
                results = _present(function(*tensors, *settings, arguments[-1]), arguments[0])
                return results[0] if self.single else results

            return call

        operator = torch.library.custom_op(f"{NAMESPACE}::{name}", registered(run), mutates_args=(), schema=schema)
        operator.register_fake(registered(fake))
        return operator

    def _define_backward(self, name: str, settings: list[str], fake: Callable[..., Tensors]) -> Any:
        def registered(function: Callable[..., Tensors]) -> Callable[..., list[Tensor]]:
            def call(grads: list[Tensor], saved: list[Tensor | None], *rest: Any) -> list[Tensor]:
                *settings, wanted = rest
                gradients = function(grads, _absent(saved), *self._decoded(settings), wanted)
                return list(_present(_without_repeats(gradients), grads[0]))

            return call

        schema = f"({', '.join(['Tensor[] grads', 'Tensor?[] saved', *settings, 'bool[] wanted'])}) -> Tensor[]"
        run = registered(self.launch_backward)
        operator = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=(), schema=schema)
        operator.register_fake(registered(fake))
        return operator

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = (output,) if self.single else output
        ctx.settings = inputs[self.tensors : -1]
        ctx.save_for_backward(*self.saves([*inputs[: self.tensors], *self._decoded(ctx.settings)], results))
        ctx.given = hold(*inputs[: self.tensors])
        ctx.mark_non_differentiable(*results[self.outputs :])

    def _differentiate(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[: self.tensors])
        upstream = list(grads[: self.outputs])
        if torch.is_grad_enabled():
            gradients = self.in_pytorch(ctx.given, self._decoded(ctx.settings), wanted, upstream)
        else:
            found = self.backward(upstream, list(ctx.saved_tensors), *ctx.settings, wanted)
            gradients = [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
        return (*gradients, *[None] * (len(ctx.settings) + 1))

    def in_pytorch(
        self, given: Any, settings: Sequence[Any], wanted: Sequence[bool], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        return gradients_of(lambda *x: self.reference(*x, *settings), held(given), wanted, grads)

    def _count(self, name: str, flops: Callable[..., int]) -> None:
        def of_backward(grads: Any, saved: Any, *rest: Any, out_val: Any) -> int:
            *settings, wanted = rest
            return flops(wanted, *saved, *self._decoded(settings))

        def of_forward(*given: Any, out_val: Any) -> int:
            return flops(None, *given[: self.tensors], *self._decoded(given[self.tensors : -1]))

        operators = getattr(torch.ops, NAMESPACE)
        _FORMULAS[getattr(operators, name)] = of_forward
        _FORMULAS[getattr(operators, f"{name}_backward")] = of_backward


def _in_pytorch(ctx: Any, *grads: Tensor | None) -> Sequence[Tensor | None]:
    operator = ctx.operator
    wanted = ctx.needs_input_grad[1 : 1 + operator.tensors]
    return None, *operator.in_pytorch(ctx.given, ctx.settings, wanted, grads[: operator.outputs])


class _KernelFunction(EagerFunction):
    """An operator's kernels in an eager call."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, *arguments: Any) -> Any:
        results = operator.launch_forward(*arguments, True)
        ctx.operator, ctx.settings = operator, arguments[operator.tensors :]
        ctx.save_for_backward(*operator.saves(arguments, results))
        ctx.given = hold(*arguments[: operator.tensors])
        if operator.outputs > 1:
            ctx.set_materialize_grads(False)  # None for an output that was not used
        if operator.returned > operator.outputs:
            extra = results[operator.outputs : operator.returned]
            ctx.mark_non_differentiable(*[result for result in extra if result is not None])
        return operator.visible(results)

    @staticmethod
    @through_kernels(_in_pytorch)
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        operator, settings = ctx.operator, ctx.settings
        wanted = ctx.needs_input_grad[1 : 1 + operator.tensors]
        gradients = operator.launch_backward(grads[: operator.outputs], ctx.saved_tensors, *settings, wanted)
        return None, *gradients, *[None] * len(settings)


# How much each operator computes, in the form that `torch.utils.flop_counter` takes.
_FORMULAS: dict[Any, Callable[..., int]] = {}


def _tell_flop_counters() -> None:
    """Gives the formulas to PyTorch's counters, active ones included. To import their module would import Triton."""
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


def _without_repeats(results: Tensors) -> Tensors:
    """A copy in place of a tensor that came before: PyTorch lets no operator return one twice."""
    return [None if x is None else x.clone() if any(x is y for y in results[:i]) else x for i, x in enumerate(results)]


def _absent(saved: Tensors) -> list[Tensor | None]:
    return [tensor if tensor is not None and tensor.numel() else None for tensor in saved]


def contiguous_like(x: Tensor) -> Tensor:
    """A contiguous tensor of x's shape, without its values."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def like_saved(grads: Sequence[Tensor], saved: Sequence[Any], *rest: Any) -> list[Tensor | None]:
    """A `fake_backward`: each gradient is like the saved tensor at its position."""
    wanted = rest[-1]
    return [torch.empty_like(x) if want else None for x, want in zip(saved, wanted, strict=False)]
