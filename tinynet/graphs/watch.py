"""Watches PyTorch's operators while a step is recorded on the CPU, and refuses those that a replay would miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_structure, tree_unflatten

from tinynet.graphs import arithmetic
from tinynet.graphs.errors import GraphError, TooLargeError
from tinynet.graphs.tensors import address_of

aten = torch.ops.aten
# Their results share memory with an operand.
_VIEWS = {aten.detach, aten.alias, aten._unsafe_view}
# Their results have no values yet.
_UNINITIALIZED = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
# Their results are literals, or depend on nothing but the shape and dtype of an operand.
_FILLED = {
    aten.lift_fresh,
    aten.ones_like,
    aten.zeros_like,
    aten.full_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
}
# They move values and compute none, but for the sums in which autograd collects the gradients of a tensor.
_MOVES = {
    *(aten.clone, aten._to_copy, aten.cat, aten.stack, aten.constant_pad_nd, aten.repeat, aten.roll, aten.flip),
    *(aten.index_select, aten.index_add, aten.index, aten._pack_padded_sequence),
    *(aten.select_backward, aten.slice_backward, aten.diagonal_backward, aten.unfold_backward),
}

# Of single numbers, as where losses are weighted and scaled.
_ARITHMETIC = {aten.add, aten.sub, aten.mul, aten.div, aten.reciprocal, aten.add_, aten.sub_, aten.mul_, aten.div_}
# Computations, besides those of single elements, that may be done again in each run of a function.
_COMPUTATIONS = {
    *(aten.sum, aten.mean, aten.amax, aten.amin, aten.var, aten.std),
    *(aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._softmax, aten._softmax_backward_data),
    *(aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward),
}
_DRAWS = {
    *(aten.bernoulli_, aten.uniform_, aten.normal_, aten.bernoulli),
    *(aten.rand, aten.randn, aten.rand_like, aten.randn_like),
}
# How a GradScaler looks at gradients, and changes its scale.
_SCALING = {aten._amp_foreach_non_finite_check_and_unscale_, aten._amp_update_scale_}


class Watch(TorchDispatchMode):
    """Runs PyTorch's operators while a step is recorded.

    Views and new memory need no replay. Copies, sums of two gradients, arithmetic of single numbers such as losses, and
    a GradScaler's operators are replayed, some as launches (`arithmetic`), the others by PyTorch. A computation whose
    operands are all constants has the same result each time. Everything else is refused.

    Args:
        record: takes a function that each replay is to call, and its operands.
        place: keeps a place for such a function, and returns what puts one there.
        computes: whether PyTorch computes again in each replay, what is not refused in any case: elementwise functions,
            reductions, products, attention and random numbers. Then only memory that the step allocated may be changed.

    Attributes:
        allocated: by address, the memory that the step allocated. It is never freed, for replays use it.
        others: by address, other memory that launches use.
        draws: whether PyTorch's operators draw random numbers in each replay.
        bytes_left: how much more the step may allocate.
    """

    def __init__(
        self, record: Callable[..., None], place: Callable[[], Callable[..., None]], computes: bool = False
    ) -> None:
        super().__init__()
        self.record = record
        self.place = place
        self.computes = computes
        self.draws = False
        self.bytes_left = math.inf
        self.allocated: dict[int, torch.UntypedStorage] = {}
        self.others: dict[int, torch.UntypedStorage] = {}
        self._constants: dict[int, str] = {}  # the operator that computed what is at an address
        # Such a constant, and what puts a function at its place among the launches.
        self._places: dict[int, tuple[Tensor, Callable[..., None]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, structure = tree_flatten((args, kwargs or {}))
        tensors = [each for each in leaves if isinstance(each, Tensor)]
        packet = func.overloadpacket
        if packet is not aten.lift_fresh and (func.is_view or packet in _VIEWS):
            return func(*args, **(kwargs or {}))
        if packet in _UNINITIALIZED:
            return self._add(func(*args, **(kwargs or {})))
        if self.computes and func._schema.is_mutable and not self._owns(args[0]):
            raise GraphError(f"recorded: {func.name()} changes a tensor in place that the function did not create")
        if self.computes and torch.Tag.inplace_view in func.tags:
            return func(*args, **(kwargs or {}))
        is_arithmetic = _is_arithmetic(func, args, tensors)
        if packet is aten.copy_ or packet in _SCALING or (is_arithmetic and func._schema.is_mutable):
            self.written(tensors if packet in _SCALING else tensors[:1])
            if packet is not aten.copy_ or not arithmetic.copies(tensors[-1], tensors[0]):
                self.record(partial(_call, func, structure), *leaves)
            return args[0] if func._schema.returns else None
        if packet in _MOVES or is_arithmetic:
            result = self._add(func(*args, **(kwargs or {})))
            moved = result
            if packet is aten._pack_padded_sequence:
                moved, sizes = result
                self.constant(args[1])
                self.constant(sizes)
            if packet not in (aten.clone, aten._to_copy):
                self._record_into([moved], func, args, kwargs or {})
            elif not arithmetic.copies(leaves[0], moved):
                self.record(Tensor.copy_, moved, leaves[0])
            return result
        is_constant = packet in _FILLED or all(self.is_constant(address_of(tensor)) for tensor in tensors)
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if not is_constant or is_random or func._schema.is_mutable:
            if self.computes and _may_be_computed_again(func):
                return self._computed(func, args, kwargs or {})
            raise GraphError(
                f"graphed: the step calls PyTorch's {func.name()}, which a replay would miss; only tinynet's kernels, "
                "views, copies and constants can be replayed on the CPU. Compute it outside of the step"
            )
        result = self._add(func(*args, **(kwargs or {})), func)
        if isinstance(result, Tensor):
            self._places[address_of(result)] = result, self.place()
        return result

    def _owns(self, operand: Any) -> bool:
        return isinstance(operand, Tensor) and address_of(operand) in self.allocated

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What PyTorch computes here, and again in each replay."""
        self.draws |= func.overloadpacket in _DRAWS
        if func._schema.is_mutable:
            self.written((args[0],))
            leaves, structure = tree_flatten((args, kwargs))
            self.record(partial(_call, func, structure), *leaves)
            return args[0]
        results = self._add(func(*args, **kwargs))
        self._record_into([each for each in tree_leaves(results) if isinstance(each, Tensor)], func, args, kwargs)
        return results

    def _record_into(self, results: list[Tensor], func: Any, args: Any, kwargs: Any) -> None:
        """Has each replay compute into these tensors."""
        if len(results) == 1 and not kwargs and arithmetic.launches(func, args, results[0]):
            return
        leaves, structure = tree_flatten((args, kwargs))
        into, name = _writing(func)
        if into is None or len(results) != 1:
            self.record(partial(_compute, func, structure, len(results)), *results, *leaves)
        elif structure == _structure_of(len(leaves)):
            self.record(partial(_write, into, name), *results, *leaves)
        else:
            self.record(partial(_write_structured, into, name, structure), *results, *leaves)

    def written(self, tensors: Iterable[Tensor]) -> None:
        """Says that each replay writes to these tensors. A constant among them gets its values again in each.

        Raises:
            GraphError: one is a constant that comes from outside of the step, or one of several results.
        """
        for tensor in tensors:
            address = address_of(tensor)
            if address in self._places:
                result, put = self._places.pop(address)
                with _disable_current_modes():
                    put(Tensor.copy_, result, result.clone())  # nothing has written to it: recording runs no kernel
            elif address in self._constants:
                raise GraphError(
                    f"graphed: the step changes {self._constants[address]}, which a replay would not compute again. "
                    "Create it outside of the step, or let a kernel fill it"
                )
            self._constants.pop(address, None)

    def constant(self, tensor: Tensor) -> None:
        """Says that what this tensor holds is the same in each replay."""
        self.hold(tensor)
        self._constants[address_of(tensor)] = "the sizes of packed sequences"

    def hold(self, tensor: Tensor) -> None:
        """Keeps the memory of a tensor that replays use."""
        if address_of(tensor) not in self.allocated:
            self.others[address_of(tensor)] = tensor.untyped_storage()

    def is_constant(self, address: int) -> bool:
        """Whether what lies in the memory at this address is computed once."""
        return address in self._constants

    def _add(self, results: Any, constant: Any = None) -> Any:
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and address_of(result):  # empty tensors have none
                self.allocated[address_of(result)] = result.untyped_storage()
                self.bytes_left -= result.nbytes
                if constant is not None:
                    self._constants[address_of(result)] = f"the result of PyTorch's {constant.name()}"
        if self.bytes_left < 0:
            raise TooLargeError("recorded: the function allocates too much memory")
        return results


def _is_arithmetic(func: Any, args: Any, tensors: list[Tensor]) -> bool:
    """Whether this adds two tensors of one shape, as autograd does with gradients, or computes with single numbers."""
    if func in (aten.add.Tensor, aten.add_.Tensor) and isinstance(args[1], Tensor) and args[0].shape == args[1].shape:
        return True
    return func.overloadpacket in _ARITHMETIC and not any(tensor.ndim for tensor in tensors)


def _call(func: Any, structure: Any, *leaves: Any) -> None:
    args, kwargs = tree_unflatten(leaves, structure)
    func(*args, **kwargs)


def _compute(func: Any, structure: Any, count: int, *operands: Any) -> None:
    """Computes, and copies the results into the first operands, so many as `count`."""
    args, kwargs = tree_unflatten(operands[count:], structure)
    for result, computed in zip(operands[:count], tree_leaves(func(*args, **kwargs)), strict=False):
        result.copy_(computed)


def _write(into: Any, name: str, result: Tensor, *args: Any) -> None:
    """Computes into the result, which `into` takes by this name."""
    into(*args, **{name: result})


def _write_structured(into: Any, name: str, structure: Any, result: Tensor, *leaves: Any) -> None:
    args, kwargs = tree_unflatten(leaves, structure)
    into(*args, **kwargs, **{name: result})


@cache
def _structure_of(count: int) -> Any:
    """Of a call with so many arguments, none by name and none a list."""
    return tree_structure((tuple(range(count)), {}))


@cache
def _writing(func: Any) -> tuple[Any, str]:
    """The operator that writes what `func` returns into a given tensor, and that argument's name; or None."""
    given = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for overload in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, overload)
        out = [argument.name for argument in other._schema.arguments if argument.is_out]
        rest = [(each.name, str(each.type)) for each in other._schema.arguments if not each.is_out]
        if len(out) == 1 and rest == given:
            return other, out[0]
    return None, ""


def _may_be_computed_again(func: Any) -> bool:
    """Whether an operator's results depend on its operands' values alone, or are random numbers."""
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        return False
    return torch.Tag.pointwise in func.tags or func.overloadpacket in _COMPUTATIONS | _DRAWS
