"""Fixes of the stock interpreter's faults."""

# Triton types a kernel's constexpr parameters as constexpr, and takes plain values for them.
# pyright: reportArgumentType=false

from __future__ import annotations

import os
import warnings

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter as triton_interpreter

from tinynet_engines import interpreter

interpreter.install()


@triton.jit
def libdevice_kernel(x_ptr, y_ptr, out_ptr, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offsets)
    if OPERATION == "tanh":
        value = libdevice.tanh(x)
    elif OPERATION == "erf":
        value = libdevice.erf(x)
    elif OPERATION == "tl_erf":
        value = tl.erf(x)
    elif OPERATION == "expm1":
        value = libdevice.expm1(x)
    elif OPERATION == "log1p":
        value = libdevice.log1p(tl.abs(x))
    elif OPERATION == "pow":
        value = libdevice.pow(tl.abs(x), tl.load(y_ptr + offsets))
    elif OPERATION == "pow_number":
        value = libdevice.pow(tl.abs(x), 1.5)
    elif OPERATION == "isnan":
        value = tl.where(libdevice.isnan(x), 1.0, 0.0)
    elif OPERATION == "scalar":
        value = x * 0 + libdevice.tanh(tl.load(y_ptr))
    tl.store(out_ptr + offsets, value)


LIBDEVICE = {
    "tanh": lambda x, y: torch.tanh(x),
    "erf": lambda x, y: torch.erf(x),
    "tl_erf": lambda x, y: torch.erf(x),
    "expm1": lambda x, y: torch.expm1(x),
    "log1p": lambda x, y: torch.log1p(x.abs()),
    "pow": lambda x, y: torch.pow(x.abs(), y),
    "pow_number": lambda x, y: torch.pow(x.abs(), 1.5),
    "isnan": lambda x, y: torch.zeros_like(x),
    "scalar": lambda x, y: torch.tanh(y[:1]).expand_as(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operation", LIBDEVICE)
def test_libdevice_equals_pytorch(operation: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(64, dtype=dtype), torch.randn(64, dtype=dtype)
    out = torch.full_like(x, float("nan"))
    libdevice_kernel[(1,)](x, y, out, OPERATION=operation, SIZE=64)
    torch.testing.assert_close(out, LIBDEVICE[operation](x, y))


def test_libdevice_refuses_bfloat16_as_the_compiler_does() -> None:
    x = torch.randn(64).to(torch.bfloat16)
    with pytest.raises(triton_interpreter.InterpreterError, match=r"libdevice\.tanh: got \['bf16'\]"):
        libdevice_kernel[(1,)](x, x, x.clone(), OPERATION="tanh", SIZE=64)


@triton.jit
def nothing_but_nan_kernel(x_ptr, value_ptr, index_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(value_ptr, tl.max(x / x, axis=0))
    tl.store(value_ptr + 1, tl.exp(tl.sum(x, axis=0) + 1e4))
    tl.store(index_ptr, tl.argmax(x / x, axis=0))


def test_nan_overflow_and_division_by_zero_are_silent() -> None:
    value, index = torch.zeros(2), torch.full((1,), -1, dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing_but_nan_kernel[(1,)](torch.zeros(16), value, index, SIZE=16)
    assert value[0].isnan() and value[1].isinf() and index[0] == 0


@triton.jit
def maximum_kernel(x_ptr, value_ptr, index_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(value_ptr, tl.max(x, axis=0))
    tl.store(value_ptr + 1, tl.min(x, axis=0))
    tl.store(index_ptr, tl.argmax(x, axis=0))
    tl.store(index_ptr + 1, tl.argmin(x, axis=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_maximum_and_minimum_with_indices(dtype: torch.dtype) -> None:
    x = torch.randperm(16).to(dtype) - 8
    value, index = torch.zeros(2, dtype=dtype), torch.full((2,), -1, dtype=torch.int32)
    maximum_kernel[(1,)](x, value, index, SIZE=16)
    assert value.tolist() == [x.max(), x.min()]
    assert index.tolist() == [x.argmax(), x.argmin()]


@triton.jit
def integer_sum_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, SIZE)), axis=0))


def test_an_integer_sum_wraps_around() -> None:
    x = torch.full((16,), 2**30, dtype=torch.int32)
    out = torch.zeros(1, dtype=torch.int32)
    integer_sum_kernel[(1,)](x, out, SIZE=16)
    assert out[0] == x.sum().to(torch.int32)


@triton.jit
def loop_bound_kernel(bound_ptr, out_ptr):
    count = 0
    for _ in range(tl.load(bound_ptr), 8, 2):
        count += 1
    tl.store(out_ptr, count)


def test_a_loaded_scalar_is_a_loop_bound() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    loop_bound_kernel[(1,)](torch.tensor([3], dtype=torch.int32), out)
    assert out[0] == 3


@triton.jit
def compared_scalars_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(out_ptr + offsets, 1.0, mask=(tl.load(x_ptr) > 0.5) & (offsets < size))
    tl.store(out_ptr + BLOCK + offsets, 1.0, mask=(offsets < size) & (tl.program_id(0) == 0))


@pytest.mark.parametrize("value", [0.25, 0.75])
def test_a_comparison_of_scalars_is_part_of_a_mask(value: float) -> None:
    out = torch.zeros(2, 8)
    compared_scalars_kernel[(1,)](torch.tensor([value]), out, 5, BLOCK=8)
    assert out.sum(1).tolist() == [5 if value > 0.5 else 0, 5]


@triton.jit
def many_device_functions_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0)
    total = tl.sum(x, axis=0) + tl.max(x, axis=0) + tl.cdiv(size, BLOCK)
    tl.store(out_ptr + tl.program_id(0), total)


def test_language_is_patched_once_per_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stock = triton_interpreter._patch_builtin
    monkeypatch.setattr(
        triton_interpreter, "_patch_builtin", lambda *arguments: calls.append(arguments) or stock(*arguments)
    )
    x, out = torch.randn(60), torch.zeros(4)
    many_device_functions_kernel[(1,)](x, out, 60, BLOCK=16)
    once = len(calls)
    many_device_functions_kernel[(4,)](x, out, 60, BLOCK=16)
    assert len(calls) == 2 * once
    parts = torch.nn.functional.pad(x, (0, 4)).reshape(4, 16)
    torch.testing.assert_close(out, parts.sum(1) + parts.amax(1) + 4)


@triton.autotune([triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 32})], key=["size"])
@triton.jit
def autotuned_kernel(x_ptr, y_ptr, size, scale, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0)
    tl.store(y_ptr + offsets, x * scale.to(tl.float32), mask=offsets < size)


def test_an_autotuned_kernel_takes_its_first_configuration_and_a_float_is_a_tensor() -> None:
    x, y = torch.randn(100), torch.zeros(100)
    autotuned_kernel[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, y, 100, 0.1)
    assert torch.equal(y, x * 0.1)
    assert autotuned_kernel.best_config.kwargs == {"BLOCK": 64}


@triton.jit
def one_side(x, step):
    if x > 0:
        return x, 1
    return step * x, 0


@triton.jit
def swap(a, b):
    return b, a


@triton.jit
def map_kernel(x_ptr, y_ptr, n_ptr, z_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    y, n = tl.map_elementwise(one_side, x, 2.0)
    (z,) = tl.map_elementwise(swap, x, pack=2)
    left = 3
    while tl.condition(left > 0):
        left -= 1
    tl.store(y_ptr + offsets, y + left)
    tl.store(n_ptr + offsets, n)
    tl.store(z_ptr + offsets, z)


@pytest.mark.skipif(not hasattr(tl, "map_elementwise"), reason="this Triton has no tl.map_elementwise")
def test_functions_of_elements_and_loops_with_a_condition() -> None:
    x, y, n, z = torch.randn(32), torch.empty(32), torch.empty(32, dtype=torch.int32), torch.empty(32)
    map_kernel[(1,)](x, y, n, z, BLOCK=32)
    assert torch.equal(y, torch.where(x > 0, x, 2 * x)) and torch.equal(n, (x > 0).int())
    assert torch.equal(z, x.view(16, 2).flip(1).reshape(32))
