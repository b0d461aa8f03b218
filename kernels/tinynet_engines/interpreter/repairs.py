"""Faults of the stock interpreter, other than bfloat16, that kernels meet, each with its fix.

- A device function (every `tl.sum`, `tl.max`, `tl.cdiv` is one) patches the whole of `triton.language` again in
  each call: more than half of the time of a small kernel. Fix: once per launch.
- Every int32 addition is computed a second time in int64 for an overflow check whose result is ignored unless
  debugging is on. Fix: off; the guard turns it on again together with debugging.
- A numpy dtype is looked up in a table that is rebuilt each time. Fix: cached by name.
- numpy warns of overflow, division by zero and all-NaN slices; a device doesn't. Fix: no warnings. The argmax of
  all NaN raises. Fix: index 0.
- All threads share one variable for the index of the running program and one patched `triton.language`: two
  concurrent launches crash the process. Fix: a lock.
- An int32 sum that wraps around raises. Fix: it wraps.
- `tl.erf` is a Python loop. Fix: PyTorch's erf.
- `libdevice` functions return None. Fix: floating point ones with a counterpart in PyTorch call that.
- A comparison of two scalars becomes numbers of their dtype when combined with a block: Triton 3.9 rejects that as a
  mask, and `&` rejects floats. Fix: it becomes booleans.
- A float argument stays a number of Python's, without `.to` and the like, and is computed in float64. Fix: it becomes
  an fp32 tensor, as in a compiled kernel.
- An autotuned kernel asks the driver to time its configurations, and there is no driver. Fix: the first configuration
  that its pruning leaves.
- `tl.map_elementwise` builds IR. Fix: it calls its function for every element.
- `while tl.condition(x)` never ends. Fix: the object is true if `x` is.
- Triton 3.6 with numpy 2.4 or later can't take a scalar tensor as an index or a loop bound. Fix: it can.

Not fixed: a kernel that ran `from triton.language.extra.libdevice import tanh` before `install()` holds the stub;
import the module instead. tf32 is computed as float32. Casts to float8 round some values incorrectly.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

LIBDEVICE_MODULES = (
    "triton.language.extra.libdevice",
    "triton.language.extra.cuda.libdevice",
    "triton.language.extra.hip.libdevice",
)

# libdevice's name -> PyTorch's function. A function with a "fast" variant in libdevice has the same for both.
LIBDEVICE_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "acosh": torch.acosh,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atan2": torch.atan2,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "copysign": torch.copysign,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "div_rn": torch.div,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "fast_cosf": torch.cos,
    "fast_dividef": torch.div,
    "fast_expf": torch.exp,
    "fast_log2f": torch.log2,
    "fast_logf": torch.log,
    "fast_powf": torch.pow,
    "fast_sinf": torch.sin,
    "fast_tanf": torch.tan,
    "fast_tanhf": torch.tanh,
    "floor": torch.floor,
    "fmod": torch.fmod,
    "hypot": torch.hypot,
    "isinf": torch.isinf,
    "isnan": torch.isnan,
    "lgamma": torch.lgamma,
    "log": torch.log,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "nearbyint": torch.round,
    "pow": torch.pow,
    "rint": torch.round,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "sqrt_rn": torch.sqrt,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "trunc": torch.trunc,
}

_numpy_dtypes: dict[str, np.dtype[Any]] = {}

# The modules (`tl`, `tl.core`) that the launch in progress has patched already.
_patched: set[int] = set()
_launching = threading.RLock()


@functools.cache
def _languages_of(function: Callable[..., Any]) -> frozenset[int]:
    """The `triton.language` modules that a kernel or device function refers to by some global name."""
    values = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(id(value) for value in values if value is tl or value is tl.core)


def _patch_once_per_launch(stock: Any) -> Any:
    @functools.wraps(stock)
    def patch_lang(function: Callable[..., Any]) -> Any:
        languages = _languages_of(function)
        if _patched and languages <= _patched:
            return None  # only a device function gets here, and its scope is never used
        _patched.update(languages)
        return stock(function)

    return patch_lang


def _patch_lang_tensor(stock: Any) -> Any:
    @functools.wraps(stock)
    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        stock(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch_lang_tensor


def _get_np_dtype(stock: Any) -> Any:
    @functools.wraps(stock)
    def get_np_dtype(dtype: Any) -> np.dtype[Any]:
        if type(dtype) is not tl.dtype:  # a block or a pointer
            return stock(dtype)
        name: Any = dtype.name
        if name not in _numpy_dtypes:
            _numpy_dtypes[name] = stock(dtype)
        return _numpy_dtypes[name]

    return get_np_dtype


def _launch(stock: Any) -> Any:
    @functools.wraps(stock)
    def launch(self: Any, *arguments: Any, **named_arguments: Any) -> Any:
        with _launching:
            _patched.clear()
            try:
                with np.errstate(all="ignore"):
                    return stock(self, *arguments, **named_arguments)
            finally:
                _patched.clear()

    return launch


def _first_maximum(data: np.ndarray, axis: int | None, keepdims: bool) -> np.ndarray:
    return np.argmax(np.where(np.isnan(data), -np.inf, data), axis=axis, keepdims=keepdims)


def _first_minimum(data: np.ndarray, axis: int | None, keepdims: bool) -> np.ndarray:
    return np.argmin(np.where(np.isnan(data), np.inf, data), axis=axis, keepdims=keepdims)


# Same values as the stock functions, which warn or raise if all values are NaN.
_REDUCTIONS = {
    np.nanmax: np.fmax.reduce,
    np.nanmin: np.fmin.reduce,
    np.nanargmax: _first_maximum,
    np.nanargmin: _first_minimum,
}


def _min_max(stock: Any) -> Any:
    @functools.wraps(stock)
    def min_max(self: Any, argument: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        tensor = argument[0] if isinstance(argument, tuple) else argument
        if tensor.dtype.is_floating():
            val_reduce_op = _REDUCTIONS.get(val_reduce_op, val_reduce_op)
            idx_reduce_op = _REDUCTIONS.get(idx_reduce_op, idx_reduce_op)
        return stock(self, argument, val_reduce_op, idx_reduce_op)

    return min_max


def _implicit_cvt(stock: Any) -> Any:
    @functools.wraps(stock)
    def implicit_cvt(argument: Any) -> Any:
        if not isinstance(argument, float):
            return stock(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    return implicit_cvt


def _all_equally_fast(self: Any, *arguments: Any, **named_arguments: Any) -> float:
    """The time of any configuration of an autotuned kernel: of equals, Triton takes the first."""
    return 0.0


def _to_tensor(stock: Any) -> Any:
    @functools.wraps(stock)
    def to_tensor(self: Any, value: Any, dtype: Any) -> Any:
        if not getattr(value, "shape", ()):
            value = np.asarray(value).astype(interpreter._get_np_dtype(dtype))[()]
        return stock(self, value, dtype)

    return to_tensor


def _create_splat(stock: Any) -> Any:
    @functools.wraps(stock)
    def create_splat(self: Any, block_type: Any, argument: Any) -> Any:
        block = stock(self, block_type, argument)
        if block_type.scalar != tl.int1:
            return block
        return interpreter.TensorHandle(block.data.astype(bool), tl.int1)

    return create_splat


def _create_erf(self: Any, argument: Any) -> Any:
    return interpreter.TensorHandle(torch.erf(torch.tensor(argument.data, device="cpu")).numpy(), argument.dtype.scalar)


def _map_elementwise(
    scalar_fn: Any, *arguments: Any, pack: int = 1, _semantic: Any = None, _generator: Any = None
) -> Any:
    """`tl.map_elementwise`: calls `scalar_fn` for every `pack` neighbors, in row-major order."""
    semantic: Any = interpreter.interpreter_semantic
    tensors = [semantic.to_tensor(argument) for argument in arguments]
    blocks = np.broadcast_arrays(*(tensor.handle.data for tensor in tensors))
    scalars = [
        [
            tl.tensor(interpreter.TensorHandle(value.reshape(1), each.dtype), each.dtype)
            for value in block.reshape(-1, 1)
        ]
        for each, block in zip(tensors, blocks, strict=True)
    ]
    results: list[list[Any]] = []
    for start in range(0, blocks[0].size, pack):
        result = scalar_fn(*(value for column in scalars for value in column[start : start + pack]))
        results.append(list(result) if isinstance(result, (tuple, tl.tuple)) else [result])
    outputs = []
    for position in range(0, len(results[0]), pack):
        values = [semantic.to_tensor(value) for row in results for value in row[position : position + pack]]
        data = np.concatenate([value.handle.data.reshape(1) for value in values]).reshape(blocks[0].shape)
        kind = values[0].dtype
        outputs.append(tl.tensor(interpreter.TensorHandle(data, kind), tl.block_type(kind, list(data.shape))))
    return outputs[0] if len(outputs) == 1 and pack == 1 else tuple(outputs)


def _libdevice_function(name: str, function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """An interpreted libdevice function: takes float32 or float64 tensors (or numbers), returns one tensor."""

    def interpreted(*arguments: Any, _semantic: Any = None) -> Any:
        semantic: Any = interpreter.interpreter_semantic
        tensors = [semantic.to_tensor(argument) for argument in arguments]
        dtypes = [tensor.dtype for tensor in tensors]
        if not all(dtype in (tl.float32, tl.float64) for dtype in dtypes):
            raise ValueError(f"libdevice.{name}: got {[str(dtype) for dtype in dtypes]}, expected fp32 or fp64")
        values = function(*(torch.tensor(tensor.handle.data, device="cpu") for tensor in tensors)).numpy()
        result = {np.dtype(bool): tl.int1, np.dtype(np.float64): tl.float64}.get(values.dtype, tl.float32)
        is_block = any(tensor.type.is_block() for tensor in tensors)
        handle = interpreter.TensorHandle(values, result)
        return tl.tensor(handle, tl.block_type(result, list(values.shape)) if is_block else result)

    interpreted.__name__ = name
    return interpreted


def _install_libdevice() -> None:
    for module_name in LIBDEVICE_MODULES:
        module = importlib.import_module(module_name)
        for name, function in LIBDEVICE_FUNCTIONS.items():
            if hasattr(module, name):
                setattr(module, name, _libdevice_function(name, function))


def apply() -> None:
    """Applies every fix, once, for the whole process."""
    interpreter._patch_lang = _patch_once_per_launch(interpreter._patch_lang)
    interpreter._patch_lang_tensor = _patch_lang_tensor(interpreter._patch_lang_tensor)
    interpreter._get_np_dtype = _get_np_dtype(interpreter._get_np_dtype)
    interpreter._implicit_cvt = _implicit_cvt(interpreter._implicit_cvt)
    Autotuner._bench = _all_equally_fast  # pyright: ignore[reportAttributeAccessIssue]
    executor: Any = interpreter.GridExecutor
    executor.__call__ = _launch(executor.__call__)
    builder: Any = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    reduce_operations: Any = interpreter.ReduceOps
    reduce_operations.min_max = _min_max(reduce_operations.min_max)
    operations: Any = interpreter.ReduceScanOpInterface
    operations.to_tensor = _to_tensor(operations.to_tensor)
    builder_class: Any = interpreter.InterpreterBuilder
    builder_class.create_erf = _create_erf
    builder_class.create_splat = _create_splat(builder_class.create_splat)
    if hasattr(tl, "map_elementwise"):
        tl.map_elementwise = tl.core.map_elementwise = _map_elementwise
    if hasattr(tl, "condition"):
        tl.condition.__bool__ = lambda self: bool(self.condition)  # pyright: ignore[reportAttributeAccessIssue]
    _install_libdevice()
