"""Parsing of Triton IR: scopes, loops, intervals, roots of pointers."""

import pytest

from tinynet_engines.offline.ir import analyze, parse


def kernel(body: str, arguments: str = "%x_ptr: !tt.ptr<f32>, %y_ptr: !tt.ptr<f32>, %n: i32") -> str:
    return f"module {{\n  tt.func public @kernel({arguments}) {{\n{body}\n    tt.return\n  }}\n}}\n"


SPLAT = "    %p = tt.splat %x_ptr : !tt.ptr<f32> -> tensor<64x!tt.ptr<f32>>\n"
LOAD = """    %q = tt.addptr %p, %o : tensor<64x!tt.ptr<f32>>, tensor<64xi32>
    %v = tt.load %q : tensor<64x!tt.ptr<f32>>"""


def offset(expression: str) -> str:
    """A load from x at program id x * n + range, where `expression` computes %i from %pid and %n."""
    return kernel(
        "    %pid = tt.get_program_id x : i32\n"
        f"    {expression}\n"
        "    %s = tt.splat %i : i32 -> tensor<64xi32>\n"
        "    %r = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>\n"
        "    %o = arith.addi %s, %r : tensor<64xi32>\n" + SPLAT + LOAD
    )


def test_no_public_function_is_an_error():
    with pytest.raises(ValueError, match="no public function"):
        parse("module {\n}\n")


def test_overflow_begins_exactly_at_the_limit_of_32_bits():
    text = offset("%i = arith.muli %pid, %n : i32")
    last = (2**31 - 1 - 63) // 4096  # the largest row whose last element still fits
    assert not analyze(text, {2: 4096}, (last + 1, 1, 1)).overflows
    assert set(analyze(text, {2: 4096}, (last + 2, 1, 1)).overflows) == {0}


def test_a_row_found_by_division_is_bounded():
    text = offset("%t = arith.divsi %pid, %n : i32\n    %i = arith.muli %t, %n : i32")
    assert not analyze(text, {2: 1000}, (2_000_000_000, 1, 1)).overflows


def test_a_remainder_is_bounded_by_its_divisor():
    text = offset("%t = arith.remsi %pid, %n : i32\n    %i = arith.muli %t, %t : i32")
    assert not analyze(text, {2: 46340}, (2**31 - 1, 1, 1)).overflows
    assert analyze(text, {2: 46400}, (2**31 - 1, 1, 1)).overflows


def test_overflow_that_reaches_no_address_is_no_fault():
    text = kernel("    %pid = tt.get_program_id x : i32\n    %i = arith.muli %pid, %n : i32")
    assert not analyze(text, {2: 2**30}, (1000, 1, 1)).overflows


def test_64_bit_offsets_do_not_overflow():
    text = offset("%i = arith.muli %pid, %n : i32").replace("i32", "i64")
    effects = analyze(text, {2: 4096}, (2**31 - 1, 1, 1))
    assert effects.read == {0}
    assert not effects.overflows


def test_a_64_bit_offset_cut_to_32_bits_overflows():
    text = offset("%w = arith.extsi %pid : i32 to i64\n    %i = arith.trunci %t : i64 to i32").replace(
        "    %i = ", "    %t = arith.muli %w, %w : i64\n    %i = "
    )
    assert not analyze(text, {}, (40_000, 1, 1)).overflows
    assert analyze(text, {}, (50_000, 1, 1)).overflows


def test_roots_are_followed_through_loops_branches_and_scopes():
    body = """    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %0:2 = scf.for %k = %c0 to %n step %c1 iter_args(%a = %x_ptr, %b = %y_ptr) -> (!tt.ptr<f32>, !tt.ptr<f32>)  : i32 {
      %1 = tt.load %a : !tt.ptr<f32>
      %2 = tt.addptr %a, %c1 : !tt.ptr<f32>, i32
      scf.yield %2, %b : !tt.ptr<f32>, !tt.ptr<f32>
    }
    %3 = arith.cmpi slt, %n, %c1 : i32
    %4 = scf.if %3 -> (!tt.ptr<f32>) {
      scf.yield %0#1 : !tt.ptr<f32>
    } else {
      scf.yield %0#1 : !tt.ptr<f32>
    }
    %cst = arith.constant 0.000000e+00 : f32
    tt.store %4, %cst : !tt.ptr<f32>"""
    effects = analyze(kernel(body), {2: 10}, (1, 1, 1))
    assert effects.read == {0}
    assert effects.written == {1}
    assert not effects.unknown_access


def test_a_swap_of_pointers_in_a_loop_reaches_both():
    body = """    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %0:2 = scf.for %k = %c0 to %n step %c1 iter_args(%a = %x_ptr, %b = %y_ptr) -> (!tt.ptr<f32>, !tt.ptr<f32>)  : i32 {
      %1 = tt.load %a : !tt.ptr<f32>
      scf.yield %b, %a : !tt.ptr<f32>, !tt.ptr<f32>
    }"""
    assert analyze(kernel(body), {2: 10}, (1, 1, 1)).read == {0, 1}


DOT = "%d = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<128x64xbf16> * tensor<64x32xbf16> -> tensor<128x32xf32>"
LOOP = f"""    %c0 = arith.constant 0 : i32
    %c64 = arith.constant 64 : i32
    scf.for %k = %c0 to %n step %c64  : i32 {{
      {DOT}
      scf.yield
    }}"""


def test_dots_are_counted_once_per_iteration():
    effects = analyze(kernel(LOOP), {2: 130}, (1, 1, 1))
    assert effects.dot_flops == 3 * 2 * 128 * 64 * 32
    assert effects.operand_type == "bf16"


def test_dots_of_nested_loops_multiply():
    inner = "\n".join(LOOP.splitlines()[2:])
    nested = LOOP.replace(f"      {DOT}", inner.replace("%k", "%j"))
    assert analyze(kernel(nested), {2: 130}, (1, 1, 1)).dot_flops == 9 * 2 * 128 * 64 * 32


def test_dots_in_a_loop_of_unknown_length_are_unknown():
    body = "    %m = tt.load %y_ptr : !tt.ptr<i32>\n" + LOOP.replace("to %n", "to %m")
    effects = analyze(kernel(body), {2: 130}, (1, 1, 1))
    assert effects.dot_flops is None
    assert effects.operand_type == "bf16"


@pytest.mark.parametrize("element, precision, expected", [
    ("f32", "tf32", "tf32"), ("f32", "ieee", "fp32"), ("f32", "tf32x3", "tf32x3"), ("f16", "tf32", "fp16"),
    ("f8E5M2", "tf32", "fp8"),
])  # fmt: skip
def test_operand_types(element: str, precision: str, expected: str):
    text = kernel("    " + DOT.replace("bf16", element).replace("= tf32", f"= {precision}"))
    assert analyze(text, {}, (1, 1, 1)).operand_type == expected
