"""Planted faults, each with the instrument that must report it and what that must report.

The guard runs kernels in the interpreter (`pytest --engine interpreter`), the launch report compiles them (any other
engine), so each engine runs its part of the list. Each fault has a twin without it, which must cause no report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import triton
from engines import mutations
from engines.interpreter import guard_faults
from engines.mutations import mutation
from engines.offline import report_faults
from triton import knobs

import tinynet

GUARD = "guard"
GUARD_OF_BARRIERS = "guard(barriers=True)"
REPORT = "launch report"


class Fault(NamedTuple):
    """One line of the list.

    Attributes:
        name: the fault.
        instrument: the tool that must report it.
        kinds: the kinds of report or finding; `CompilationError` if the kernel must not compile.
        plant: runs the kernel, with or without the fault.
    """

    name: str
    instrument: str
    kinds: set[str]
    plant: Callable[[bool], Any]


def of(launcher: Callable[[str], None], fault: str) -> Callable[[bool], None]:
    """A plant of `guard_faults`, whose kernels select a fault by name."""
    return lambda faulty: launcher(fault if faulty else "none")


# Small kernels, each with its own fault.
SMALL = [
    *(
        Fault(name, GUARD, says, of(launcher, name))
        for name, says, launcher in [
            ("removed load mask", {"out-of-bounds"}, guard_faults.softmax),
            ("removed store mask", {"out-of-bounds", "write-write"}, guard_faults.softmax),
            ("mask one too wide", {"out-of-bounds", "write-write"}, guard_faults.softmax),
            ("missing other", {"poison"}, guard_faults.softmax),
            ("swapped strides", {"out-of-bounds"}, guard_faults.softmax),
            ("stride of the wrong tensor", {"out-of-bounds"}, guard_faults.softmax),
            ("bytes instead of elements", {"out-of-bounds"}, guard_faults.softmax),
            ("negative offset", {"out-of-bounds"}, guard_faults.softmax),
            ("grid one too long", {"out-of-bounds"}, guard_faults.softmax),
            ("row forgotten in the store", {"write-write"}, guard_faults.softmax),
            ("two rows overlap", {"write-write"}, guard_faults.softmax),
            ("lanes folded onto each other", {"duplicate-store"}, guard_faults.softmax),
            ("misaligned pointer", {"misaligned"}, guard_faults.softmax),
            ("row bound forgotten", {"out-of-bounds"}, guard_faults.column_sum),
            ("sum without atomics", {"read-write", "write-write"}, guard_faults.column_sum),
            ("atomic and plain store", {"write-write"}, guard_faults.column_sum),
            ("reads its neighbor's partial sum", {"read-write"}, guard_faults.column_sum),
            ("atomic result read too early", {"read-write"}, guard_faults.column_sum),
            ("in place over what others read", {"read-write"}, guard_faults.shift_in_place),
            ("writes what all programs read", {"read-write"}, guard_faults.shift_in_place),
            ("int32 offset past 2^31", {"overflow", "out-of-bounds"}, guard_faults.large_offset),
            ("poisoned index", {"out-of-bounds"}, guard_faults.gather),
            ("label out of range", {"out-of-bounds"}, guard_faults.gather),
            ("failed device_assert", {"assertion"}, guard_faults.gather),
        ]
    ),
    *(
        Fault(plant.__name__.replace("_", " "), REPORT, {says}, plant)
        for plant, says in [
            (report_faults.shared_memory_of_one_chip, "shared_memory"),
            (report_faults.shared_memory_of_every_chip, "shared_memory"),
            (report_faults.shared_memory_on_amd, "shared_memory"),
            (report_faults.element_index_over_31_bits, "index_overflow"),
            (report_faults.row_offset_over_31_bits, "index_overflow"),
            (report_faults.carried_offset_over_31_bits, "index_overflow"),
            (report_faults.grid_over_its_limit, "grid"),
            (report_faults.scratch_memory_without_an_allocator, "allocator"),
            (report_faults.spilled_registers, "spill"),
            (report_faults.odd_stride_loses_vectorization, "vectorization"),
            (report_faults.gather_of_single_elements, "vectorization"),
            (report_faults.misaligned_argument, "misaligned"),
            (report_faults.serialized_matrix_products, "serialized_wait"),
            (report_faults.most_multiprocessors_idle, "idle"),
            (report_faults.atomic_that_the_chip_lacks, "compare_and_swap"),
            (report_faults.product_of_vectors, "CompilationError"),
            (report_faults.name_reused_by_a_run_time_loop, "CompilationError"),
            (report_faults.product_too_shallow_for_the_matrix_unit, "CompilationError"),
        ]
    ),
]

# Our own kernels with one line changed: file, line, replacement, and the function that runs it.
OURS = [
    Fault("linear: stores rows past the last", GUARD, {"out-of-bounds"}, mutation(
        "linear", "mask = (row < M - row_start)[:, None] & column_mask[None, :]",
        "mask = (row < TILE.block_m)[:, None] & column_mask[None, :]", mutations.linear_of_odd_sizes)),
    Fault("matrix product: no mask at the end of the reduction", GUARD, {"out-of-bounds"}, mutation(
        "gemm", "mask=(k < k_end - step_start)[None, :]", "mask=(k < BLOCK_K)[None, :]",
        mutations.linear_of_odd_sizes, user="linear")),
    Fault("matrix product: no `other` at the end of the reduction", GUARD, {"poison"}, mutation(
        "gemm", "mask=(k < k_end - step_start)[None, :], other=0.0", "mask=(k < k_end - step_start)[None, :]",
        mutations.linear_of_odd_sizes, user="linear")),
    Fault("convolution: reads the padding", GUARD, {"out-of-bounds"}, mutation(
        "conv.window", "valid = tl.cast(bits & 1, tl.int1)", "valid = windows.in_tile",
        mutations.convolution_with_padding, user="conv.forward")),
    Fault("max-pooling: reads the padding", GUARD, {"out-of-bounds"}, mutation(
        "pool.maximum", "tap = k if TILE.always_inside else nearest_taps(k, first, end, WINDOW)", "tap = k",
        mutations.pooling_with_padding)),
    Fault("average pooling: no `other` for windows that don't exist", GUARD, {"poison"}, mutation(
        "pool.mean", "mask=at.mask & holds, other=0.0", "mask=at.mask & holds",
        mutations.overlapping_means_backward)),
    Fault("embedding: no mask of columns", GUARD, {"out-of-bounds", "duplicate-store"}, mutation(
        "embedding", "token_mask[:, None] & (column < columns)[None, :]",
        "token_mask[:, None] & (column >= 0)[None, :]", mutations.lookup)),
    Fault("embedding: the token after its own", GUARD, {"out-of-bounds"}, mutation(
        "embedding", "order_ptr + i)", "order_ptr + i + 1)", mutations.lookup_backward)),
    Fault("layout: swapped strides", GUARD, {"out-of-bounds"}, mutation(
        "layout", "row * columns + column", "row * rows + column", mutations.image_to_channels_last)),
    Fault("cross-entropy: no upper bound of labels", GUARD, {"out-of-bounds"}, mutation(
        "cross_entropy", " & (at.label < C)", "", mutations.label_out_of_range)),
    Fault("SGD: no mask in the last block", GUARD, {"out-of-bounds"}, mutation(
        "optimizer", "mask = None if left is None else offset < left",
        "mask = None if left is None else offset < TILE.block", mutations.sgd_of_an_odd_size)),
    Fault("SGD: no barrier before it overwrites what it loaded", GUARD_OF_BARRIERS, {"no-barrier"}, mutation(
        "optimizer", "tl.debug_barrier()", "pass", mutations.sgd_of_an_odd_size)),
    Fault("linear: output offset in 32 bits", REPORT, {"index_overflow"}, mutation(
        "linear", "base = row_start.to(tl.int64) * N", "base = row_start * N",
        mutations.product("sm_90", M=70_000, N=32_768, K=64))),
    Fault("embedding: row offset in 32 bits", REPORT, {"index_overflow"}, mutation(
        "embedding", "dw_ptr + row.to(tl.int64) * columns", "dw_ptr + row * columns",
        mutations.gradient_of_a_large_vocabulary)),
    Fault("matrix product: alignment to 8 elements hidden from the compiler", REPORT, {"vectorization"}, mutation(
        "gemm", 'if target.kind == "cpu":', "if target.kind:", mutations.product("sm_80", K=1032), user="linear")),
    Fault("tile: a stage more than fits", REPORT, {"shared_memory"}, mutation(
        "tiles", "stages = min(tile.num_stages, target.shared_memory // stage)", "stages = tile.num_stages + 1",
        mutations.product("sm_89"), user="linear")),
    Fault("tile: half the warps", REPORT, {"spill"}, mutation(
        "tiles", "GemmTile(128, 256, 64, 8, 3)", "GemmTile(128, 256, 64, 4, 3)",
        mutations.product("sm_80"), user="linear")),
    Fault("linear: a sum by 16-bit atomics", REPORT, {"compare_and_swap"}, mutation(
        "linear", "tl.store(dw_ptr", "tl.atomic_add(dw_ptr", mutations.weight_gradient)),
]  # fmt: skip

FAULTS = SMALL + OURS


def test_the_list_is_long_and_names_each_fault_once():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    assert len(OURS) >= 12


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_planted_fault_is_caught(fault: Fault):
    assert reported_kinds(fault, faulty=True) >= fault.kinds
    assert not reported_kinds(fault, faulty=False) & fault.kinds


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.instrument != REPORT], ids=lambda fault: fault.name
)
def test_the_guard_says_no_more_in_any_order(fault: Fault):
    assert reported_kinds(fault, faulty=True, order="forward") == reported_kinds(fault, faulty=True) == fault.kinds
    assert reported_kinds(fault, faulty=False) == set()


def reported_kinds(fault: Fault, faulty: bool, order: Any = "shuffle") -> set[str]:
    """The kinds of fault that the instrument reported."""
    if (fault.instrument == REPORT) == knobs.runtime.interpret:
        pytest.skip("needs the other setting of TRITON_INTERPRET")
    if fault.instrument != REPORT:
        with tinynet.guard(order=order, barriers=fault.instrument == GUARD_OF_BARRIERS, strict=False) as watch:
            fault.plant(faulty)
        return {report.kind for report in watch.reports}
    try:
        return {finding.kind for _, finding in fault.plant(faulty).findings}
    except triton.CompilationError:
        return {"CompilationError"}
