"""The guard: what it reports, what it counts, and that it does not affect clean kernels."""

# Triton types a kernel's constexpr parameters as constexpr, and takes plain values for them.
# pyright: reportArgumentType=false

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before Triton is imported", allow_module_level=True)

import triton
import triton.language as tl

from tinynet_engines.interpreter import GuardError, guard


@triton.jit
def scale_kernel(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    tl.store(y_ptr + offsets, 2 * tl.load(x_ptr + offsets, mask=inside, other=0.0), mask=inside)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_bk, stride_cm,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        a_mask = (row[:, None] < M) & (depth[None, :] < K)
        b_mask = (depth[:, None] < K) & (col[None, :] < N)
        a = tl.load(a_ptr + row[:, None] * stride_am + depth[None, :], mask=a_mask, other=0.0)
        b = tl.load(b_ptr + depth[:, None] * stride_bk + col[None, :], mask=b_mask, other=0.0)
        acc = tl.dot(a, b, acc)
    c_mask = (row[:, None] < M) & (col[None, :] < N)
    tl.store(c_ptr + row[:, None] * stride_cm + col[None, :], acc.to(c_ptr.dtype.element_ty), mask=c_mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffle"])
def test_clean_matmul_computes_the_same_and_reports_nothing(dtype: torch.dtype, order: str) -> None:
    M, N, K = 33, 17, 40
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    c = torch.full((M, N), float("nan"), dtype=dtype)
    with guard(order=order) as watch:
        matmul_kernel[(2, 1)](a, b, c, M, N, K, K, N, N, BLOCK_M=32, BLOCK_N=32, BLOCK_K=16)
    unguarded = torch.full_like(c, float("nan"))
    matmul_kernel[(2, 1)](a, b, unguarded, M, N, K, K, N, N, BLOCK_M=32, BLOCK_N=32, BLOCK_K=16)
    assert watch.reports == []
    assert torch.equal(c, unguarded)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=2e-2, atol=2e-2)


def test_traffic_of_a_matmul() -> None:
    M, N, K = 33, 17, 40
    a, b, c = torch.randn(M, K), torch.randn(K, N), torch.empty(M, N)
    with guard() as watch:
        matmul_kernel[(2, 1)](a, b, c, M, N, K, K, N, N, BLOCK_M=32, BLOCK_N=32, BLOCK_K=16)
    (launch,) = watch.launches
    assert (launch.kernel, launch.grid) == ("matmul_kernel", (2, 1, 1))
    traffic = launch.arguments
    assert (traffic["a_ptr"].elements, traffic["a_ptr"].elements_read) == (M * K, M * K)
    assert traffic["a_ptr"].bytes_loaded == 4 * M * K
    assert traffic["b_ptr"].bytes_loaded == 2 * 4 * K * N  # once per row of programs
    assert traffic["b_ptr"].elements_read == K * N
    assert traffic["c_ptr"].bytes_stored == 4 * M * N and traffic["c_ptr"].elements_written == M * N
    assert traffic["c_ptr"].bytes_loaded == 0 and traffic["a_ptr"].elements_written == 0
    assert launch.bytes_loaded == 4 * (M * K + 2 * K * N) and launch.bytes_stored == 4 * M * N
    assert launch.dot_flops == 2 * 3 * 2 * 32 * 32 * 16  # two programs, three iterations


def test_an_unwritten_output_shows_in_the_traffic() -> None:
    x, y = torch.randn(100), torch.empty(100)
    with guard() as watch:
        scale_kernel[(1,)](x, y, 100, BLOCK=64)  # the grid is one short
    assert watch.launches[0].arguments["y_ptr"].elements_written == 64


def test_strict_guard_raises_at_the_end_and_names_the_line() -> None:
    x, y = torch.randn(100), torch.empty(90)
    with pytest.raises(GuardError, match=r"out-of-bounds.*y_ptr\[90\]") as caught, guard():
        scale_kernel[(2,)](x, y, 100, BLOCK=64)
        reached = True
    assert reached
    (report,) = caught.value.reports
    assert report.kernel == "scale_kernel" and report.program == (1, 0, 0)
    assert report.location.startswith(__file__) and report.source.startswith("tl.store(y_ptr + offsets")
    assert "element offsets 90..99" in report.message


def test_an_exception_inside_is_not_replaced() -> None:
    with pytest.raises(ZeroDivisionError), guard():
        scale_kernel[(2,)](torch.randn(100), torch.empty(90), 100, BLOCK=64)
        raise ZeroDivisionError


def test_guard_leaves_the_interpreter_as_it_was() -> None:
    from triton.runtime import interpreter as triton_interpreter

    scale_kernel[(1,)](torch.randn(8), torch.empty(8), 8, BLOCK=8)
    with guard():
        assert guard.active() is not None
        with pytest.raises(RuntimeError, match="can't be nested"), guard():
            pass
    before = (dict(vars(triton_interpreter.InterpreterBuilder)), triton_interpreter._implicit_cvt)
    with guard():
        pass
    assert guard.active() is None
    assert (dict(vars(triton_interpreter.InterpreterBuilder)), triton_interpreter._implicit_cvt) == before


def test_guard_needs_an_interpreting_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), guard():
        pass


def test_an_empty_tensor_allows_nothing() -> None:
    with guard():
        scale_kernel[(1,)](torch.empty(0), torch.empty(0), 0, BLOCK=16)
    with guard(strict=False) as watch:
        scale_kernel[(1,)](torch.empty(0), torch.empty(4), 1, BLOCK=16)
    assert [report.kind for report in watch.reports] == ["out-of-bounds"]


@pytest.mark.parametrize("argument", ["poison", "order", "extent"])
def test_a_wrong_argument_is_named(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}: got 'wrong'"):
        guard(**{argument: "wrong"})


def test_an_adjacent_tensor_is_out_of_bounds() -> None:
    buffer = torch.zeros(300)
    with guard(strict=False) as watch:
        scale_kernel[(2,)](buffer[:100], buffer[100:200], 128, BLOCK=64)
    assert {report.kind for report in watch.reports} == {"out-of-bounds"}
    assert buffer[200:].count_nonzero() == 0  # a reported lane doesn't proceed
    with guard(extent="storage"):
        scale_kernel[(2,)](buffer[:100], torch.zeros(128), 128, BLOCK=64)


def test_a_gap_between_the_elements_of_a_view_is_out_of_bounds() -> None:
    wide = torch.randn(8, 16)
    with guard(strict=False) as watch:
        scale_kernel[(1,)](wide[:, :4], torch.empty(8), 8, BLOCK=8)
    assert [report.kind for report in watch.reports] == ["out-of-bounds"]
    with guard():
        scale_kernel[(1,)](wide[:, :8], torch.empty(8), 8, BLOCK=8)


@triton.jit
def pointer_table_kernel(table_ptr, sizes_ptr, BLOCK: tl.constexpr):
    tensor = tl.program_id(0)
    parameter_ptr = tl.load(table_ptr + tensor).to(tl.pointer_type(tl.float32))
    offsets = tl.arange(0, BLOCK)
    inside = offsets < tl.load(sizes_ptr + tensor)
    value = tl.load(parameter_ptr + offsets, mask=inside, other=0.0)
    tl.store(parameter_ptr + offsets, value + 1, mask=inside)


def pointer_table(tensors: list[torch.Tensor], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([tensor.data_ptr() for tensor in tensors]), torch.tensor(sizes)


def test_a_pointer_table_reaches_allowed_tensors() -> None:
    tensors = [torch.zeros(size) for size in (5, 16, 9)]
    table, sizes = pointer_table(tensors, [5, 16, 9])
    with guard() as watch:
        watch.allow(*tensors)
        pointer_table_kernel[(3,)](table, sizes, BLOCK=16)
    assert all((tensor == 1).all() for tensor in tensors)
    assert watch.launches[0].arguments["allowed[1]"].bytes_stored == 4 * 16


def test_a_pointer_table_is_held_to_the_extents_of_allowed_tensors() -> None:
    tensors = [torch.zeros(16)[:5], torch.zeros(16)]
    table, sizes = pointer_table(tensors, [6, 16])
    with guard(strict=False) as watch:
        watch.allow(*tensors)
        pointer_table_kernel[(2,)](table, sizes, BLOCK=16)
    assert {report.kind for report in watch.reports} == {"out-of-bounds"}
    with guard(strict=False) as watch:
        pointer_table_kernel[(2,)](table, sizes, BLOCK=16)
    assert "guard.allow" in watch.reports[0].message


def test_two_programs_at_one_allowed_tensor_race() -> None:
    tensor = torch.zeros(16)
    table, sizes = pointer_table([tensor, tensor], [16, 16])
    with guard(strict=False) as watch:
        watch.allow(tensor)
        pointer_table_kernel[(2,)](table, sizes, BLOCK=16)
    assert {report.kind for report in watch.reports} == {"read-write", "write-write"}


@triton.jit
def unspecified_kernel(x_ptr, y_ptr, size, OPERATION: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size)
    if OPERATION == "sum":
        tl.store(y_ptr, tl.sum(x, axis=0))
    elif OPERATION == "max":
        tl.store(y_ptr, tl.max(x, axis=0))
    elif OPERATION == "masked":  # in place: no poison reaches a result
        y = tl.load(y_ptr + offsets, mask=offsets < size)
        tl.store(y_ptr + offsets, x + y, mask=offsets < size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("poison", ["nan", "inf", "-inf", "scattered"])
@pytest.mark.parametrize("operation", ["sum", "max", "masked"])
def test_poison_is_reported_where_it_reaches_a_result(operation: str, poison: str, dtype: torch.dtype) -> None:
    x, y = torch.arange(-20, 0).to(dtype), torch.zeros(20, dtype=dtype)
    with guard(poison=poison, strict=False, overflow=False) as watch:
        unspecified_kernel[(1,)](x, y, 20, OPERATION=operation, BLOCK=32)
    if operation == "masked":
        assert watch.reports == [] and torch.equal(y, x)
        return
    (report,) = watch.reports
    assert report.kind == "poison" and report.source.startswith("x = tl.load(")
    if operation == "sum" and dtype.is_floating_point and poison != "scattered":
        expected = torch.tensor([float(poison)]).to(dtype)  # the final results are those of the chosen poison
        torch.testing.assert_close(y[:1], expected, equal_nan=True)


@triton.jit
def canceling_kernel(x_ptr, y_ptr, sum_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    inside = offsets < size
    x = tl.load(x_ptr + offsets, mask=inside)
    y = tl.load(y_ptr + offsets, mask=inside)
    harmless = tl.load(y_ptr + offsets, mask=inside)
    tl.store(sum_ptr, tl.sum(tl.abs(x - y), axis=0))
    tl.store(out_ptr + offsets, harmless, mask=inside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.uint8])
def test_poison_that_cancels_is_found_and_harmless_loads_are_not_blamed(dtype: torch.dtype) -> None:
    x, y, total, out = torch.ones(20).to(dtype), torch.ones(20).to(dtype), torch.zeros(1).to(dtype), torch.zeros(20)
    with guard(strict=False) as watch:
        canceling_kernel[(1,)](x, y, total, out.to(dtype), 20, BLOCK=32)
    assert {report.kind for report in watch.reports} == {"poison"}
    assert [report.source[:1] for report in watch.reports] == ["x", "y"]


@triton.jit
def scaled_index_kernel(index_ptr, table_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    inside = offsets < size
    place = tl.load(index_ptr + offsets, mask=inside) * 4
    tl.store(out_ptr + offsets, tl.load(table_ptr + place, mask=inside, other=0.0), mask=inside)


def test_an_overflow_of_poison_alone_is_none() -> None:
    index, table, out = torch.arange(20, dtype=torch.int32), torch.randn(80), torch.zeros(20)
    with guard():
        scaled_index_kernel[(1,)](index, table, out, 20, BLOCK=32)
    assert torch.equal(out, table[::4])
    with guard(strict=False) as watch:
        scaled_index_kernel[(1,)](index + 2**30, table, out, 20, BLOCK=32)
    assert [report.kind for report in watch.reports] == ["overflow"]


@triton.jit
def one_element_kernel(x_ptr, y_ptr, size, HAS_OTHER: tl.constexpr):
    offsets = tl.arange(0, 1)
    if HAS_OTHER:
        x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0)
    else:
        x = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(y_ptr + offsets, x)


def test_a_zero_for_a_block_of_one_element_is_an_other() -> None:
    x, y = torch.randn(1), torch.full((1,), float("nan"))
    with guard():
        one_element_kernel[(1,)](x, y, 0, HAS_OTHER=True)
    assert y.item() == 0
    with guard(strict=False) as watch:
        one_element_kernel[(1,)](x, y, 0, HAS_OTHER=False)
    assert [report.kind for report in watch.reports] == ["poison"]


def test_no_poison_leaves_zeros() -> None:
    x, y = torch.ones(20), torch.zeros(20)
    with guard(poison=None) as watch:
        unspecified_kernel[(1,)](x, y, 20, OPERATION="sum", BLOCK=32)
    assert watch.reports == [] and y[0] == 20


@triton.jit
def in_place_kernel(x_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    tl.store(x_ptr + offsets, x + 1, mask=inside)
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets, mask=inside, other=0.0) * 2, mask=inside)


@pytest.mark.parametrize("barriers", [False, True])
def test_a_missing_barrier_is_reported_on_request(barriers: bool) -> None:
    with guard(barriers=barriers, strict=False) as watch:
        in_place_kernel[(2,)](torch.zeros(20), 20, BLOCK=16)
    assert {report.kind for report in watch.reports} == ({"no-barrier"} if barriers else set())
    assert len(watch.reports) == (2 if barriers else 0)  # one per line that stores


@triton.jit
def separated_kernel(x_ptr, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    tl.debug_barrier()
    tl.store(x_ptr + offsets, x + 1, mask=inside)
    tl.debug_barrier()
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
    tl.debug_barrier()
    tl.store(x_ptr + offsets, x * 2, mask=inside)


def test_barriers_separate_loads_from_stores() -> None:
    x = torch.zeros(20)
    with guard(barriers=True):
        separated_kernel[(2,)](x, 20, BLOCK=16)
    assert (x == 2).all()


@triton.jit
def descriptor_kernel(x_ptr, y_ptr, rows, cols, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows, cols], [cols, 1], [BLOCK, BLOCK])
    y = tl.make_tensor_descriptor(y_ptr, [rows, cols], [cols, 1], [BLOCK, BLOCK])
    row, col = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    y.store([row, col], x.load([row, col]) * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_descriptors_are_checked_too(dtype: torch.dtype) -> None:
    x = torch.randn(20, 40).to(dtype)
    y = torch.full_like(x, float("nan"))
    with guard() as watch:
        descriptor_kernel[(2, 3)](x, y, 20, 40, BLOCK=16)
    assert torch.equal(y, 2 * x)
    assert watch.launches[0].arguments["x_ptr"].bytes_loaded == x.numel() * dtype.itemsize
    with guard(strict=False) as watch:
        descriptor_kernel[(2, 3)](x, y[:19], 20, 40, BLOCK=16)
    assert {report.kind for report in watch.reports} == {"out-of-bounds"}


class Pair(NamedTuple):
    source: torch.Tensor
    target: torch.Tensor


@triton.jit
def tuple_kernel(pair, size, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(pair[1] + offsets, tl.load(pair[0] + offsets, mask=offsets < size, other=0.0), mask=offsets < size)


def test_tensors_in_a_tuple_are_arguments() -> None:
    x, y = torch.randn(10), torch.zeros(10)
    with guard() as watch:
        tuple_kernel[(1,)](Pair(x, y), 10, BLOCK=16)
    assert torch.equal(x, y)
    assert watch.launches[0].arguments["pair[1]"].bytes_stored == 40


@triton.jit
def histogram_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr, USE_ATOMIC: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0)
    if USE_ATOMIC:
        tl.atomic_add(out_ptr + offsets % 4, x, mask=offsets < size)
    else:
        tl.store(out_ptr, tl.load(out_ptr) + tl.sum(x, axis=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_atomics_of_several_programs_are_no_race(dtype: torch.dtype) -> None:
    x, out = torch.randint(-4, 5, (100,)).to(dtype), torch.zeros(4, dtype=dtype)
    with guard() as watch:
        histogram_kernel[(4,)](x, out, 100, BLOCK=32, USE_ATOMIC=True)
    assert torch.equal(out, x.reshape(25, 4).sum(0))
    assert watch.launches[0].arguments["out_ptr"].bytes_stored == 100 * dtype.itemsize


def test_order_and_seed_decide_the_order_of_programs() -> None:
    def run(**options: object) -> list[float]:
        log = torch.zeros(9)
        with guard(strict=False, races=False, **options):
            order_kernel[(8,)](log)
        return log[1:].tolist()

    assert run(order="forward") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert run(order="reverse") == [7, 6, 5, 4, 3, 2, 1, 0]
    shuffled = run(order="shuffle")
    assert sorted(shuffled) == run(order="forward") and shuffled == run(order="shuffle")
    assert shuffled != run(order="shuffle", seed=1) and shuffled != run(order="forward")


@triton.jit
def order_kernel(log_ptr):
    position = tl.load(log_ptr)
    tl.store(log_ptr + 1 + position.to(tl.int32), tl.program_id(0).to(tl.float32))
    tl.store(log_ptr, position + 1)
