"""Effects of one launch, derived from Triton's IR: arguments read and written, dots, integer overflow.

The IR's text is parsed line by line into operations with nested regions, then walked with the launch's own grid and
scalars. Integers are tracked as intervals, pointers as the set of arguments that they may point into. This determines:

- which pointer arguments are read and which are written (the compulsory bytes of a kernel that declares no cost);
- how many floating-point operations its dots compute, if every trip count is known;
- whether 32-bit arithmetic that ends in an address can leave the range of int32.

Intervals are an over-approximation: a reported overflow may be hidden by a mask, or require two related values to be
extreme together; but every overflow that the launch can reach through tracked operations is reported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


@dataclass
class Operation:
    """One IR operation: `%results = name operands text` with its nested regions."""

    results: list[str]
    name: str
    operands: list[str]
    text: str
    regions: list[Region] = field(default_factory=list)


@dataclass
class Region:
    """A list of operations and the names of the block arguments that they may use."""

    arguments: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


@dataclass
class Function:
    """The kernel: the names of its arguments in order, which of them are pointers, and its body."""

    arguments: list[str]
    pointers: list[bool]
    body: Region


@dataclass(frozen=True)
class Value:
    """What is known of an IR value.

    Attributes:
        low, high: bounds of an integer (of every element of a tensor); None if unknown.
        roots: positions of the pointer arguments that the value may point into.
        overflow: the 32-bit operation whose overflow led to this value; empty if none.
        unbounded: whether a 32-bit offset of unknown bounds was added to the pointer.
        wide: whether a 64-bit offset was added to the pointer.
    """

    low: int | None = None
    high: int | None = None
    roots: frozenset[int] = frozenset()
    overflow: str = ""
    unbounded: bool = False
    wide: bool = False

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None

    def union(self, other: Value) -> Value:
        both = self.known and other.known
        return Value(
            min(self.low, other.low) if both else None,  # type: ignore[type-var]
            max(self.high, other.high) if both else None,  # type: ignore[type-var]
            self.roots | other.roots,
            self.overflow or other.overflow,
            self.unbounded or other.unbounded,
            self.wide or other.wide,
        )


UNKNOWN = Value()


@dataclass
class Effects:
    """The effects of one launch, by position of the pointer argument among all arguments of the compiled kernel.

    Attributes:
        read, written: arguments that are read and written.
        unknown_access: memory is accessed through a pointer that derives from no argument (a table of pointers).
        dot_flops: operations of one program's matrix products; None if a trip count is unknown.
        operand_type: operand type of the matrix products; `fp32` if there is none.
        dot_rows: fewest rows of a matrix product's left operand; None if there is no product.
        overflows: maps an argument to the 32-bit operation on its address that can leave the range of int32.
        unbounded: arguments addressed only by 32-bit offsets, of which at least one has unknown bounds.
    """

    read: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    unknown_access: bool = False
    dot_flops: int | None = 0
    operand_type: str = "fp32"
    dot_rows: int | None = None
    overflows: dict[int, str] = field(default_factory=dict)
    unbounded: set[int] = field(default_factory=set)


def analyze(text: str, scalars: Mapping[int, int], grid: Sequence[int]) -> Effects:
    """Follow one launch of the kernel through its IR.

    Args:
        text: Triton IR (`ttir`) of the kernel.
        scalars: integer arguments by position among the compiled kernel's arguments.
        grid: programs along x, y and z.

    Returns:
        The effects of the launch.
    """
    function = parse(text)
    walk = _Walk(grid)
    environment = {}
    for position, (name, pointer) in enumerate(zip(function.arguments, function.pointers, strict=True)):
        number = scalars.get(position)
        environment[name] = Value(roots=frozenset({position})) if pointer else Value(number, number)
    walk.region(function.body, environment, trips=1)
    return walk.effects


@lru_cache(maxsize=256)
def parse(text: str) -> Function:
    """Parse the public function of a module printed in Triton's own syntax.

    Raises:
        ValueError: the text contains no public function.
    """
    function: Function | None = None
    open_regions: list[Region] = []
    open_operations: list[Operation] = []
    for raw in text.splitlines():
        line = _without_locations(raw).strip()
        if "tt.func public" in line:
            parameters = re.findall(r"%([\w.$]+): (!?[\w.]+)", line)
            body = Region()
            pointers = [kind in ("!tt.ptr", "!tt.tensordesc") for _, kind in parameters]
            function = Function([name for name, _ in parameters], pointers, body)
            open_regions, open_operations = [body], []
        elif not open_regions or not line or line.startswith("#"):
            continue
        elif line.startswith("^"):
            open_regions[-1].arguments += re.findall(r"%([\w.$]+):", line)
        elif line.startswith("}"):
            open_regions.pop()
            if line.endswith("{"):  # `} else {`, `} do {`
                open_operations[-1].regions.append(Region())
                open_regions.append(open_operations[-1].regions[-1])
            elif open_operations:
                open_operations.pop()
            if not open_regions:
                break
        else:
            operation = _operation(line)
            open_regions[-1].operations.append(operation)
            if line.endswith("{"):
                operation.regions.append(Region())
                open_operations.append(operation)
                open_regions.append(operation.regions[0])
    if function is None:
        raise ValueError("the IR contains no public function")
    return function


def _without_locations(line: str) -> str:
    return re.sub(r"\s*loc\((?:[^()\"]|\"[^\"]*\"|\((?:[^()\"]|\"[^\"]*\")*\))*\)", "", line)


def _operation(line: str) -> Operation:
    left, _, right = line.partition(" = ") if line.startswith("%") else ("", "", line)
    results = []
    for name, count in re.findall(r"%([\w.$]+)(?::(\d+))?", left):
        results += [f"{name}#{index}" for index in range(int(count))] if count else [name]
    name = re.match(r'"?([\w.]+)', right)
    return Operation(results, name[1] if name else "", re.findall(r"%([\w.$]+(?:#\d+)?)", right), right)


def _integer_bits(text: str) -> int:
    """Width of the (last) integer type that an operation names; 0 if it names none."""
    widths = re.findall(r"(?<![\w.])(?:tensor<[\dx]*)?x?i(\d+)>?(?=[\s,>)]|$)", text)
    return int(widths[-1]) if widths else 0


def loop_bounds(operation: Operation, scope: Mapping[str, Value]) -> tuple[str, Value, Value, Value]:
    """The name of a loop's induction variable, and its start, stop and step."""
    header = re.match(
        r"scf\.for (?:unsigned )?%([\w.$]+) = %([\w.$#]+) to %([\w.$#]+) step %([\w.$#]+)", operation.text
    )
    assert header, operation.text
    start, stop, step = (scope.get(name, UNKNOWN) for name in header.groups()[1:])
    return header[1], start, stop, step


class _Walk:
    """One pass over the IR with the values of one launch."""

    def __init__(self, grid: Sequence[int]):
        self.grid = (*grid, 1, 1)[:3]
        self.effects = Effects()

    def region(self, region: Region, outer: Mapping[str, Value], trips: int | None) -> list[Value]:
        """Walk a region in its own scope; returns the values that its terminator yields."""
        scope = dict(outer)
        handed: list[Value] = []
        for operation in region.operations:
            operands = [scope.get(name, UNKNOWN) for name in operation.operands]
            if operation.name in ("scf.yield", "scf.condition", "tt.reduce.return", "tt.scan.return"):
                handed = operands[1:] if operation.name == "scf.condition" else operands
            elif operation.name == "scf.for":
                self._for(operation, scope, trips)
            elif operation.name == "scf.while":
                self._while(operation, scope)
            elif operation.name == "scf.if":
                branches = [self.region(each, scope, None) for each in operation.regions]
                for index, result in enumerate(operation.results):
                    options = [branch[index] for branch in branches if index < len(branch)]
                    scope[result] = options[0].union(options[-1]) if options else UNKNOWN
            else:
                value = self._simple(operation, operands, trips)
                for result in operation.results:
                    scope[result] = value
        return handed

    def _for(self, operation: Operation, scope: dict[str, Value], trips: int | None) -> None:
        name, start, stop, step = loop_bounds(operation, scope)
        inner: int | None = None
        if all(each.known and each.low == each.high for each in (start, stop, step)) and trips is not None:
            inner = trips * max(0, -(-(stop.low - start.low) // step.low))  # type: ignore[operator]
        induction = Value(start.low, max(start.low, stop.high - 1)) if start.known and stop.known else UNKNOWN  # type: ignore
        carried = re.findall(r"%([\w.$]+) = %([\w.$#]+)", operation.text.partition("iter_args")[2])
        values = [scope.get(initial, UNKNOWN) for _, initial in carried]
        scope_in = {**scope, name: induction}
        # The first pass finds how one iteration changes the carried values, the second walks any iteration.
        counted = self.effects.dot_flops
        handed = self.region(operation.regions[0], self._bind(scope_in, carried, values), inner)
        values = [_widen(before, after) for before, after in zip(values, handed, strict=True)]
        self.effects.dot_flops = counted
        handed = self.region(operation.regions[0], self._bind(scope_in, carried, values), inner)
        for result, before, after in zip(operation.results, values, handed, strict=True):
            scope[result] = before.union(after)

    @staticmethod
    def _bind(scope: dict[str, Value], carried: list[tuple[str, str]], values: list[Value]) -> dict[str, Value]:
        return {**scope, **{name: value for (name, _), value in zip(carried, values, strict=True)}}

    def _while(self, operation: Operation, scope: dict[str, Value]) -> None:
        initial = re.findall(r"%([\w.$]+) = %([\w.$#]+)", operation.text)
        values = [_widen(scope.get(name, UNKNOWN), UNKNOWN) for _, name in initial]
        for _ in range(2):
            condition, body = operation.regions
            handed = self.region(condition, self._bind(scope, initial, values), None)
            named = [(name, "") for name in body.arguments]
            after = self.region(body, self._bind(scope, named, handed), None)
            values = [_widen(before, each) for before, each in zip(values, after, strict=True)]
        for result, value in zip(operation.results, handed, strict=True):
            scope[result] = value

    def _simple(self, operation: Operation, operands: list[Value], trips: int | None) -> Value:
        name = operation.name
        if name in ("tt.load", "tt.descriptor_load", "tt.descriptor_gather"):
            self._access(operands[0], self.effects.read)
            return UNKNOWN
        if name in ("tt.store", "tt.descriptor_store", "tt.descriptor_scatter"):
            self._access(operands[0], self.effects.written)
            return UNKNOWN
        if name.startswith("tt.atomic") or name == "tt.descriptor_reduce":
            self._access(operands[0], self.effects.read)
            self._access(operands[0], self.effects.written)
            return UNKNOWN
        if name in ("tt.dot", "tt.dot_scaled"):
            self._dot(operation.text, trips)
            return UNKNOWN
        if name == "tt.call":
            self.effects.dot_flops = None
            for value in operands:
                self.effects.read |= value.roots
                self.effects.written |= value.roots
            return UNKNOWN
        if name == "tt.addptr":
            return _add_offset(operands[0], operands[1], _integer_bits(operation.text))
        if name == "tt.get_program_id":
            return Value(0, max(0, self.grid["xyz".index(operation.text.split()[1])] - 1))
        if name == "tt.get_num_programs":
            size = self.grid["xyz".index(operation.text.split()[1])]
            return Value(size, size)
        return arithmetic(operation, operands)

    def _access(self, pointer: Value, touched: set[int]) -> None:
        if not pointer.roots:
            self.effects.unknown_access = True
        touched |= pointer.roots
        for root in pointer.roots:
            if pointer.overflow:
                self.effects.overflows[root] = pointer.overflow
            if pointer.unbounded and not pointer.wide:
                self.effects.unbounded.add(root)

    def _dot(self, text: str, trips: int | None) -> None:
        match = _DOT_OPERANDS.search(text)
        if match is None:
            self.effects.dot_flops = None
            return
        precision = re.search(r"inputPrecision = (\w+)", text)
        self.effects.operand_type = _operand_type(match[2], precision[1] if precision else "ieee")
        rows = int(match[1].split("x")[-2])
        self.effects.dot_rows = min(rows, self.effects.dot_rows or rows)
        if trips is None or self.effects.dot_flops is None:
            self.effects.dot_flops = None
            return
        self.effects.dot_flops += (dot_flops(text) or 0) * trips


_DOT_OPERANDS = re.compile(r": tensor<([\dx]+)x(\w+)>(?:, [^*]*)? \* tensor<([\dx]+)x(\w+)>")


def dot_flops(text: str) -> int | None:
    """Operations of one matrix product, from its text; None if its operands are of another form."""
    match = _DOT_OPERANDS.search(text)
    if match is None:
        return None
    left, right = ([int(size) for size in match[group].split("x")] for group in (1, 3))
    return 2 * math.prod(left) * right[-1]


def _operand_type(element: str, precision: str) -> str:
    """The name under which a target lists the peak of a matrix product."""
    if element.startswith(("f8", "e4", "e5", "i8")):
        return "fp8"
    if element == "f32":
        return "fp32" if precision == "ieee" else precision
    return {"bf16": "bf16", "f16": "fp16"}.get(element, "fp32")


def _widen(before: Value, after: Value) -> Value:
    """The value of a loop-carried name in any iteration: a bound survives only if an iteration does not change it."""
    joined = before.union(after)
    if (before.low, before.high) == (after.low, after.high):
        return joined
    return Value(None, None, joined.roots, joined.overflow, joined.unbounded, joined.wide)


def _add_offset(pointer: Value, offset: Value, bits: int) -> Value:
    narrow = bits == 32
    return Value(
        roots=pointer.roots | offset.roots,
        overflow=pointer.overflow or offset.overflow,
        unbounded=pointer.unbounded or (narrow and not offset.known and not offset.overflow),
        wide=pointer.wide or not narrow,
    )


def arithmetic(operation: Operation, operands: list[Value]) -> Value:
    """Integer arithmetic on intervals, and every operation that only moves its operand."""
    name, text = operation.name, operation.text
    if name == "arith.constant":
        match = re.match(r"arith\.constant (?:dense<)?(-?\d+|true|false)>?(?: :|$)", text)
        if match is None:
            return UNKNOWN
        number = {"true": 1, "false": 0}.get(match[1])
        number = int(match[1]) if number is None else number
        return Value(number, number)
    if name == "tt.make_range":
        start, end = (re.search(rf"{key} = (-?\d+)", text) for key in ("start", "end"))
        return Value(int(start[1]), int(end[1]) - 1) if start and end else UNKNOWN
    if name.startswith(("arith.cmp", "tt.print", "tt.assert")):
        return Value(0, 1)
    joined = UNKNOWN
    if operands:
        joined = operands[0]
        for operand in operands[1:]:
            joined = joined.union(operand)
    if name == "arith.select":
        return operands[1].union(operands[2])
    if name in _MOVES:
        return joined
    bounds = _bounds(name, operands)
    if bounds is None:
        return Value(None, None, joined.roots, joined.overflow, joined.unbounded, joined.wide)
    low, high = bounds
    if _integer_bits(text) == 32 and (low < INT32_MIN or high > INT32_MAX):
        where = operation.results[0] if operation.results else "?"
        return Value(None, None, joined.roots, f"%{where} = {name} reaches {low if low < INT32_MIN else high}")
    return Value(low, high, joined.roots, joined.overflow, joined.unbounded, joined.wide)


_MOVES = {
    "tt.splat", "tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans", "tt.join", "tt.cat", "tt.split",
    "tt.bitcast", "tt.unsplat", "tt.make_tensor_descriptor", "tt.ptr_to_int", "tt.int_to_ptr", "tt.gather",
    "arith.extsi", "arith.extui", "arith.index_cast", "ttg.convert_layout",
}  # fmt: skip


def _bounds(name: str, operands: list[Value]) -> tuple[int, int] | None:
    """Bounds of an integer operation's result in unlimited arithmetic; None if unknown."""
    known = [(each.low, each.high) for each in operands if each.low is not None and each.high is not None]
    if name == "arith.trunci" and len(known) == 1:
        return known[0]
    if len(known) != 2 or len(operands) != 2:
        return None
    (a, b), (c, d) = known
    if name == "arith.addi":
        return a + c, b + d
    if name == "arith.subi":
        return a - d, b - c
    if name == "arith.muli":
        corners = (a * c, a * d, b * c, b * d)
        return min(corners), max(corners)
    if name == "arith.shli" and c >= 0 and d < 64:
        return min(a << c, a << d), max(b << c, b << d)
    if name in ("arith.shrsi", "arith.shrui") and a >= 0 and c >= 0 and d < 64:
        return a >> d, b >> c
    if name in ("arith.divsi", "arith.divui", "arith.floordivsi") and a >= 0 and c > 0:
        return a // d, b // c
    if name in ("arith.divsi", "arith.floordivsi") and c > 0:
        bound = max(abs(a), abs(b))
        return -bound, bound
    if name == "arith.ceildivsi" and a >= 0 and c > 0:
        return -(-a // d), -(-b // c)
    if name in ("arith.remsi", "arith.remui") and a >= 0 and d > 0:
        return 0, min(b, d - 1)
    if name == "arith.remsi" and d > 0:
        return 1 - d, d - 1
    if name in ("arith.minsi", "arith.minui"):
        return min(a, c), min(b, d)
    if name in ("arith.maxsi", "arith.maxui"):
        return max(a, c), max(b, d)
    if name == "arith.andi" and (a >= 0 or c >= 0):
        return 0, min(bound for low, bound in ((a, b), (c, d)) if low >= 0)
    if name in ("arith.ori", "arith.xori") and a >= 0 and c >= 0:
        return 0, (1 << max(b, d).bit_length()) - 1
    return None
