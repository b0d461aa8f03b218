"""Code generation for operations with a function of elements: reductions and scans along an axis, and maps.

Sums and extrema are loops that the C compiler vectorizes. Every other reduction combines the first half of the axis
with the second until one element is left, as the lanes of a GPU's program do: which of equal elements, or of NaN, comes
out depends on that order. A scan combines one element after the other. Values of 16 bits or fewer are combined in fp32
and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from .analysis import Analysis
from .elements import SMALL_FLOATS, compute_type, rounded, to_memory
from .forms import ZERO, Buffer, Index, Nest, Scalar, loop_heads
from .ir import Block, Operation, UnsupportedOperation, Value
from .kinds import writes_memory
from .operations import element_expression

_LANES = 64  # totals of one reduction over a long last axis
# combining operation of a reduction -> (identity by kind of element, OpenMP reduction)
_REDUCTIONS = {
    "arith.addf": ("0", "+"),
    "arith.addi": ("0", "+"),
    "arith.mulf": ("1", "*"),
    "arith.muli": ("1", "*"),
    "arith.ori": ("0", "|"),
    "arith.xori": ("0", "^"),
    "arith.andi": ("-1", "&"),
    "arith.maxnumf": ("NAN", "maxnum"),
    "arith.minnumf": ("NAN", "minnum"),
    "arith.maxsi": ("lowest", "max"),
    "arith.minsi": ("highest", "min"),
}
# In a combination of these, elements of 16 bits may be of 32.
_WIDENED = {
    *("arith.constant", "arith.addf", "arith.subf", "arith.mulf", "arith.divf", "arith.negf", "arith.select"),
    *("arith.maxnumf", "arith.minnumf", "arith.maximumf", "arith.minimumf", "arith.cmpf", "arith.extf", "arith.truncf"),
    *("arith.cmpi", "arith.andi", "arith.ori", "arith.xori", "arith.addi", "math.exp", "math.log", "math.fma"),
    "tt.reduce.return",
    "tt.scan.return",
}


_Combined = Callable[[str, str], str]  # C texts of two values -> of their combination


class _Total(NamedTuple):
    """How a row is reduced: C text of the total, what runs before each outer loop and the innermost, and the rest."""

    text: str
    levels: list[list[str]]
    lines: list[str]


class ReductionWriter:
    """The part of the kernel writer that compiles reductions and scans."""

    analysis: Analysis
    forms: dict[Value, Scalar | Buffer]
    lines: list
    preheaders: list[list]

    # What the kernel writer provides:
    name: ...
    scalar: ...
    element: ...
    linear: ...
    loops: ...
    cut: ...
    allocate: ...
    arena_scope: ...
    visit_all: ...
    _declare_variable: ...

    def visit_tt_reduce(self, operation: Operation) -> None:
        combine = operation.regions[0].operations
        simple = len(operation.operands) == 1 and len(combine) == 2 and combine[0].name in _REDUCTIONS
        arguments = operation.regions[0].arguments
        if not simple or combine[0].operands not in (arguments, arguments[::-1]):
            self._reduce_in_tree(operation)
        elif operation.integer("axis") == len(operation.operands[0].type.shape) - 1:
            self._reduce_last_axis(operation, combine[0])
        else:
            self._reduce_outer_axis(operation, combine[0])

    def _reduction(self, combine: Operation, element: str) -> tuple[str, str, _Combined]:
        """(identity, OpenMP operator, combination of two C texts) for a simple reduction.

        A sum of small floats is accumulated in fp32 and rounded once.
        """
        identity, operator = _REDUCTIONS[combine.name]
        if identity in ("lowest", "highest"):
            width = element[1:] if element != "i1" else "8"
            identity = f"INT{width}_{'MIN' if identity == 'lowest' else 'MAX'}"
        if element in SMALL_FLOATS and combine.name in ("arith.addf", "arith.mulf"):
            return identity, operator, lambda left, right: f"({left} {operator} {right})"
        if operator in ("maxnum", "minnum"):
            operator += "_f64" if element == "f64" else "_f32"
        return identity, operator, lambda left, right: element_expression(combine, [left, right])

    def _reduce_last_axis(self, operation: Operation, combine: Operation) -> None:
        source, result = operation.operands[0], operation.result
        shape, element = source.type.shape, result.type.element
        identity, operator, combined = self._reduction(combine, element)
        order = [dimension for dimension in range(len(shape) - 1) if shape[dimension] > 1]
        index, heads = self._outer_loops(shape, order)
        self._declare_variable(result, "r")
        write = self._total_of_lanes if shape[-1] >= _LANES else self._total_in_order
        total, outer, inner = write(source, index[:-1], len(heads), identity, operator, combined)
        self.lines += ["{", *outer[0]]
        for level, head in enumerate(heads):
            self.lines += [head, *outer[level + 1]]
        self.lines += inner
        self._store_result(self.forms[result], tuple(index[:-1]), shape[:-1], rounded(element, total))
        self.lines.append("}" * (len(heads) + 1))

    def _total_in_order(
        self, source: Value, index: list[Index], depth: int, identity: str, operator: str, combined: _Combined
    ) -> _Total:
        """A short row in one loop."""
        inner, total, nest = Index(self.name("i"), depth), self.name("r"), Nest(depth + 1)
        update = f"{total} = {combined(total, self.element(source, (*index, inner), nest))};"
        lines = [
            f"{compute_type(source.type.element)} {total} = {identity};",
            f"#pragma omp simd reduction({operator}:{total})",
            f"for (int32_t {inner.text} = 0; {inner.text} < {source.type.shape[-1]}; {inner.text}++) {{",
            *nest.levels[-1],
            update,
            "}",
        ]
        return _Total(total, nest.levels[:-1], lines)

    def _total_of_lanes(
        self, source: Value, index: list[Index], depth: int, identity: str, operator: str, combined: _Combined
    ) -> _Total:
        """A row in blocks: lane j combines the elements j of all blocks, then half of the lanes the other half.

        The row is read from its first element to its last, as processors fetch memory ahead. Where a mask of the loads
        ends, in the middle of a block, that block alone is read with it.
        """
        first, lane, lanes = self.name("i"), self.name("j"), self.name("r")
        along, size = Index(f"({first} + {lane})", depth), source.type.shape[-1]
        place, each_lane = f"{lanes}[{lane}]", f"for (int32_t {lane} = 0; {lane} < {{}}; {lane}++)"

        def block(known: dict[tuple, str], condition: str) -> tuple[Nest, list[str]]:
            nest = Nest(depth + 1)
            nest.known |= known
            update = f"{place} = {combined(place, self.element(source, (*index, along), nest))};"
            loops = [
                f"for (; {condition}; {first} += {_LANES}) {{",
                "#pragma omp simd",
                each_lane.format(_LANES) + " {",
            ]
            return nest, [*loops, *nest.levels[-1], update, "}}"]

        parts = [block({}, f"{first} < {size}")]
        cut = self.cut(parts[0][0], along, size)
        if cut is not None:
            end = self.name("cut")
            self.lines.append(f"int32_t const {end} = {cut.end};")
            parts = [
                block({cut.condition: "1"}, f"{first} + {_LANES} <= {end}"),
                block({}, f"{first} < {end}"),
                block({cut.condition: "0"}, f"{first} < {size}"),
            ]
        lines = [
            f"{compute_type(source.type.element)} {lanes}[{_LANES}] __attribute__((aligned(64)));",
            f"{each_lane.format(_LANES)} {place} = {identity};",
            f"int64_t {first} = 0;",  # in 32 bits the sum of both indices might wrap around, and loads become gathers
        ]
        for _, loops in parts:
            lines += loops
        width = _LANES
        while width > 1:
            width //= 2
            other = f"{lanes}[{lane} + {width}]"
            lines += ["#pragma omp simd", f"{each_lane.format(width)} {place} = {combined(place, other)};"]
        levels = [[line for nest, _ in parts for line in nest.levels[level]] for level in range(depth + 1)]
        return _Total(f"{lanes}[0]", levels, lines)

    def _outer_loops(self, shape: tuple[int, ...], order: Sequence[int]) -> tuple[list[Index], list[str]]:
        """An index with a variable for each dimension of `order` and zeros elsewhere, and the heads of its loops."""
        indices, heads = loop_heads([self.name("i") for _ in order], [shape[dimension] for dimension in order])
        index = [ZERO] * len(shape)
        for dimension, each in zip(order, indices, strict=True):
            index[dimension] = each
        return index, heads

    def _store_result(
        self, target: Scalar | Buffer, index: tuple[Index, ...], shape: tuple[int, ...], text: str
    ) -> None:
        if isinstance(target, Scalar):
            self.lines.append(f"{target.text} = {text};")
        else:
            self.lines.append(f"{target.name}[{self.linear(index, shape)}] = {to_memory(target.element, text)};")

    def _reduce_outer_axis(self, operation: Operation, combine: Operation) -> None:
        """Reduce with the reduced axis outermost; the innermost loop updates one total per output element."""
        source, result = operation.operands[0], operation.result
        axis, shape, element = operation.integer("axis"), source.type.shape, result.type.element
        identity, _, combined = self._reduction(combine, element)
        result_shape = shape[:axis] + shape[axis + 1 :]
        wide = "f32" if element in SMALL_FLOATS else element
        totals = Buffer(self.allocate(wide, result.type.count, "r"), wide, len(self.preheaders))
        self.lines.append(f"for (int32_t i = 0; i < {result.type.count}; i++) {totals.name}[i] = {identity};")

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            place = f"{totals.name}[{self.linear(index[:axis] + index[axis + 1 :], result_shape)}]"
            return [f"{place} = {combined(place, self.element(source, index, nest))};"]

        order = [axis, *(dimension for dimension in range(len(shape)) if dimension != axis)]
        self._ordered_loops(shape, order, body)
        if element in SMALL_FLOATS:
            count = result.type.count
            self.lines.append(
                f"for (int32_t i = 0; i < {count}; i++) {totals.name}[i] = {rounded(element, totals.name + '[i]')};"
            )
        self.forms[result] = totals

    def _ordered_loops(
        self, shape: tuple[int, ...], order: list[int], body: Callable[[tuple[Index, ...], Nest], list[str]]
    ) -> None:
        permuted = tuple(shape[dimension] for dimension in order)

        def reordered(index: tuple[Index, ...], nest: Nest) -> list[str]:
            original = [ZERO] * len(order)
            for position, dimension in zip(index, order, strict=False):
                original[dimension] = position
            return body(tuple(original), nest)

        self.loops(permuted, reordered)

    def _reduce_in_tree(self, operation: Operation) -> None:
        for result in operation.results:
            self._declare_variable(result, "r")
        axis, region = operation.integer("axis"), widened(operation.regions[0])
        shape = operation.operands[0].type.shape
        half = shape[axis] // 2
        order = [dimension for dimension in range(len(shape)) if dimension != axis]
        index, heads = self._outer_loops(shape, order)
        nest, level = Nest(len(heads) + 1), len(heads)
        inner = self.name("i")
        with self.arena_scope():
            kinds = [argument.type.element for argument in region.arguments[: len(operation.operands)]]
            partial = [self.allocate("f32" if kind in SMALL_FLOATS else kind, max(half, 1), "r") for kind in kinds]

            def elements(position: str) -> list[str]:
                at = [*index[:axis], Index(position, level), *index[axis + 1 :]]
                return [self.element(source, tuple(at), nest) for source in operation.operands]

            first = elements(inner)
            second = elements(f"({inner} + {half})") if half else []
            at, beside = ([f"{each}[{place}]" for each in partial] for place in (inner, f"{inner} + width"))
            self.lines += ["{", *nest.levels[0]]
            for depth, head in enumerate(heads):
                self.lines += [head, *nest.levels[depth + 1]]
            self.lines += [f"for (int32_t {inner} = 0; {inner} < {max(half, 1)}; {inner}++) {{", *nest.levels[-1]]
            self.lines += self._combined(region, first, second, at) if half else _assignments(at, first)
            self.lines.append("}")
            if half > 1:
                self.lines.append(f"for (int32_t width = {half // 2}; width > 0; width /= 2)")
                self.lines.append(f"for (int32_t {inner} = 0; {inner} < width; {inner}++) {{")
                self.lines += [*self._combined(region, at, beside, at), "}"]
            outer, outer_shape = tuple(index[:axis] + index[axis + 1 :]), shape[:axis] + shape[axis + 1 :]
            for result, each in zip(operation.results, partial, strict=True):
                text = rounded(result.type.element, f"{each}[0]")
                self._store_result(self.forms[result], outer, outer_shape, text)
            self.lines.append("}" * (len(heads) + 1))

    def _combined(
        self, region: Block, first: Sequence[str], second: Sequence[str], targets: Sequence[str]
    ) -> list[str]:
        """Lines that assign the combination of two elements, each of as many values as there are targets."""
        for argument, text in zip(region.arguments, [*first, *second], strict=True):
            self.forms[argument] = Scalar(text)
        outside, self.lines = self.lines, []
        self.visit_all(region.operations[:-1])
        results = [self.scalar(value) for value in region.terminator.operands]
        names = [self.name("n") for _ in results]
        for argument, name, text in zip(region.arguments, names, results, strict=False):
            self.lines.append(f"{compute_type(argument.type.element)} const {name} = {text};")
        self.lines += _assignments(targets, names)
        inside, self.lines = self.lines, outside
        return inside

    def visit_tt_scan(self, operation: Operation) -> None:
        """Combine elements one after the other along an axis, and store the running total after each."""
        for result in operation.results:
            self._declare_variable(result, "c")
        axis, reverse = operation.integer("axis"), operation.attributes.get("reverse") is True
        sources, region = operation.operands, widened(operation.regions[0])
        shape = sources[0].type.shape
        index, heads = self._outer_loops(shape, [dimension for dimension in range(len(shape)) if dimension != axis])
        along = self.name("i")
        index[axis] = Index(f"({shape[axis] - 1} - {along})" if reverse else along, len(heads))
        nest = Nest(len(heads) + 1)
        values = [self.element(source, tuple(index), nest) for source in sources]
        totals = [self.name("c") for _ in sources]
        combination = self._combined(region, totals, values, totals)
        self.lines += ["{", *nest.levels[0]]
        for level, head in enumerate(heads):
            self.lines += [head, *nest.levels[level + 1]]
        for source, total in zip(sources, totals, strict=True):
            self.lines.append(f"{compute_type(source.type.element)} {total} = 0;")
        self.lines.append(f"for (int32_t {along} = 0; {along} < {shape[axis]}; {along}++) {{")
        self.lines += nest.levels[-1]
        self.lines += [f"if ({along} == 0) {{", *_assignments(totals, values), "} else {", *combination, "}"]
        for result, total in zip(operation.results, totals, strict=True):
            text = rounded(result.type.element, total)
            self._store_result(self.forms[result], tuple(index), result.type.shape, text)
        self.lines.append("}" * (len(heads) + 2))

    def visit_tt_map_elementwise(self, operation: Operation) -> None:
        """Call a function of scalars for every element, or for every ``pack`` neighbors along the last axis."""
        pack, region, shape = operation.integer("pack", 1), operation.regions[0], operation.operands[0].type.shape
        if shape[-1] % pack:
            raise UnsupportedOperation(operation, f"of {pack} neighbors on an axis of {shape[-1]} is not supported")
        for result in operation.results:
            self._declare_variable(result, "m")
        targets = [self.forms[result] for result in operation.results]

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            along = index[-1]
            lanes = [
                Index(f"({along.text} * {pack} + {lane})", along.level) if pack > 1 else along for lane in range(pack)
            ]
            places = [(*index[:-1], lane) for lane in lanes]
            texts = [self.element(operand, place, nest) for operand in operation.operands for place in places]
            for argument, text in zip(region.arguments, texts, strict=True):
                self.forms[argument] = Scalar(text)
            outside, self.lines = self.lines, []
            self.visit_all(region.operations[:-1])
            for position, value in enumerate(region.terminator.operands):
                self._store_result(targets[position // pack], places[position % pack], shape, self.scalar(value))
            inside, self.lines = self.lines, outside
            return inside

        self.loops((*shape[:-1], shape[-1] // pack), body, vectorize=not writes_memory(operation))


def widened(region: Block) -> Block:
    """A combination with fp32 in place of smaller floats, where its operations allow; it is changed itself."""
    values = [*region.arguments, *(result for each in region.operations for result in each.results)]
    if all(each.name in _WIDENED for each in region.operations):
        for value in values:
            if value.type.element in SMALL_FLOATS:
                value.type = replace(value.type, element="f32")
    return region


def _assignments(targets: Sequence[str], values: Sequence[str]) -> list[str]:
    return [f"{target} = {value};" for target, value in zip(targets, values, strict=True)]
