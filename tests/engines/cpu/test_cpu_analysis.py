"""Affine offsets, uniform values, memory and what is materialized."""

from __future__ import annotations

import pytest

from tinynet_engines.cpu.analysis import Analysis
from tinynet_engines.cpu.codegen import generate
from tinynet_engines.cpu.ir import Function, Operation
from tinynet_engines.cpu.parser import parse

HEAD = "module {\n  tt.func public @kernel(%x: !tt.ptr<f32>, %y: !tt.ptr<f32>, %n: i32, %s: i32) {\n"
RANGE = "    %r = tt.make_range {end = 16 : i32, start = 0 : i32} : tensor<16xi32>\n"


def function(body: str, head: str = HEAD) -> Function:
    return parse(head + RANGE + body + "    tt.return\n  }\n}\n")


def find(kernel: Function, name: str, occurrence: int = 0) -> Operation:
    return [operation for operation in kernel.walk() if operation.name == name][occurrence]


TILE = """    %i = tt.expand_dims %r {axis = 1 : i32} : tensor<16xi32> -> tensor<16x1xi32>
    %j = tt.expand_dims %r {axis = 0 : i32} : tensor<16xi32> -> tensor<1x16xi32>
    %t = tt.splat %s : i32 -> tensor<16x1xi32>
    %u = arith.muli %i, %t : tensor<16x1xi32>
    %ub = tt.broadcast %u : tensor<16x1xi32> -> tensor<16x16xi32>
    %jb = tt.broadcast %j : tensor<1x16xi32> -> tensor<16x16xi32>
    %o = arith.addi %ub, %jb : tensor<16x16xi32>
    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x16x!tt.ptr<f32>>
    %q = tt.addptr %p, %o : tensor<16x16x!tt.ptr<f32>>, tensor<16x16xi32>
    %v = tt.load %q : tensor<16x16x!tt.ptr<f32>>
"""


def test_steps_of_a_tile_of_pointers() -> None:
    kernel = function(TILE + "    tt.store %q, %v : tensor<16x16x!tt.ptr<f32>>\n")
    analysis = Analysis(kernel)
    pointer = find(kernel, "tt.load").operands[0]
    assert analysis.step(pointer, 0) is kernel.parameters[3]
    assert analysis.step(pointer, 1) == 1
    assert analysis.unit_dimension(pointer) == 1
    assert analysis.base(pointer) is kernel.parameters[0]
    assert analysis.written_parameters() == [0]


COPY_AT_W = """    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %q = tt.addptr %p, %w : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %v = tt.load %q : tensor<16x!tt.ptr<f32>>
    tt.store %q, %v : tensor<16x!tt.ptr<f32>>
"""


def test_a_remainder_is_affine_under_a_condition() -> None:
    kernel = function(
        """    %b = tt.splat %n : i32 -> tensor<16xi32>
    %w = arith.remsi %r, %b : tensor<16xi32>
"""
        + COPY_AT_W
    )
    analysis = Analysis(kernel)
    pointer = find(kernel, "tt.load").operands[0]
    assert analysis.step(pointer, 0) is None
    wraps: list = []
    assert analysis.step(pointer, 0, wraps) == 1
    assert wraps == [(kernel.parameters[2], 16)]


def test_a_remainder_of_a_range_that_starts_later() -> None:
    kernel = function(
        """    %b = tt.splat %n : i32 -> tensor<16xi32>
    %f = tt.splat %s : i32 -> tensor<16xi32>
    %m = arith.addi %f, %r : tensor<16xi32>
    %w = arith.remsi %m, %b : tensor<16xi32>
"""
        + COPY_AT_W
    )
    analysis = Analysis(kernel)
    n, s = kernel.parameters[2:]
    wraps: list = []
    assert analysis.step(find(kernel, "tt.load").operands[0], 0, wraps) == 1
    assert wraps == [(n, 16), (s, 0), (("-", n, ("%", s, n)), 16)]


def test_steps_within_runs() -> None:
    kernel = function(
        """    %c = arith.constant dense<8> : tensor<16xi32>
    %d = arith.divsi %r, %c : tensor<16xi32>
    %w = arith.remsi %r, %c : tensor<16xi32>
    %t = tt.splat %s : i32 -> tensor<16xi32>
    %far = arith.muli %d, %t : tensor<16xi32>
    %o = arith.addi %far, %w : tensor<16xi32>
    %m = arith.cmpi slt, %far, %t : tensor<16xi32>
    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %q = tt.addptr %p, %o : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %v = tt.load %q, %m : tensor<16x!tt.ptr<f32>>
    tt.store %q, %v : tensor<16x!tt.ptr<f32>>
"""
    )
    analysis = Analysis(kernel)
    pointer, mask = find(kernel, "tt.load").operands
    assert analysis.step(pointer, 0) is None
    assert [analysis.step(pointer, 0, run=run) for run in (2, 4, 8, 16)] == [1, 1, 1, None]
    assert [analysis.is_constant_in_runs(mask, 0, run) for run in (2, 4, 8, 16)] == [True, True, True, False]
    assert not analysis.is_constant_in_runs(pointer, 0, 8)


def test_what_a_smaller_float_type_can_hold() -> None:
    kernel = function(
        """    %c = arith.constant dense<0xFF800000> : tensor<16xf32>
    %zero = arith.constant dense<0.000000e+00> : tensor<16xf32>
    %tenth = arith.constant dense<1.000000e-01> : tensor<16xf32>
    %p = tt.splat %x : !tt.ptr<bf16> -> tensor<16x!tt.ptr<bf16>>
    %q = tt.addptr %p, %r : tensor<16x!tt.ptr<bf16>>, tensor<16xi32>
    %h = tt.load %q : tensor<16x!tt.ptr<bf16>>
    %v = arith.extf %h : tensor<16xbf16> to tensor<16xf32>
    %m = arith.cmpf ogt, %v, %c : tensor<16xf32>
    %a = arith.select %m, %v, %c : tensor<16xi1>, tensor<16xf32>
    %b = arith.addf %a, %zero : tensor<16xf32>
    %d = arith.addf %a, %v : tensor<16xf32>
    %e = arith.select %m, %a, %tenth : tensor<16xi1>, tensor<16xf32>
    %t = arith.truncf %b : tensor<16xf32> to tensor<16xbf16>
    tt.store %q, %t : tensor<16x!tt.ptr<bf16>>
""",
        HEAD.replace("%x: !tt.ptr<f32>", "%x: !tt.ptr<bf16>"),
    )
    analysis = Analysis(kernel)
    chosen, with_a_tenth = (find(kernel, "arith.select", occurrence).result for occurrence in (0, 1))
    sums = [find(kernel, "arith.addf", occurrence).result for occurrence in (0, 1)]
    assert analysis.is_exact(chosen, "bf16") and analysis.is_exact(sums[0], "bf16")
    assert not analysis.is_exact(chosen, "f16")
    assert not analysis.is_exact(sums[1], "bf16")
    assert not analysis.is_exact(with_a_tenth, "bf16")


ELEMENTWISE = """    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %px = tt.addptr %p, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %o = tt.splat %y : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %py = tt.addptr %o, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %v = tt.load %px : tensor<16x!tt.ptr<f32>>
    tt.store %py, %v : tensor<16x!tt.ptr<f32>>
"""


def test_a_load_is_fused_into_a_store_only_where_arguments_cannot_overlap() -> None:
    kernel = function(ELEMENTWISE)
    value = find(kernel, "tt.load").result
    disjoint = Analysis(kernel, assume_disjoint=True)
    assert value not in disjoint.materialized and disjoint.used_disjointness
    assert value in Analysis(kernel, assume_disjoint=False).materialized


ADDRESSES = """    %x1 = tt.addptr %x, %c1 : !tt.ptr<i64>, i32
    %a = tt.load %x : !tt.ptr<i64>
    %b = tt.load %x1 : !tt.ptr<i64>
    %pa = tt.int_to_ptr %a : i64 -> !tt.ptr<f32>
    %pb = tt.int_to_ptr %b : i64 -> !tt.ptr<f32>
    %sa = tt.splat %pa : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %sb = tt.splat %pb : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %qa = tt.addptr %sa, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %qb = tt.addptr %sb, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %v = tt.load %qa : tensor<16x!tt.ptr<f32>>
    %w = tt.load %qb : tensor<16x!tt.ptr<f32>>
"""
BOTH = "    tt.store %qa, %w : tensor<16x!tt.ptr<f32>>\n    tt.store %qb, %v : tensor<16x!tt.ptr<f32>>\n"


def loaded_addresses(stores: str) -> Function:
    head = HEAD.replace("%x: !tt.ptr<f32>", "%x: !tt.ptr<i64>")
    body = "    %c1 = arith.constant 1 : i32\n    %c0 = arith.constant 0 : i32\n" + ADDRESSES + stores
    return parse(head + RANGE + body + "    tt.return\n  }\n}\n")


def test_loaded_addresses_are_checked_before_the_one_loop_that_stores() -> None:
    kernel = loaded_addresses(BOTH)
    analysis = Analysis(kernel, assume_loaded_disjoint=True)
    stores = [find(kernel, "tt.store", 0), find(kernel, "tt.store", 1)]
    assert analysis.store_group[stores[0]] == tuple(stores) and analysis.checks_come_first()
    assert not analysis.materialized
    (pairs,) = analysis.overlap_checks.values()
    assert list(pairs) == [(stores[1].operands[0], stores[0].operands[0])]
    assert {find(kernel, "tt.load", 2).result, find(kernel, "tt.load", 3).result} == Analysis(kernel).materialized


def test_loaded_addresses_are_not_assumed_disjoint_after_a_side_effect() -> None:
    """A program can't restart once it has stored, and in a loop its stores run more than once."""
    scalar = "    tt.store %x, %a : !tt.ptr<i64>\n"
    loop = "    scf.for %l = %c0 to %n step %c1 : i32 {\n" + BOTH + "    }\n"
    for stores in (scalar + BOTH, BOTH + scalar, loop):
        analysis = Analysis(loaded_addresses(stores), assume_loaded_disjoint=True)
        assert not analysis.overlap_checks or not analysis.checks_come_first()


def test_a_load_stays_before_a_write_to_its_argument() -> None:
    shifted = """    %one = arith.constant dense<1> : tensor<16xi32>
    %pz = tt.addptr %px, %one : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    tt.store %pz, %c : tensor<16x!tt.ptr<f32>>
    tt.store %py, %v"""
    constant = "    %c = arith.constant dense<1.0> : tensor<16xf32>\n"
    kernel = function(constant + ELEMENTWISE.replace("    tt.store %py, %v", shifted))
    assert find(kernel, "tt.load").result in Analysis(kernel).materialized
    # the same elements: each is read before it is written
    kernel = function(constant + ELEMENTWISE.replace("    tt.store %py, %v", shifted.replace("store %pz", "store %px")))
    assert find(kernel, "tt.load").result not in Analysis(kernel).materialized


def test_pointers_that_advance_in_a_loop_are_not_materialized() -> None:
    kernel = function(
        TILE
        + """    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %k = arith.constant dense<32> : tensor<16x16xi32>
    %z:2 = scf.for %l = %c0 to %n step %c1 iter_args(%a = %v, %d = %q) -> (VALUES, POINTERS) : i32 {
      %g = tt.load %d : tensor<16x16x!tt.ptr<f32>>
      %h = arith.addf %a, %g : tensor<16x16xf32>
      %e = tt.addptr %d, %k : tensor<16x16x!tt.ptr<f32>>, tensor<16x16xi32>
      scf.yield %h, %e : tensor<16x16xf32>, tensor<16x16x!tt.ptr<f32>>
    }
    tt.store %q, %z#0 : tensor<16x16x!tt.ptr<f32>>
""".replace("VALUES", "tensor<16x16xf32>").replace("POINTERS", "tensor<16x16x!tt.ptr<f32>>")
    )
    analysis = Analysis(kernel)
    _, _, pointer = find(kernel, "scf.for").regions[0].arguments
    assert analysis.advances[pointer].increments == (32,)
    assert analysis.step(pointer, 1) == 1
    assert analysis.base(pointer) is kernel.parameters[0]


PREFIX = """    %b = tt.splat %n : i32 -> tensor<16xi32>
    %m = arith.cmpi slt, %r, %b : tensor<16xi32>
    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %q = tt.addptr %p, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %v = tt.load %q : tensor<16x!tt.ptr<f32>>
    %w = arith.addf %v, %v : tensor<16xf32>
"""


def test_what_a_select_lets_pass_limits_what_is_needed() -> None:
    kernel = function(
        PREFIX
        + """    %z = arith.select %m, %w, %v : tensor<16xi1>, tensor<16xf32>
    tt.store %q, %z : tensor<16x!tt.ptr<f32>>
"""
    )
    analysis = Analysis(kernel)
    assert analysis.needed_below(find(kernel, "arith.addf").result, 0) == [kernel.parameters[2]]
    assert analysis.needed_below(find(kernel, "tt.load").result, 0) == []
    assert analysis.needed_below(find(kernel, "arith.select").result, 0) == []


def test_a_use_that_bypasses_a_select_lifts_its_limit() -> None:
    kernel = function(
        PREFIX
        + """    %z = arith.select %m, %w, %v : tensor<16xi1>, tensor<16xf32>
    %s2 = arith.addf %z, %w : tensor<16xf32>
    tt.store %q, %s2 : tensor<16x!tt.ptr<f32>>
"""
    )
    assert Analysis(kernel).needed_below(find(kernel, "arith.addf").result, 0) == []


def test_a_bound_that_is_computed_after_a_product_limits_what_the_product_computes() -> None:
    """As of an epilogue's mask ``arange < n - start``: the difference is spelled out by operands that come before."""
    kernel = function(
        PREFIX
        + """    %left = arith.subi %n, %s : i32
    %lefts = tt.splat %left : i32 -> tensor<16xi32>
    %mask = arith.cmpi slt, %r, %lefts : tensor<16xi32>
    tt.store %q, %w, %mask : tensor<16x!tt.ptr<f32>>
"""
    )
    _, _, n, start = kernel.parameters
    assert Analysis(kernel).needed_below(find(kernel, "arith.addf").result, 0) == [("-", n, start)]


@pytest.mark.parametrize("carried", [True, False])
def test_a_loop_keeps_what_its_select_does_not_replace(carried: bool) -> None:
    """The limit of one iteration applies to what that iteration replaces, not to what the next one reads."""
    kernel = function(
        PREFIX
        + f"""    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %l = scf.for %k = %c0 to %s step %c1 iter_args(%a = %v) -> (tensor<16xf32>)  : i32 {{
      %kb = tt.splat %k : i32 -> tensor<16xi32>
      %km = arith.cmpi slt, %r, %kb : tensor<16xi32>
      tt.store %q, %a, %km : tensor<16x!tt.ptr<f32>>
      %d = arith.mulf %a, %a : tensor<16xf32>
      %e = arith.select %km, %d, %a : tensor<16xi1>, tensor<16xf32>
      scf.yield {"%e" if carried else "%d"} : tensor<16xf32>
    }}
"""
    )
    analysis = Analysis(kernel)
    loop, product = find(kernel, "scf.for"), find(kernel, "arith.mulf").result
    counter, argument = loop.regions[0].arguments
    assert set(analysis.needed_below(product, 0)) == ({counter} if carried else set())
    assert analysis.unchanged_from(argument, loop.regions[0].terminator.operands[0], 0) == (
        [counter] if carried else []
    )


@pytest.mark.parametrize(("size", "is_local"), [(16, True), (256, True), (512, False)])
def test_small_tiles_are_local_arrays(size: int, is_local: bool) -> None:
    """What a loop carries may then stay in registers; large tiles would fill a thread's stack."""
    head = HEAD + RANGE.replace("16", str(size))
    body = """    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %q = tt.addptr %p, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %zero = arith.constant dense<0.000000e+00> : tensor<16xf32>
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %l = scf.for %k = %c0 to %s step %c1 iter_args(%a = %zero) -> (tensor<16xf32>)  : i32 {
      %v = tt.load %q : tensor<16x!tt.ptr<f32>>
      %b = arith.addf %a, %v : tensor<16xf32>
      scf.yield %b : tensor<16xf32>
    }
    tt.store %q, %l : tensor<16x!tt.ptr<f32>>
""".replace("<16x", f"<{size}x")
    kernel = generate(parse(head + body + "    tt.return\n  }\n}\n"))
    assert (kernel.arena_bytes == 0) is is_local
    assert (f"[{size}] __attribute__((aligned(64)))" in kernel.body) is is_local


def test_the_parts_of_a_join_are_computed_once_and_together() -> None:
    body = """    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %q = tt.addptr %p, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %v = tt.load %q : tensor<16x!tt.ptr<f32>>
    %e = math.exp %v : tensor<16xf32>
    %m = arith.mulf %e, %e : tensor<16xf32>
    %j = tt.join %e, %m : tensor<16xf32> -> tensor<16x2xf32>
    %o = tt.reshape %j : tensor<16x2xf32> -> tensor<32xf32>
    %w = tt.make_range {end = 32 : i32, start = 0 : i32} : tensor<32xi32>
    %s2 = tt.splat %y : !tt.ptr<f32> -> tensor<32x!tt.ptr<f32>>
    %t = tt.addptr %s2, %w : tensor<32x!tt.ptr<f32>>, tensor<32xi32>
    tt.store %t, %o : tensor<32x!tt.ptr<f32>>
"""
    kernel = function(body)
    text = generate(kernel).body
    assert find(kernel, "tt.join").result in Analysis(kernel, assume_disjoint=True).materialized
    assert text.count("tn_expf") == 1 and text.index("tn_expf") < text.index("< 32")
