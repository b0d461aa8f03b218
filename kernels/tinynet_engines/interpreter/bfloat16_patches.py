"""The changes that `install()` makes to Triton's interpreter so that bfloat16 is computed correctly.

The interpreter evaluates each operation through a method of `InterpreterBuilder` on `TensorHandle`s (a numpy
array and a Triton dtype). Each method that computes is wrapped: a bfloat16 operand is widened to float32, the
operation runs, and its result is rounded back. For other dtypes this costs one comparison.

Methods that only move bits (load, store, select, reshape, gather, bitcast, absolute value) are correct already,
and `tl.clamp`, `tl.maximum` and `tl.minimum` widen on their own.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

from tinynet_engines.interpreter.bfloat16 import narrow, widen

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle

_COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}


def is_bfloat16(handle: Any) -> bool:
    """Whether a handle holds bfloat16 bit patterns. The numpy dtype is checked first because that is cheap."""
    return handle.data.dtype == np.uint16 and handle.dtype.scalar == tl.bfloat16


def to_float32(handle: Any) -> Any:
    """The handle itself, or its values in float32 if it is bfloat16."""
    return Handle(widen(handle.data), tl.float32) if is_bfloat16(handle) else handle


def to_bfloat16(values: np.ndarray) -> Any:
    """A bfloat16 handle of rounded values."""
    return Handle(narrow(values), tl.bfloat16)


def _binary_op(stock: Any) -> Any:
    @functools.wraps(stock)
    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not is_bfloat16(lhs):
            return stock(self, lhs, rhs, op)
        values = op(to_float32(lhs).data, to_float32(rhs).data)
        return Handle(values, tl.int1) if op in _COMPARISONS else to_bfloat16(values)

    return binary_op


def _unary_op(stock: Any) -> Any:
    @functools.wraps(stock)
    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return to_bfloat16(op(widen(arg.data))) if is_bfloat16(arg) else stock(self, arg, op)

    return unary_op


def _create_fma(stock: Any) -> Any:
    @functools.wraps(stock)
    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bfloat16(z):
            return stock(self, x, y, z)
        # The product of two bfloat16 is exact in float32; with a float64 sum, only the last rounding matters.
        product = (to_float32(x).data * to_float32(y).data).astype(np.float64)
        return to_bfloat16(product + widen(z.data))

    return create_fma


def _cast_impl(stock: Any) -> Any:
    @functools.wraps(stock)
    def cast_impl(self: Any, source: Any, target_type: Any) -> Any:
        target = target_type.scalar
        from_bfloat16 = is_bfloat16(source)
        if target == tl.bfloat16:
            return source if from_bfloat16 else to_bfloat16(source.data)
        if from_bfloat16:
            with np.errstate(over="ignore", invalid="ignore"):
                return Handle(widen(source.data).astype(interpreter._get_np_dtype(target)), target)
        return stock(self, source, target_type)

    return cast_impl


def _create_dot(stock: Any) -> Any:
    @functools.wraps(stock)
    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *options: Any) -> Any:
        return stock(self, to_float32(a), to_float32(b), accumulator, *options)

    return create_dot


def _create_atomic_rmw(stock: Any) -> Any:
    """bfloat16 supports one atomic, addition, which the stock interpreter does not implement."""

    @functools.wraps(stock)
    def create_atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *options: Any):
        if operation != ir.ATOMIC_OP.FADD or not is_bfloat16(value):
            return stock(self, operation, pointers, value, mask, *options)
        before = np.zeros(pointers.data.shape, dtype=np.uint16)
        # One lane at a time, because two lanes may add to one address.
        for lane in zip(*np.nonzero(np.broadcast_to(mask.data, pointers.data.shape)), strict=True):
            address, active = pointers.data[lane].reshape(1), np.ones(1, dtype=bool)
            old = interpreter._interpreter.load(address, active, np.zeros(1, np.uint16), np.dtype(np.uint16))
            new = narrow(widen(old) + widen(value.data[lane].reshape(1)))
            interpreter._interpreter.store(address, new, active)
            before[lane] = old[0]
        return Handle(before, tl.bfloat16)

    return create_atomic_rmw


def _get_bf16(self: Any, value: float) -> Any:
    """A bfloat16 constant. Triton 3.6 - 3.8 lack this method, so `tl.full(shape, 1.5, tl.bfloat16)` fails."""
    return to_bfloat16(np.array([value], dtype=np.float32))


def _recast(tensor: Any, data: np.ndarray, dtype: Any) -> Any:
    """A tensor of the same shape, with other data and dtype."""
    tensor_type = tl.block_type(dtype, tensor.shape) if tensor.type.is_block() else dtype
    return tl.tensor(Handle(data, dtype), tensor_type)


def _through_float32(stock: Any) -> Any:
    """Wraps a whole-array reduction or scan: bfloat16 in, bfloat16 out, indices left as they are.

    The sum of an axis is accumulated in float32 and rounded once.
    """

    def rounded(result: Any) -> Any:
        if isinstance(result, (tuple, list)):
            return type(result)(rounded(element) for element in result)
        if result.dtype != tl.float32:
            return result
        return _recast(result, narrow(result.handle.data), tl.bfloat16)

    @functools.wraps(stock)
    def reduction(self: Any, argument: Any, *options: Any, **named_options: Any) -> Any:
        tensor = argument[0] if isinstance(argument, tuple) else argument
        if not is_bfloat16(tensor.handle):
            return stock(self, argument, *options, **named_options)
        widened = _recast(tensor, widen(tensor.handle.data), tl.float32)
        return rounded(stock(self, widened, *options, **named_options))

    return reduction


def apply() -> None:
    """Wraps the stock methods, once, for the whole process."""
    wrappers = {
        "binary_op": _binary_op,
        "unary_op": _unary_op,
        "create_fma": _create_fma,
        "cast_impl": _cast_impl,
        "create_dot": _create_dot,
        "create_atomic_rmw": _create_atomic_rmw,
    }
    for name, wrapper in wrappers.items():
        setattr(Builder, name, wrapper(getattr(Builder, name)))
    builder: Any = Builder
    builder.get_bf16 = _get_bf16
    for operations, names in (
        (interpreter.ReduceOps, ("sum", "min_max")),
        (interpreter.ScanOps, ("cumsum", "cumprod")),
    ):
        for name in names:
            setattr(operations, name, _through_float32(getattr(operations, name)))
