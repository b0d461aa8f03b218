"""The compile-only driver: what is recorded, what is left unchanged, what a chip would refuse."""

import json
import math

import pytest
import torch
import triton
from offline_kernels import (
    copy_kernel,
    mismatched_product_kernel,
    pointer_table_kernel,
    product_kernel,
    run,
    tuned_product_kernel,
    tuple_copy_kernel,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from triton import knobs

import tinynet
from tinynet_engines.offline import is_inspecting
from tinynet_engines.offline.targets import TARGETS


def copy(x: torch.Tensor, y: torch.Tensor) -> None:
    run(copy_kernel, (triton.cdiv(x.numel(), 1024),), x, y, x.numel(), BLOCK=1024)


def product(
    rows: int = 512, columns: int = 384, depth: int = 256, dtype: torch.dtype = torch.bfloat16, **options: int
) -> None:
    """Launch [rows, depth] x [depth, columns] on tensors without memory, both operands contiguous along depth."""
    a = torch.empty(rows, depth, dtype=dtype, device="meta")
    b = torch.empty(columns, depth, dtype=dtype, device="meta").t()
    c = torch.empty(rows, columns, dtype=dtype, device="meta")
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3, **options}
    grid = (triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(columns, tile["BLOCK_N"]))
    strides = (*a.stride(), *b.stride())
    run(product_kernel, grid, a, b, c, rows, columns, depth, *strides, INPUT_PRECISION="ieee", **tile)


@pytest.fixture(autouse=True)
def driver_untouched():
    before = triton.runtime.driver._active
    yield
    assert triton.runtime.driver._active is before
    assert not is_inspecting()


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_gets_the_matrix_instruction_of_every_target(target: str):
    stages = 2 if target.startswith("gfx") else 3
    with tinynet.inspect(target) as report:
        product(num_stages=stages)
    (launch,) = report.launches
    code = launch.kernel.code
    assert code.matrix_instruction.startswith(launch.target.matrix_instructions)
    assert code.loop_instructions > code.loop_matrix_instructions > 0
    assert set(code.loop_load_bits) == {128}
    assert code.spill_bytes == 0
    assert (code.asynchronous_copies > 0) or not launch.target.asynchronous_copies
    assert not launch.findings
    assert 0 < launch.occupancy <= 1


def test_cost_of_a_foreign_kernel_comes_from_footprints_and_dots():
    with tinynet.inspect("sm_90") as report:
        product(512, 384, 256)
    (launch,) = report.launches
    assert launch.cost_source == "arguments"
    assert launch.grid == (4, 3, 1)
    assert launch.flops == 2 * 512 * 384 * 256
    assert launch.bytes_read == 2 * (512 * 256 + 256 * 384)
    assert launch.bytes_written == 2 * 512 * 384
    assert launch.bytes == launch.bytes_read + launch.bytes_written
    assert launch.operand_type == "bf16"
    expected = max(launch.flops / 989.4e12, launch.bytes / 3350e9)
    assert launch.bound_seconds == pytest.approx(expected)
    assert launch.bound_by == "memory"
    resident, _ = launch.resident
    assert launch.waves == pytest.approx(12 / (132 * resident))
    assert launch.tail == pytest.approx(1 - launch.waves)


def test_fp32_products_are_held_against_the_fp32_peak():
    with tinynet.inspect("sm_90") as report:
        product(dtype=torch.float32, BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, num_warps=4)
    (launch,) = report.launches
    assert launch.operand_type == "fp32"
    assert launch.kernel.code.matrix_instruction == ""
    assert launch.arithmetic_seconds == pytest.approx(2 * 512 * 384 * 256 / 66.9e12)


def test_expanded_tensors_count_their_distinct_elements():
    with tinynet.inspect("sm_80") as report:
        copy(torch.empty(1, 64).expand(128, 64), torch.empty(128, 64))
    assert report.launches[0].bytes_read == 64 * 4
    assert report.launches[0].bytes_written == 128 * 64 * 4


def test_nothing_runs_and_memory_is_left_alone():
    x, y = torch.ones(100), torch.full((100,), 7.0)
    with tinynet.inspect("sm_80") as report:
        copy(x, y)
    assert len(report.launches) == 1
    assert (y == 7.0).all() and (x == 1.0).all()


@pytest.mark.parametrize("kind", ["cpu", "meta", "fake"])
def test_every_kind_of_tensor_is_taken(kind: str):
    if kind == "fake":
        with tinynet.inspect("sm_90") as report, FakeTensorMode():
            copy(torch.empty(5000), torch.empty(5000))
    else:
        with tinynet.inspect("sm_90") as report:
            copy(torch.empty(5000, device=kind), torch.empty(5000, device=kind))
    (launch,) = report.launches
    assert [(tensor.name, tensor.shape, tensor.dtype) for tensor in launch.tensors] == [
        ("x_ptr", (5000,), "float32"),
        ("y_ptr", (5000,), "float32"),
    ]
    assert [(tensor.read, tensor.written) for tensor in launch.tensors] == [(True, False), (False, True)]
    assert launch.scalars == {"n": 5000}
    assert launch.constants == {"BLOCK": 1024}


def test_the_previous_driver_comes_back_even_after_an_error():
    mine, before = object(), triton.runtime.driver._active
    triton.runtime.driver._active = mine  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with pytest.raises(KeyError), tinynet.inspect("sm_90"):
            raise KeyError("mine")
        assert triton.runtime.driver._active is mine
    finally:
        triton.runtime.driver._active = before


def test_inspections_nest_and_the_innermost_records():
    x, y = torch.empty(64), torch.empty(64)
    with tinynet.inspect("sm_90") as outer:
        copy(x, y)
        with tinynet.inspect("gfx942") as inner:
            assert is_inspecting()
            copy(x, y)
        assert is_inspecting()
        copy(x, y)
    assert len(outer.launches) == 2 and len(inner.launches) == 1
    assert {launch.target.name for launch in outer.launches} == {"sm_90"}
    assert inner.launches[0].target.name == "gfx942"


def test_a_kernel_that_does_not_compile_raises_and_keeps_the_report():
    x = torch.empty(64)
    with pytest.raises(triton.CompilationError), tinynet.inspect("sm_80") as report:
        copy(x, x.clone())
        run(mismatched_product_kernel, (1,), x, x, BLOCK=64)
    assert len(report.launches) == 1


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="target: expected one of sm_80.*got 'sm_70'"), tinynet.inspect("sm_70"):
        pass


def test_an_autotuner_takes_the_first_configuration_that_fits_and_remembers_nothing():
    a = torch.empty(64, 64, dtype=torch.bfloat16)
    state = dict(tuned_product_kernel.__dict__)
    with tinynet.inspect("sm_90") as report:
        run(tuned_product_kernel, (1,), a, a, torch.empty_like(a), 64, 64, 64)
    assert [launch.constants["BLOCK_M"] for launch in report.launches] == [64]
    assert not report.errors
    assert tuned_product_kernel.best_config.kwargs["BLOCK_M"] == 64
    assert {**tuned_product_kernel.__dict__, "best_config": None} == {**state, "best_config": None}


def test_an_autotuner_compiles_no_more_configurations_than_it_needs(monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda **facts: compiled.append(facts["metadata"]["name"]))
    a = torch.empty(64, 64, dtype=torch.bfloat16)
    with tinynet.inspect("sm_80"):
        run(tuned_product_kernel, (1,), a, a, torch.empty_like(a), 64, 64, 64)
    assert len(compiled) < len(tuned_product_kernel.configs)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_a_kernel_knows_its_registers_before_the_launch(target: str):
    x = torch.empty(4096)
    with tinynet.inspect(target) as report:
        kernel = copy_kernel.warmup(x, x, 4096, BLOCK=1024, grid=(1,))
        kernel._init_handles()
        copy(x, x)
    assert kernel.n_regs == report.launches[0].kernel.code.registers > 0


def test_more_threads_than_a_program_may_have_are_an_error_of_the_launch():
    x = torch.empty(4096)
    with tinynet.inspect("gfx942") as report:
        run(copy_kernel, (1,), x, x, 4096, BLOCK=4096, num_warps=32)
    assert [finding.kind for _, finding in report.errors] == ["threads"]


def test_tuples_of_tensors_are_flattened():
    x, y = torch.empty(64), torch.empty(64)
    with tinynet.inspect("sm_90") as report:
        run(tuple_copy_kernel, (1,), (x, y), 64, BLOCK=64)
    (launch,) = report.launches
    assert [(tensor.name, tensor.read, tensor.written) for tensor in launch.tensors] == [
        ("tensors.0", True, False),
        ("tensors.1", False, True),
    ]


def test_a_table_of_pointers_makes_the_cost_unknown():
    with tinynet.inspect("sm_90") as report:
        run(pointer_table_kernel, (1,), torch.empty(1, dtype=torch.int64), torch.empty(64), BLOCK=64)
    (launch,) = report.launches
    assert launch.bytes is None and launch.flops is None
    assert launch.bound_seconds is None and launch.bound_by == "unknown"
    assert report.total.unknown_costs == 1
    assert "1 launches of unknown cost left out" in report.table()


def test_totals_add_up_and_every_report_says_what_its_times_are():
    with tinynet.inspect("gfx950") as report:
        for _ in range(3):
            copy(torch.empty(4096), torch.empty(4096))
        product(num_stages=2)
    total = report.total
    assert (total.launches, total.kernels) == (4, 2)
    assert total.bytes == sum(launch.bytes or 0 for launch in report.launches)
    assert total.bound_seconds == pytest.approx(math.fsum(launch.bound_seconds or 0 for launch in report.launches))
    assert [count for _, count in report.groups()] == [3, 1]
    assert "lower bound from published peaks" in report.table()
    data = json.loads(json.dumps(report.to_dict(), default=str))
    assert "lower bound from published peaks" in data["note"]
    assert len(data["launches"]) == 4
    assert data["launches"][3]["matrix_instruction"].startswith("v_mfma")
