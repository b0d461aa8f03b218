# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
"""The table of operations in docs/cpu-engine.md: each row has a kernel here that uses all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cpu-engine.md"
# Of `triton.language`: types, classes and modules, which no kernel calls as an operation.
NO_OPERATIONS = {
    *(
        "PropagateNan",
        "TRITON_MAX_TENSOR_NUMEL",
        "block_type",
        "const",
        "constexpr",
        "constexpr_type",
        "dtype",
        "extra",
    ),
    *("math", "pi32_t", "pointer_type", "slice", "target_info", "tensor", "tensor_descriptor", "tuple", "void"),
    *("bfloat16", "float16", "float32", "float64", "int1", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("float8e4b15", "float8e4nv", "float8e4b8", "float8e5", "float8e5b16"),
}
N = 32


@triton.jit
def values_kernel(o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    row, col = tl.swizzle2d(i // 8, i % 8, N // 8, 8, 2)
    x = tl.zeros_like(i) + tl.full((N,), 2, tl.int32) + tl.zeros((N,), tl.int32) + tl.to_tensor(3)
    x += tl.program_id(0) + tl.num_programs(0) + tl.cdiv(row * 8 + col, 3)
    tl.store(o_ptr + i, tl.cast(x, tl.float32))


def values() -> tuple[torch.Tensor, torch.Tensor]:
    o = torch.empty(N)
    values_kernel[(1,)](o, N=N)
    i = torch.arange(N)
    group = i // 8 // 2 * 2 * 8  # swizzled: down the two rows of a group, then to the next column
    within = i % 16
    place = group + within % 2 * 8 + within // 2
    return o, 6.0 + (place + 2) // 3


@triton.jit
def shapes_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    a, b = tl.split(tl.reshape(x, (N // 2, 2)))
    joined = tl.ravel(tl.join(a, b))
    y = tl.view(tl.permute(tl.trans(tl.reshape(joined, (4, N // 4))), (1, 0)), (N,))
    wide = tl.broadcast_to(tl.expand_dims(a, 1), (N // 2, 2))
    narrow = tl.squeeze(tl.unsqueeze(x, 0), 0)
    first, _ = tl.broadcast(tl.expand_dims(b, 1), wide)
    tl.store(o_ptr + i, y + narrow)
    tl.store(o_ptr + N + i, tl.ravel(wide - first))
    tl.store(o_ptr + 2 * N + i, tl.interleave(a, b))
    tl.store(o_ptr + 3 * N + i, tl.cat(a, b, can_reorder=True))
    tl.store(o_ptr + 4 * N + i, tl.flip(x, 0))


def shapes() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N), torch.empty(5, N)
    shapes_kernel[(1,)](x, o, N=N)
    a, b = x[::2], x[1::2]
    return o, torch.stack([2 * x, (a - b).repeat_interleave(2), x, torch.cat([a, b]), x.flip(0)])


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, n_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    n = tl.load(n_ptr + i).to(tl.uint32, bitcast=True)
    tl.store(o_ptr + i, tl.add(x, y) * tl.sub(x, 1.0) + tl.mul(y, y))
    tl.store(o_ptr + N + i, tl.minimum(x, y) + 2 * tl.maximum(x, y) + tl.clamp(x, -0.5, 0.5))
    tl.store(o_ptr + 2 * N + i, tl.where(x > y, tl.abs(x), tl.ceil(y)) + tl.floor(x))
    tl.store(o_ptr + 3 * N + i, tl.fdiv(x, y) + tl.div_rn(y, x) + tl.fma(x, y, 1.0))
    tl.store(o_ptr + 4 * N + i, tl.umulhi(n, n).to(tl.float32))


def arithmetic() -> tuple[torch.Tensor, torch.Tensor]:
    x, y, o = torch.randn(N), torch.randn(N), torch.empty(5, N)
    n = torch.randint(0, 2**31, (N,))
    arithmetic_kernel[(1,)](x, y, n.int(), o, N=N)
    rows = [
        (x + y) * (x - 1) + y * y,
        torch.minimum(x, y) + 2 * torch.maximum(x, y) + x.clamp(-0.5, 0.5),
        torch.where(x > y, x.abs(), y.ceil()) + x.floor(),
        x / y + y / x + (x * y + 1),
        (n * n >> 32).float(),
    ]
    return o, torch.stack(rows)


@triton.jit
def functions_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(o_ptr + i, tl.exp(x) + tl.exp2(x) + tl.log(x) + tl.log2(x))
    tl.store(o_ptr + N + i, tl.sin(x) + 2 * tl.cos(x) + tl.erf(x) + tl.sigmoid(x))
    tl.store(o_ptr + 2 * N + i, tl.sqrt(x) + tl.sqrt_rn(x + 1) + tl.rsqrt(x))
    tl.store(o_ptr + 3 * N + i, tl.softmax(x))


def functions() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.rand(N) + 0.1, torch.empty(4, N)
    functions_kernel[(1,)](x, o, N=N)
    rows = [
        x.exp() + x.exp2() + x.log() + x.log2(),
        x.sin() + 2 * x.cos() + x.erf() + x.sigmoid(),
        x.sqrt() + (x + 1).sqrt() + x.rsqrt(),
        x.softmax(0),
    ]
    return o, torch.stack(rows)


@triton.jit
def memory_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o_ptr + i, tl.load(x_ptr + i, mask=i < 20, other=7.0), mask=i != 3)
    x = tl.make_tensor_descriptor(x_ptr, [4, 8], [8, 1], [4, 4])
    o = tl.make_tensor_descriptor(o_ptr + N, [4, 8], [8, 1], [4, 4])
    tl.store_tensor_descriptor(o, [0, 0], tl.load_tensor_descriptor(x, [0, 4]))


def memory() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N), torch.zeros(2, N)
    memory_kernel[(1,)](x, o, N=N)
    expected = torch.zeros(2, N)
    expected[0] = torch.where(torch.arange(N) < 20, x, 7.0)
    expected[0, 3] = 0
    expected[1].view(4, 8)[:, :4] = x.view(4, 8)[:, 4:]
    return o, expected


@triton.jit
def block_pointer_kernel(x_ptr, o_ptr, N: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (N,), (1,), (0,), (16,), (0,))
    o = tl.make_block_ptr(o_ptr, (N,), (1,), (0,), (16,), (0,))
    tl.store(o, tl.load(tl.advance(x, (16,))))
    tl.store(tl.advance(o, (16,)), tl.load(x))


def block_pointers() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N), torch.zeros(N)
    block_pointer_kernel[(1,)](x, o, N=N)
    return o, x.roll(16)


@triton.jit
def atomic_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.atomic_add(o_ptr + i % 4, x)
    tl.atomic_max(o_ptr + 4 + i % 4, x)
    tl.atomic_min(o_ptr + 8 + i % 4, x)
    tl.atomic_and(o_ptr + 12 + i % 4, x)
    tl.atomic_or(o_ptr + 16 + i % 4, x)
    tl.atomic_xor(o_ptr + 20 + i % 4, x)
    tl.store(o_ptr + 25, tl.atomic_xchg(o_ptr + 24, 5))
    tl.store(o_ptr + 27, tl.atomic_cas(o_ptr + 26, 9, 6))


def atomics() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randint(-1000, 1000, (N,), dtype=torch.int32), torch.full((28,), 9, dtype=torch.int32)
    atomic_kernel[(1,)](x, o, N=N)
    expected = torch.full((28,), 9, dtype=torch.int32)
    operations: list[Callable[[int, int], int]] = [int.__add__, max, min, int.__and__, int.__or__, int.__xor__]
    for row, operation in enumerate(operations):
        for i, number in enumerate(x.tolist()):
            place = 4 * row + i % 4
            expected[place] = operation(int(expected[place]), number)
    expected[24:] = torch.tensor([5, 9, 6, 9])
    return o, expected


@triton.jit
def newer_atomic_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.atomic_store(o_ptr + i, tl.atomic_load(x_ptr + i))
    found = tl.atomic_poll(o_ptr + i, tl.load(x_ptr + i), timeout_ns=1000000)
    tl.store(o_ptr + N + i, found.to(tl.int32))


def newer_atomics() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.arange(N, dtype=torch.int32), torch.zeros(2, N, dtype=torch.int32)
    newer_atomic_kernel[(1,)](x, o, N=N)
    return o, torch.stack([x, torch.ones_like(x)])


@triton.jit
def add_elements(a, b):
    return a + b


@triton.jit
def reduction_kernel(x_ptr, n_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, n = tl.load(x_ptr + i), tl.load(n_ptr + i)
    tl.store(o_ptr, tl.sum(x, axis=0) + tl.max(x, axis=0) + tl.min(x, axis=0))
    tl.store(o_ptr + 1, (tl.argmax(x, axis=0) * 100 + tl.argmin(x, axis=0)).to(tl.float32))
    tl.store(o_ptr + 2, tl.xor_sum(n, axis=0).to(tl.float32) + tl.reduce_or(n, axis=0).to(tl.float32))
    tl.store(o_ptr + 3, tl.reduce(x, 0, add_elements))


def reductions() -> tuple[torch.Tensor, torch.Tensor]:
    x, n, o = torch.randn(N), torch.randint(0, 1000, (N,), dtype=torch.int32), torch.empty(4)
    reduction_kernel[(1,)](x, n, o, N=N)
    xor = either = 0
    for number in n.tolist():
        xor, either = xor ^ number, either | number
    places = x.argmax() * 100 + x.argmin()
    return o, torch.stack([x.sum() + x.max() + x.min(), places.float(), torch.tensor(float(xor + either)), x.sum()])


@triton.jit
def scan_kernel(x_ptr, n_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, n = tl.load(x_ptr + i), tl.load(n_ptr + i)
    tl.store(o_ptr + i, tl.cumsum(x, axis=0) + tl.cumprod(x, axis=0))
    tl.store(o_ptr + N + i, tl.associative_scan(x, 0, add_elements))
    tl.store(o_ptr + 2 * N + i, tl.sort(x))
    tl.store(o_ptr + 3 * N + tl.arange(0, 8), tl.topk(x, 8))
    tl.store(o_ptr + 3 * N + 8 + tl.arange(0, 8), tl.histogram(n, 8).to(tl.float32))
    valley = tl.where(i < N // 2, tl.sort(x), tl.sort(x, descending=True))
    tl.store(o_ptr + 4 * N + i, tl.gather(x, n, 0) + 0 * tl.bitonic_merge(valley))


def scans() -> tuple[torch.Tensor, torch.Tensor]:
    x, n, o = torch.rand(N) + 0.5, torch.randint(0, 8, (N,), dtype=torch.int32), torch.zeros(5, N)
    scan_kernel[(1,)](x, n, o, N=N)
    expected = torch.zeros(5, N)
    expected[0], expected[1], expected[2] = x.cumsum(0) + x.cumprod(0), x.cumsum(0), x.sort()[0]
    expected[3, :8], expected[3, 8:16] = x.topk(8)[0], n.bincount(minlength=8).float()
    expected[4] = x[n.long()]
    return o, expected


@triton.jit
def product_kernel(x_ptr, s_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i[:, None] * N + i[None, :])
    scale = tl.load(s_ptr + i[:, None])
    place = o_ptr + i[:, None] * N + i[None, :]
    tl.store(place, tl.dot(x.to(tl.float32), tl.trans(x).to(tl.float32)))
    tl.store(place + N * N, tl.dot_scaled(x, scale, "e4m3", x, scale, "e4m3"))


def products() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N, N).to(torch.float8_e4m3fn), torch.empty(2, N, N)
    scale = torch.randint(120, 134, (N, 1), dtype=torch.uint8)
    product_kernel[(1,)](x, scale, o, N=N)
    a, factor = x.float(), 2.0 ** (scale.float() - 127)
    return o, torch.stack([a @ a.T, (a * factor) @ (a * factor.T)])


@triton.jit
def one_side(x):
    if x > 0:
        return x
    return -2 * x


@triton.jit
def map_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o_ptr + i, tl.map_elementwise(one_side, tl.load(x_ptr + i)))


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N), torch.empty(N)
    map_kernel[(1,)](x, o, N=N)
    return o, torch.where(x > 0, x, -2 * x)


@triton.jit
def random_kernel(o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    uniform, _, _, _ = tl.rand4x(1, i)
    normal, _, _, _ = tl.randn4x(1, i)
    whole, _, _, _ = tl.randint4x(1, i)
    zero = (i * 0).to(tl.uint32)
    a, b, _, _ = tl.philox(1, i.to(tl.uint32), zero, zero, zero)
    c, _, _, _ = tl.philox_impl(i.to(tl.uint32), zero, zero, zero, zero + 1, zero)
    first, _ = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(a), tl.uint_to_uniform_float(b))
    tl.store(o_ptr + i, (tl.rand(1, i) == uniform).to(tl.float32) + (uniform >= 0).to(tl.float32))
    tl.store(o_ptr + N + i, (tl.randn(1, i) == normal).to(tl.float32) + (first == first).to(tl.float32))
    tl.store(o_ptr + 2 * N + i, (tl.randint(1, i) == whole).to(tl.float32) + (c == a).to(tl.float32))


def random_numbers() -> tuple[torch.Tensor, torch.Tensor]:
    o = torch.empty(3, N)
    random_kernel[(1,)](o, N=N)
    return o, torch.full((3, N), 2.0)


@triton.jit
def control_kernel(x_ptr, o_ptr, n, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.static_assert(N == 32)
    tl.static_print("compiled")
    tl.device_print("runs", n)
    tl.device_assert(n > 0, "n is positive")
    tl.assume(n > 0)
    x = tl.load(x_ptr + i)
    tl.debug_barrier()
    for _ in tl.range(0, n):
        x += 1
    for k in tl.static_range(2):
        x += k
    while tl.condition(n > 0):
        x *= 2
        n -= 1
    tl.store(o_ptr + i, x)


def control() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N), torch.empty(N)
    control_kernel[(1,)](x, o, 3, N=N)
    return o, (x + 3 + 1) * 8


@triton.jit
def hint_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.max_contiguous(tl.multiple_of(tl.arange(0, N), N), N)
    j = tl.max_constancy(i // 4, 4)
    x = tl.load(x_ptr + i, mask=i >= 0, other=0.0)
    tl.store(o_ptr + i, tl.expect_zero(x, i >= 0) + j)


def hints() -> tuple[torch.Tensor, torch.Tensor]:
    x, o = torch.randn(N), torch.empty(N)
    hint_kernel[(1,)](x, o, N=N)
    return o, x + torch.arange(N) // 4


# row of the table -> (kernel, function that runs it and returns what it computed and what was expected)
ROWS = {
    "programs and values": (values_kernel, values),
    "shapes": (shapes_kernel, shapes),
    "arithmetic": (arithmetic_kernel, arithmetic),
    "elementary functions": (functions_kernel, functions),
    "memory": (memory_kernel, memory),
    "block pointers (until Triton 3.8)": (block_pointer_kernel, block_pointers),
    "atomics": (atomic_kernel, atomics),
    "atomics (from Triton 3.9)": (newer_atomic_kernel, newer_atomics),
    "reductions": (reduction_kernel, reductions),
    "scans and sorting": (scan_kernel, scans),
    "matrix products": (product_kernel, products),
    "functions of elements": (map_kernel, maps),
    "random numbers": (random_kernel, random_numbers),
    "control": (control_kernel, control),
    "hints": (hint_kernel, hints),
}


def table() -> dict[str, set[str]]:
    """The operations of each row of the page's table."""
    text = PAGE.read_text().split("| kind | operations")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([^|-][^|]*?) \| (`.*) \|$", text, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", operations)) for name, operations in rows}


@pytest.mark.parametrize("row", ROWS)
def test_the_operations_of_a_row_run(row: str) -> None:
    kernel, run = ROWS[row]
    operations = table()[row]
    assert operations <= set(re.findall(r"\btl\.(\w+)\(", kernel.src)), "the row's kernel uses each of them"
    missing = sorted(name for name in operations if not hasattr(tl, name))
    if missing:
        pytest.skip(f"this Triton has no tl.{missing[0]}")
    computed, expected = run()
    torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)


def test_the_table_has_every_operation_of_the_language() -> None:
    rows = table()
    assert set(rows) == {*ROWS, "refused"}
    listed = [name for names in rows.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(tl.__all__) - NO_OPERATIONS - set(listed) == set()


@triton.jit
def assembly_kernel(x_ptr, o_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    y = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(o_ptr + i, y)


def test_what_is_refused_is_named_with_its_line() -> None:
    assert table()["refused"] == {"inline_asm_elementwise"}
    x = torch.zeros(N, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match=r"elementwise_inline_asm.*test_cpu_operations\.py:\d+"):
        assembly_kernel[(1,)](x, x, N=N)
