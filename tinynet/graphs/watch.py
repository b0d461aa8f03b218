"""Watches PyTorch's operators while a step is recorded on the CPU, and refuses those that a replay would miss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tinynet.graphs.errors import GraphError
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
# How a GradScaler looks at gradients, and changes its scale.
_SCALING = {aten._amp_foreach_non_finite_check_and_unscale_, aten._amp_update_scale_}


class Watch(TorchDispatchMode):
    """Runs PyTorch's operators while a step is recorded.

    Views and new memory need no replay. Copies, sums of two gradients, arithmetic of single numbers such as losses, and
    a GradScaler's operators are replayed by PyTorch. A computation whose operands are all constants has the same result
    each time. Everything else is refused.

    Args:
        record: takes a function that each replay is to call, and its operands.
        place: keeps a place for such a function, and returns what puts one there.

    Attributes:
        allocated: by address, the memory that the step allocated. It is never freed, for replays use it.
        others: by address, other memory that launches use.
    """

    def __init__(self, record: Callable[..., None], place: Callable[[], Callable[..., None]]) -> None:
        super().__init__()
        self.record = record
        self.place = place
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
        is_arithmetic = _is_arithmetic(func, args, tensors)
        if packet is aten.copy_ or packet in _SCALING or (is_arithmetic and func._schema.is_mutable):
            self.written(tensors if packet in _SCALING else tensors[:1])
            self.record(partial(_call, func, structure), *leaves)
            return args[0] if func._schema.returns else None
        if packet in _MOVES or is_arithmetic:
            result = self._add(func(*args, **(kwargs or {})))
            moved = result
            if packet is aten._pack_padded_sequence:
                moved, sizes = result
                self.constant(args[1])
                self.constant(sizes)
            self.record(partial(_move, func, structure), moved, *leaves)
            return result
        is_constant = packet in _FILLED or all(self.is_constant(address_of(tensor)) for tensor in tensors)
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if not is_constant or is_random or func._schema.is_mutable:
            raise GraphError(
                f"graphed: the step calls PyTorch's {func.name()}, which a replay would miss; only tinynet's kernels, "
                "views, copies and constants can be replayed on the CPU. Compute it outside of the step"
            )
        result = self._add(func(*args, **(kwargs or {})), func)
        if isinstance(result, Tensor):
            self._places[address_of(result)] = result, self.place()
        return result

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
                if constant is not None:
                    self._constants[address_of(result)] = f"the result of PyTorch's {constant.name()}"
        return results


def _is_arithmetic(func: Any, args: Any, tensors: list[Tensor]) -> bool:
    """Whether this adds two tensors of one shape, as autograd does with gradients, or computes with single numbers."""
    if func in (aten.add.Tensor, aten.add_.Tensor) and isinstance(args[1], Tensor) and args[0].shape == args[1].shape:
        return True
    return func.overloadpacket in _ARITHMETIC and not any(tensor.ndim for tensor in tensors)


def _call(func: Any, structure: Any, *leaves: Any) -> None:
    args, kwargs = tree_unflatten(leaves, structure)
    func(*args, **kwargs)


def _move(func: Any, structure: Any, result: Tensor, *leaves: Any) -> None:
    args, kwargs = tree_unflatten(leaves, structure)
    moved = args[0] if func.overloadpacket in (aten.clone, aten._to_copy) else func(*args, **kwargs)
    result.copy_(moved[0] if isinstance(moved, tuple) else moved)
