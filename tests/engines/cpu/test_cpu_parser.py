"""Text of Triton's IR to the engine's IR."""

from __future__ import annotations

import pytest

from tinynet_engines.cpu.ir import Type, UnsupportedOperation
from tinynet_engines.cpu.parser import ParseError, parse, parse_type, split_locations, split_top_level


def module(body: str, arguments: str = "%x: !tt.ptr<f32>, %n: i32") -> str:
    return f"module {{\n  tt.func public @kernel({arguments}) {{\n{body}\n    tt.return\n  }}\n}}\n"


def test_types() -> None:
    assert parse_type("i32") == Type((), "i32")
    assert parse_type("!tt.ptr<f32>") == Type((), "*f32")
    assert parse_type("tensor<16x32x!tt.ptr<bf16>>") == Type((16, 32), "*bf16")
    assert parse_type("tensor<8xi1>") == Type((8,), "i1")
    assert parse_type("!tt.ptr<i8, 1>") == Type((), "*i8")
    with pytest.raises(ParseError):
        parse_type("!tt.tensordesc<tensor<16xf32>>")


def test_brackets_and_strings_protect_separators() -> None:
    assert split_top_level('tensor<1x2xf32>, (a, b), "x, y", i32') == ["tensor<1x2xf32>", "(a, b)", '"x, y"', "i32"]


def test_locations_are_split_off() -> None:
    line = '%a = foo %b : i32 loc("name"(#loc3))'
    assert split_locations(line) == ("%a = foo %b : i32", '"name"(#loc3)')
    line = '^bb0(%a: f32 loc("a"(#loc1)), %b: i32 loc(unknown)):'
    assert split_locations(line) == ("^bb0(%a: f32, %b: i32):", "")


def test_operands_results_and_attributes() -> None:
    function = parse(
        module(
            """    %r = tt.make_range {end = 16 : i32, start = 0 : i32} : tensor<16xi32>
    %p = tt.splat %x : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>>
    %q = tt.addptr %p, %r : tensor<16x!tt.ptr<f32>>, tensor<16xi32>
    %s = tt.splat %n : i32 -> tensor<16xi32>
    %m = arith.cmpi slt, %r, %s : tensor<16xi32>
    %v = tt.load %q, %m cacheModifier = cg : tensor<16x!tt.ptr<f32>>
    tt.store %q, %v, %m : tensor<16x!tt.ptr<f32>>"""
        )
    )
    names = [operation.name for operation in function.walk()]
    assert names[-3:] == ["tt.load", "tt.store", "tt.return"]
    make_range, *_, load, store, _ = list(function.walk())
    assert make_range.integer("end") == 16
    assert load.result.type == Type((16,), "f32")
    assert store.operands[1] is load.result
    assert load.attributes["cacheModifier"] == "cg"
    assert store in load.result.users


def test_equal_names_in_sibling_regions_are_different_values() -> None:
    """The prototype resolved both to the last one: silently wrong output."""
    function = parse(
        module(
            """    %c = arith.cmpi slt, %n, %n : i32
    %r = scf.if %c -> (i32) {
      %a = arith.addi %n, %n : i32
      scf.yield %a : i32
    } else {
      %a = arith.muli %n, %n : i32
      scf.yield %a : i32
    }
    %a = arith.subi %r, %n : i32
    %b = arith.addi %a, %a : i32"""
        )
    )
    branch = next(operation for operation in function.walk() if operation.name == "scf.if")
    first, second = (region.terminator.operands[0] for region in branch.regions)
    assert first.owner is not None and first.owner.name == "arith.addi"
    assert second.owner is not None and second.owner.name == "arith.muli"
    last = function.blocks[0].operations[-2]
    assert last.operands[0].owner is not None and last.operands[0].owner.name == "arith.subi"


def test_calls_are_expanded() -> None:
    text = """module {
  tt.func public @kernel(%n: i32) {
    %a:2 = tt.call @helper(%n) : (i32) -> (i32, i32)
    %b = tt.call @helper(%a#1) : (i32) -> (i32, i32)
    %c = arith.addi %a#0, %a#1 : i32
    tt.return
  }
  tt.func private @helper(%x: i32) -> (i32, i32) attributes {noinline = true} {
    %0 = arith.addi %x, %x : i32
    tt.return %0, %x : i32, i32
  }
}
"""
    with pytest.raises(ParseError):  # one name for two results
        parse(text)
    function = parse(text.replace("%b = ", "%b:2 = "))
    assert [operation.name for operation in function.walk()] == ["arith.addi", "arith.addi", "arith.addi", "tt.return"]


def test_unknown_region_and_type_are_named_with_their_line() -> None:
    text = '#loc1 = loc("kernel.py":7:3)\n' + module("    %a = tt.mystery %n {\n    } loc(#loc1)")
    with pytest.raises(UnsupportedOperation, match=r"tt\.mystery"):
        parse(text)
    with pytest.raises(ParseError, match="used before"):
        parse(module("    %a = arith.addi %zz, %n : i32"))
