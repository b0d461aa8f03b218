"""What every public operator does with its arguments: autocast, and checks that name what is wrong."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from tinynet.dispatch import Route, are_plain_and_alike, route_of, route_of_plain

REDUCTIONS = ("mean", "sum", "none")  # of losses

Pair = tuple[int, int]  # (height, width)


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where autocast is on for their device, else as they came.

    As `torch.amp.custom_fwd(cast_inputs=...)`, but differentiable and capturable: the casts are ordinary operators.
    float64 tensors stay as they are, as in PyTorch.
    """
    dtype = autocast_dtype(*tensors)
    return tensors if dtype is None else tuple(_cast(tensor, dtype) for tensor in tensors)


def autocast_dtype(*tensors: Tensor | None) -> torch.dtype | None:
    """The dtype to which autocast casts on the device of the first tensor given; None where autocast is off."""
    for tensor in tensors:
        if tensor is not None:
            device_type = "cpu" if tensor.is_cpu else tensor.device.type
            on = device_type != "meta" and torch.is_autocast_enabled(device_type)
            return torch.get_autocast_dtype(device_type) if on else None
    return None


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off for the tensor's device, if it is on."""
    return nullcontext() if autocast_dtype(tensor) is None else torch.autocast(tensor.device.type, enabled=False)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(dtype)


def cast_to(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    """The tensors in `dtype`. Those that have it already are passed on, which saves a microsecond each."""
    return [t if t is None or t.dtype is dtype else t.to(dtype) for t in tensors]


def autocast_to_float32(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in float32 where autocast is on for their device: what PyTorch does for losses and softmax."""
    if autocast_dtype(*tensors) is None:
        return tensors
    return tuple(_cast(tensor, torch.float32) for tensor in tensors)


def autocast_norm(*tensors: Tensor | None) -> tuple[Any, ...]:
    """`autocast_to_float32`, except on CPUs: what PyTorch does for normalization and softmax."""
    first = tensors[0]
    return tensors if first is None or first.is_cpu else autocast_to_float32(*tensors)


def check_floating(operator: str, later: torch.dtype | None = None, /, **tensors: Tensor | None) -> None:
    """Raises TypeError unless all given tensors share one floating-point dtype, and ValueError unless one device.

    Args:
        operator: named in the message.
        later: autocast's dtype, where the operator casts later: tensors count as already cast.
        tensors: by argument name; absent ones (None) are skipped. The first is what the others are held against.
    """
    first: Tensor | None = None
    first_name = ""
    first_dtype = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        dtype = tensor.dtype
        if dtype is not first_dtype:
            if not dtype.is_floating_point:
                raise TypeError(f"{operator}: {name} must be floating point, got {dtype}")
            if later is not None and dtype is not torch.float64:
                dtype = later
        if first is None:
            first, first_name, first_dtype = tensor, name, dtype
        elif dtype is not first_dtype:
            raise TypeError(
                f"{operator}: {name} has dtype {dtype} but {first_name} has {first_dtype}; "
                "they must agree (or run under torch.autocast)"
            )
        elif not (first.is_cpu and tensor.is_cpu):
            check_device(operator, name, tensor, first_name, first)


def route_floating(operator: str, later: torch.dtype | None, names: Sequence[str], *operands: Any) -> Route:
    """`check_floating`, and who computes: for ordinary operands in one pass over them.

    Args:
        operator: named in messages.
        later: as in `check_floating`.
        names: of the operands.
        operands: tensors; None for absent ones, which the first is not.

    Raises:
        TypeError, ValueError, RuntimeError: as `check_floating` and `dispatch.route`.
    """
    if are_plain_and_alike(operands) and operands[0].is_floating_point():
        return route_of_plain(operands[0])
    check_floating(operator, later, **dict(zip(names, operands, strict=True)))
    return route_of(operator, names, *operands)


def bias_to_save(weight: Tensor | None, bias: Tensor | None, *, is_read: bool) -> Tensor | None:
    """The bias of a normalization, for its backward; None where that reads none, as PyTorch's never does.

    A weight tells the shape and dtype of the bias's gradient too.
    """
    return bias if is_read or weight is None else None


def route_norm(
    operator: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None = None
) -> Route:
    """Who normalizes: as `route_floating`, but the parameters of a 16-bit input may be float32.

    Raises:
        TypeError, ValueError, RuntimeError: as `route_floating`.
    """
    names, operands = ("input", "weight", "bias", "residual"), (input, weight, bias, residual)
    if are_plain_and_alike(operands) and input.is_floating_point():
        return route_of_plain(input)
    check_floating(operator, input=input, residual=residual)
    parameters = {"weight": weight, "bias": bias}
    given = [parameter for parameter in parameters.values() if isinstance(parameter, Tensor)]
    if input.element_size() == 2 and given and all(parameter.dtype is torch.float32 for parameter in given):
        check_floating(operator, **parameters)
        for name, parameter in parameters.items():
            if parameter is not None:
                check_device(operator, name, parameter, "input", input)
    else:
        check_floating(operator, input=input, **parameters)
    return route_of(operator, names, *operands)


def check_device(operator: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raises ValueError unless both tensors live on one device."""
    if tensor.device != first.device:
        raise ValueError(
            f"{operator}: {name} is on {tensor.device} but {first_name} is on {first.device}; they must agree"
        )


def as_integer(value: Any) -> Any:
    """An integer of any kind (NumPy's, a tensor of one element) as a Python int; a symbolic one as it is; else None.

    Kernels are compiled and cached by the types of their arguments, so they must see no other types.
    """
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype is torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def checked_reduction(operator: str, reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """A loss's reduction, in PyTorch's older spellings too, with its warnings.

    Raises:
        ValueError: none of `REDUCTIONS`.
    """
    if size_average is not None or reduce is not None:
        return _reduction.legacy_get_string(size_average, reduce)
    if reduction == "elementwise_mean":
        _reduction.get_enum(reduction)
        return "mean"
    if reduction not in REDUCTIONS:
        raise ValueError(f"{operator}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return reduction


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of any of them."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory with no gap and no overlap, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def with_contiguous_rows(x: Tensor) -> Tensor:
    """x as kernels of matrices read it, itself or a copy: contiguous or, of two dimensions, the last one."""
    return x if x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1) else x.contiguous()


def as_sizes(operator: str, name: str, value: Any, least: int, axes: int) -> tuple[int, ...]:
    """One number for each spatial axis, of one number, or of a sequence of one or as many.

    Raises:
        TypeError: a value that is not an integer.
        ValueError: another count, or one below `least`.
    """
    values = list(map(as_integer, value if isinstance(value, Sequence) else [value]))
    if None in values:
        kind = ("an integer", "an integer or a pair of integers", "an integer or three integers")[axes - 1]
        raise TypeError(f"{operator}: {name} must be {kind}, got {value!r}")
    if len(values) not in (1, axes):
        count = ("one number", "one number or two", "one number or three")[axes - 1]
        raise ValueError(f"{operator}: {name} must be {count}, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{operator}: {name} must be at least {least}, got {value!r}")
    return tuple(values) if len(values) == axes else (values[0],) * axes


def as_pair(operator: str, name: str, value: Any, least: int) -> Pair:
    """(height, width) of one number, or of a sequence of one or two.

    Raises:
        TypeError, ValueError: as `as_sizes`.
    """
    height, width = as_sizes(operator, name, value, least, 2)
    return height, width
