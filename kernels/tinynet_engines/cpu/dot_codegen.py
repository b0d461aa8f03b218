"""Code generation for dot products.

The run-time library does the arithmetic. The code here describes each operand to it: memory that is read in place
(strided, or through a table of line pointers, with the mask converted to bounds) or a buffer that is computed first.
A *line* is a row or a column of a tile.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import prod

from .analysis import Analysis, Expression
from .elements import ELEMENT_KINDS, compute_type, from_memory, to_memory
from .forms import ZERO, Buffer, End, Index, Nest, Scalar, valid_count
from .group_codegen import (
    is_product_of_groups,
    is_reduction_of_groups,
    order_of_total,
    product_of_groups,
    reduction_of_groups,
    scratch_bytes,
)
from .ir import Operation, Value
from .kinds import writes_memory
from .operations import predicate_of

_LARGEST_PANEL = 32
_LARGEST_LANES = 16
_LARGEST_QUEUE = 16  # LARGEST_QUEUE of services.h
# Products up to this total depth are computed together: a tile of the accumulator then leaves the registers less often,
# and the operands still fit the second-level cache.
_QUEUED_DEPTH = 288


@dataclass
class Leaf:
    """One condition of a mask; ``dimensions[i]`` is the tile dimension of its dimension i (None: size 1)."""

    condition: Value
    dimensions: list[int | None]


@dataclass
class Mask:
    """A mask as the run-time library takes it: a count of valid elements per dimension, and conditions per line."""

    valid: list[list[str]] = field(default_factory=lambda: [[], []])
    by_line: list[list[Leaf]] = field(default_factory=lambda: [[], []])


class DotWriter:
    """The part of the kernel writer that compiles dot products."""

    analysis: Analysis
    forms: dict[Value, Scalar | Buffer]
    lines: list
    preheaders: list[list]
    needed: list[list[Expression]]
    queues: dict[Operation, str]  # products that a loop defers -> C name of their queue

    # What the kernel writer provides:
    name: ...
    scalar: ...
    expression: ...
    element: ...
    evaluate: ...
    linear: ...
    loops: ...
    fill: ...
    needed_ends: ...
    materialize: ...
    new_buffer: ...
    take_buffer: ...
    allocate: ...
    allocate_persistent: ...
    buffers_read: ...

    def arena_scope(self) -> AbstractContextManager[None]: ...

    def visit_tt_dot(self, operation: Operation) -> None:
        left, _right, initial = operation.operands
        total = self._accumulator(operation, initial)
        rank = len(left.type.shape)
        if is_product_of_groups(operation):
            with self.arena_scope():
                product_of_groups(self, operation, total, ELEMENT_KINDS[left.type.element], self.queues.get(operation))
        elif is_reduction_of_groups(operation):
            with self.arena_scope():
                reduction_of_groups(self, operation, total, ELEMENT_KINDS[left.type.element])
        elif left.type.is_float and total.element == "f32":
            if rank == 2:
                with self.arena_scope():
                    self._library_dot(operation, total)
            else:
                self._batched_dot(operation, total)
        else:
            with self.arena_scope():
                self._plain_dot(operation, total)
        if total.element != initial.type.element:
            narrow = self.new_buffer(operation.result)

            def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
                place = self.linear(index, operation.result.type.shape)
                element = initial.type.element
                return [f"{narrow.name}[{place}] = {to_memory(element, f'round_{element}({total.name}[{place}])')};"]

            self.loops(operation.result.type.shape, body)
            total = narrow
        self.forms[operation.result] = total

    def _accumulator(self, operation: Operation, initial: Value) -> Buffer:
        """The buffer that the product is added to: the accumulator's own if nothing else needs it any more."""
        if initial.type.element in ("f16", "bf16"):
            wide = Buffer(self.allocate("f32", initial.type.count, "acc"), "f32", len(self.preheaders))
            self.fill(wide, initial)
            return wide
        order = order_of_total(operation)
        taken = self.take_buffer(initial, order)
        if taken is not None:
            return taken
        own = self._rescaled_in_place(operation, initial)
        if own is not None and own.order == order:
            self.fill(own, initial)
            return own
        buffer = self.new_buffer(operation.result, "acc", order)
        self.fill(buffer, initial, self.needed_ends(operation.result))
        return buffer

    def _rescaled_in_place(self, operation: Operation, initial: Value) -> Buffer | None:
        """For ``acc = dot(a, b, acc * scale)``: the carried buffer, if this expression is its only use."""
        value = initial
        while value not in self.forms and value.owner is not None and value not in self.analysis.materialized:
            candidates = [
                operand
                for operand in value.owner.operands
                if operand.type == initial.type and len(operand.users) == 1 and len(value.users) == 1
            ]
            carried = [operand for operand in candidates if self._is_carried(operand)]
            if carried:
                form = self.take_buffer(carried[0])
                reads = self.buffers_read(initial)
                if form and all(same for name, same in reads if name == form.name):
                    return form
            if len(candidates) != 1 or not value.owner.name.startswith("arith."):
                return None
            value = candidates[0]
        return None

    def _is_carried(self, value: Value) -> bool:
        form = self.forms.get(value)
        return isinstance(form, Buffer) and form.carried

    # ------------------------------------------------------------------------------------------ with the library

    def _library_dot(self, operation: Operation, total: Buffer) -> None:
        left, right, _ = operation.operands
        (m, k), n = left.type.shape, right.type.shape[1]
        self.needed = [self.analysis.needed_below(operation.result, dimension) for dimension in (0, 1)]
        kind = (
            left.type.element
            if left.type.element in ELEMENT_KINDS and right.type.element == left.type.element
            else "f32"
        )
        packed = self._pack_invariant(right, m, kind)
        a = self._operand(left, kind, self.needed[0], 0)
        b = self._operand(right, kind, self.needed[1], 1)
        bounds = [self.expression(bound) for bound in self.needed[0] if self.is_known(bound)]
        rows = valid_count(bounds, m)  # rows past a bound are never used
        queue = self.queues.get(operation)
        scratch = _scratch_bytes(m, n, k)
        memory = "0" if queue else self.allocate("i8", scratch, "scratch")
        call = f"enqueue(&product, &{queue})" if queue else "dot(&product)"
        self.lines.append(
            f"{{ struct dot_product product = {{{rows}, {n}, {k}, {ELEMENT_KINDS[kind]}, {a}, {b}, {packed or '0'}, "
            f"{total.name}, {n}, {memory}, {scratch}}}; program->services->{call}; }}"
        )

    def is_known(self, expression: Expression) -> bool:
        """Whether every scalar in an expression has been computed before the current place."""
        if isinstance(expression, tuple):
            return all(map(self.is_known, expression[1:]))
        return isinstance(expression, int) or self.analysis.resolve(expression) in self.forms

    def queued_product(self, loop: Operation) -> Operation | None:
        """The product of a loop whose only effect is to add products of matrices to one accumulator."""
        products = [each for each in loop.regions[0].operations if each.name == "tt.dot"]
        return products[0] if len(products) == 1 and self._only_accumulates(loop, products[0]) else None

    def open_queue(self, product: Operation, total: Buffer, fresh: bool) -> str:
        """Declare, before a loop, the queue of its deferred products. ``fresh``: the accumulator is not filled yet."""
        left, right, _ = product.operands
        *groups, m, k = left.type.shape
        n = right.type.shape[-1] * (groups[0] if groups else 1)
        size = scratch_bytes(groups[0], m, k) if groups else _scratch_bytes(m, n, k)
        capacity = max(1, min(_QUEUED_DEPTH // k, _LARGEST_QUEUE))
        queue = self.queues[product] = self.name("queue")
        memory = self.allocate("i8", capacity * size, "scratch")
        fields = {"capacity": capacity, "count": 0, "fresh": int(fresh), "height": m, "width": n, "columns": 0}
        fields |= {"target": 0, "a_ahead": 0, "b_ahead": 0, "c": total.name, "c_stride": n}
        fields |= {"memory": f"(char *){memory}", "free": f"(char *){memory}"}
        assignments = " ".join(f"{queue}.{field} = {value};" for field, value in fields.items())
        self.lines.append(f"struct product_queue {queue}; {assignments}")
        return queue

    def close_queue(self, queue: str) -> None:
        self.lines.append(f"program->services->finish(&{queue});")

    def _only_accumulates(self, loop: Operation, product: Operation) -> bool:
        """Whether a loop has no effect except a product of matrices that nothing else in it reads: it can wait."""
        left, _, total = product.operands
        body = loop.regions[0]
        if writes_memory(loop) or not left.type.is_float or total.type.element != "f32":
            return False
        if len(left.type.shape) != 2 and not is_product_of_groups(product):
            return False
        if total not in body.arguments or total.users != [product] or product.result.users != [body.terminator]:
            return False
        position = body.arguments.index(total) - 1
        return body.terminator.name == "scf.yield" and body.terminator.operands[position] is product.result

    def _batched_dot(self, operation: Operation, total: Buffer) -> None:
        left, right, _ = operation.operands
        batch, m, k = left.type.shape
        n = right.type.shape[2]
        kind = left.type.element if left.type.element in ELEMENT_KINDS else "f32"
        with self.arena_scope():
            tables = [self.as_buffer(value, kind) for value in (left, right)]
            scratch = _scratch_bytes(m, n, k)
            memory = self.allocate("i8", scratch, "scratch")
            a, b = (
                f"{{{table.name} + (int64_t)z * {rows * columns}, {{{columns}, 1}}, 0, 0, {{{rows}, {columns}}}}}"
                for table, rows, columns in zip(tables, (m, k), (k, n), strict=False)
            )
            self.lines.append(
                f"for (int32_t z = 0; z < {batch}; z++) {{ struct dot_product product = {{{m}, {n}, {k}, "
                f"{ELEMENT_KINDS[kind]}, {a}, {b}, 0, {total.name} + (int64_t)z * {m * n}, {n}, {memory}, {scratch}}}; "
                f"program->services->dot(&product); }}"
            )

    def _pack_invariant(self, right: Value, m: int, kind: str) -> str | None:
        """Pack B once before a loop, if it is computed before the loop and used inside it."""
        form = self.forms.get(self.analysis.resolve(right))
        if not isinstance(form, Buffer) or form.carried or form.depth >= len(self.preheaders) or form.element != kind:
            return None
        if form.order:
            return None
        k, n = right.type.shape
        width = -(-n // _LARGEST_PANEL) * _LARGEST_PANEL
        packed = self.allocate_persistent("f32", (k + 1) * width)
        lines = self.allocate_persistent("f32", (k + 1) * _LARGEST_LANES)
        operand = f"{{{form.name}, {{{n}, 1}}, 0, 0, {{{k}, {n}}}}}"
        self.preheaders[form.depth].append(
            f"{{ struct dot_product product = {{{m}, {n}, {k}, {ELEMENT_KINDS[kind]}, {operand}, {operand}, "
            f"0, 0, 0, {lines}}}; program->services->pack_b(&product, {packed}); }}"
        )
        return packed

    # -------------------------------------------------------------------------------------------------- operands

    def _operand(self, value: Value, kind: str, needed: list[Expression], along: int) -> str:
        """C initializer of ``struct operand`` for a 2-D tensor.

        ``needed``: bounds along dimension ``along``, past which no element of the product is ever used.
        """
        permutation = [0, 1]
        source = self.analysis.resolve(value)
        while source not in self.forms and source.owner is not None and source.owner.name == "tt.trans":
            order: list[int] = source.owner.attributes["order"]  # type: ignore[assignment]
            permutation = [order[dimension] for dimension in permutation]
            source = self.analysis.resolve(source.owner.operands[0])
        form = self.forms.get(source)
        owner = source.owner
        if form is None and owner is not None and owner.name == "tt.load" and owner.result.type.element == kind:
            in_place = self._memory_operand(owner, permutation, needed, permutation[along]) or self._wrapped_operand(
                value, kind, owner, permutation
            )
            if in_place is None and along == 1 and permutation == [0, 1]:
                in_place = self._segmented_operand(owner, needed)
            if in_place is not None:
                return in_place
        # What is computed lies in the order of what is transposed: its loops then walk along its own lines.
        return _buffer_operand(self.as_buffer(source, kind), source.type.shape, permutation)

    def _wrapped_operand(self, value: Value, kind: str, load: Operation, permutation: list[int]) -> str | None:
        """A load with offsets ``arange % bound``: in place if nothing wraps, else computed into a buffer."""
        pointer = load.operands[0]
        wraps: list[tuple[Expression, int]] = []
        if any(self.analysis.step(pointer, dimension, wraps) is None for dimension in (0, 1)) or not wraps:
            return None
        mask = self._split_mask(load.operands[1:], pointer.type.shape)
        if mask is None or mask.by_line[0] or mask.by_line[1]:
            return None
        name = self.name("operand")
        straight = " && ".join(f"{self.expression(bound)} >= {size}" for bound, size in wraps)
        self.lines.append(f"struct operand {name}; if ({straight}) {{")
        self.lines.append(f"{name} = (struct operand){self._strided(pointer, mask, permutation, [])};")
        self.lines.append("} else {")
        buffer = self.as_buffer(value, kind)
        self.lines.append(f"{name} = (struct operand){_buffer_operand(buffer, value.type.shape, [0, 1])}; }}")
        return name

    def _strided(
        self, pointer: Value, mask: Mask, permutation: list[int], wraps: list[tuple[Expression, int]] | None = None
    ) -> str:
        """C initializer of an operand whose pointer has a constant step along both dimensions."""
        first, second = permutation
        steps = [self.expression(self.analysis.step(pointer, dimension, wraps) or 0) for dimension in (0, 1)]
        valid = [valid_count(bounds, size) for bounds, size in zip(mask.valid, pointer.type.shape, strict=True)]
        origin = self.evaluate(pointer)
        return f"{{{origin}, {{{steps[first]}, {steps[second]}}}, 0, 0, {{{valid[first]}, {valid[second]}}}}}"

    def as_buffer(self, value: Value, element: str) -> Buffer:
        form = self.forms.get(self.analysis.resolve(value))
        if isinstance(form, Buffer) and form.element == element and not form.order:
            return form
        buffer = Buffer(self.allocate(element, value.type.count, "m"), element, len(self.preheaders))
        owner = self.analysis.resolve(value).owner
        inner = None
        if form is None and owner is not None and owner.name == "tt.load":
            inner = self.analysis.unit_dimension(owner.operands[0])
        self.fill(buffer, value, self.needed_ends(value), inner)
        return buffer

    def _memory_operand(
        self, load: Operation, permutation: list[int], needed: list[Expression], along: int
    ) -> str | None:
        """A load described in place: strided, or as a table of lines; None if it must be computed into a buffer.

        Offsets ``arange % bound`` along dimension ``along`` count as ``arange`` if only elements below ``bound`` are
        needed.
        """
        pointer, *optional = load.operands
        shape = pointer.type.shape
        mask = self._split_mask(optional, shape)
        if mask is None:
            return None
        steps: list[Expression | None] = []
        for dimension in (0, 1):
            wraps: list[tuple[Expression, int]] = []
            step = self.analysis.step(pointer, dimension, wraps if dimension == along else None)
            steps.append(step if all(bound in needed for bound, _ in wraps) else None)
            if steps[-1] is not None:
                mask.valid[dimension] += [self.expression(bound) for bound, _ in wraps]
        if None not in steps and not mask.by_line[0] and not mask.by_line[1]:
            return self._strided(pointer, mask, permutation, [])
        unit = next((d for d in (1, 0) if steps[d] == 1 and shape[d] > 1 and not mask.by_line[d]), None)
        if unit is None:
            return None
        table = self._line_table(pointer, mask, 1 - unit)
        first, second = (valid_count(mask.valid[dimension], shape[dimension]) for dimension in permutation)
        return f"{{0, {{0, 0}}, {table}, {permutation.index(1 - unit)}, {{{first}, {second}}}}}"

    def _segmented_operand(self, load: Operation, needed: list[Expression]) -> str | None:
        """B with rows of contiguous segments, as one table of lines per segment; None if it has no such rows."""
        pointer, *optional = load.operands
        depth, columns = pointer.type.shape
        segments = [columns // count for count in (2, 4, 8, 16, 32) if columns % (count * _LARGEST_PANEL) == 0]
        segment = next((each for each in segments if self.analysis.step(pointer, 1, run=each) == 1), 0)
        mask = self._split_mask(optional, pointer.type.shape, segment) if segment else None
        if mask is None or mask.by_line[1]:
            return None
        bounds = [self.expression(bound) for bound in needed if self.is_known(bound)]
        rows, valid = valid_count(mask.valid[0], depth), valid_count(mask.valid[1] + bounds, columns)
        table = self._line_table(pointer, mask, 0, segment, f"({valid} + {segment - 1}) / {segment}")
        return f"{{0, {{0, 0}}, {table}, 0, {{{rows}, {valid}}}, 0, {segment}}}"

    def _line_table(self, pointer: Value, mask: Mask, along: int, segment: int = 0, end: str = "") -> str:
        """An array of pointers to the lines of a tile, NULL for a line that a condition switches off.

        With a ``segment``, one such array per segment, up to ``end``: for the first ``segment`` elements of the lines,
        then for the next ones, ...
        """
        size, length = pointer.type.shape[along], pointer.type.shape[1 - along]
        tables = length // segment if segment else 1
        table = self.allocate("*i8", tables * size, "rows")

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            part, line = index
            start = Index(f"({part.text} * {segment})", part.level) if segment else ZERO
            at = (line, start) if along == 0 else (start, line)
            conditions = [
                self.element(leaf.condition, tuple(ZERO if d is None else at[d] for d in leaf.dimensions), nest)
                for leaf in mask.by_line[along]
            ]
            address = self.element(pointer, at, nest)
            guard = " & ".join(conditions)
            text = f"({guard} ? (void *){address} : (void *)0)" if guard else f"(void *){address}"
            return [f"{table}[{self.linear(index, (tables, size))}] = {text};"]

        self.loops((tables, size), body, ends={0: End(end)} if segment else None)
        return f"(const void *const *){table}"

    # ----------------------------------------------------------------------------------------------------- masks

    def _split_mask(self, optional: list[Value], shape: tuple[int, ...], segment: int = 0) -> Mask | None:
        """A load's mask as bounds and line conditions; None if it cannot be, or if masked elements are not zero.

        With a ``segment``, a condition of a line may change from one run of ``segment`` columns to the next.
        """
        mask = Mask()
        if not optional:
            return mask
        if len(optional) > 1 and not self.analysis.is_zero(optional[1]):
            return None
        leaves = self.leaves(optional[0], [0, 1])
        for leaf in leaves:
            varying = self.analysis.varying(leaf.condition)
            along = {leaf.dimensions[dimension] for dimension in varying} - {None}
            bound = self._bound(leaf)
            if bound is not None:
                dimension, text = bound
                mask.valid[dimension].append(text)
            elif not along:
                condition = self.evaluate(leaf.condition)
                mask.valid[0].append(f"({condition} ? {shape[0]} : 0)")
            elif len(along) == 1:
                dimension = along.pop()
                assert dimension is not None
                mask.by_line[dimension].append(leaf)
            elif segment and self.analysis.is_constant_in_runs(leaf.condition, leaf.dimensions.index(1), segment):
                mask.by_line[0].append(leaf)
            else:
                return None
        return mask

    def leaves(self, mask: Value, dimensions: list[int | None]) -> list[Leaf]:
        """The conditions whose conjunction a mask is."""
        mask = self.analysis.resolve(mask)
        owner = mask.owner
        if owner is None or mask in self.forms:
            return [Leaf(mask, dimensions)]
        if owner.name == "arith.andi":
            return [leaf for operand in owner.operands for leaf in self.leaves(operand, dimensions)]
        if owner.name == "tt.broadcast":
            source = owner.operands[0]
            varying = [d if size > 1 else None for d, size in zip(dimensions, source.type.shape, strict=False)]
            return self.leaves(source, varying)
        if owner.name == "tt.expand_dims":
            axis = owner.integer("axis")
            return self.leaves(owner.operands[0], dimensions[:axis] + dimensions[axis + 1 :])
        return [Leaf(mask, dimensions)]

    def _bound(self, leaf: Leaf) -> tuple[int, str] | None:
        """(dimension, count) for a condition of the form ``start + i < bound``: it holds for the first ``count`` i."""
        comparison = leaf.condition.owner
        if comparison is None or comparison.name != "arith.cmpi" or leaf.condition in self.forms:
            return None
        predicate = predicate_of(comparison)
        if predicate in ("slt", "sle"):
            moving, bound = comparison.operands
        elif predicate in ("sgt", "sge"):
            bound, moving = comparison.operands
        else:
            return None
        sizes = moving.type.shape
        large = [dimension for dimension, size in enumerate(sizes) if size > 1]
        if len(large) != 1 or leaf.dimensions[large[0]] is None:
            return None
        if self.analysis.step(moving, large[0]) != 1 or self.analysis.step(bound, large[0]) != 0:
            return None
        dimension = leaf.dimensions[large[0]]
        assert dimension is not None
        extra = " + 1" if predicate in ("sle", "sge") else ""
        return dimension, f"((int64_t){self.evaluate(bound)} - (int64_t){self.evaluate(moving)}{extra})"

    def range_bound(self, leaf: Leaf) -> tuple[int, str] | None:
        """As :meth:`_bound`, but only for indices that are counted, not loaded: those reach no number that wraps.

        (An index past 2^31 would address memory before its tensor.)
        """
        comparison = leaf.condition.owner
        if comparison is None or not all(map(self.analysis.is_counted, comparison.operands)):
            return None
        return self._bound(leaf)

    # --------------------------------------------------------------------------------------------- without the library

    def _plain_dot(self, operation: Operation, total: Buffer) -> None:
        """Multiply integers or fp64, of each product of a batch, in three loops."""
        left, right, initial = operation.operands
        *batch, m, k = left.type.shape
        n = right.type.shape[-1]
        a, b = (self.materialize(value) for value in (left, right))
        kind = compute_type(initial.type.element)
        if not initial.type.is_float:
            kind = f"u{kind}"
        source_a = from_memory(a.element, f"{a.name}[(z * {m} + m) * {k} + k]")
        source_b = from_memory(b.element, f"{b.name}[(z * {k} + k) * {n} + n]")
        self.lines += [
            f"for (int32_t z = 0; z < {prod(batch)}; z++)",
            f"for (int32_t m = 0; m < {m}; m++) for (int32_t k = 0; k < {k}; k++) {{",
            f"{kind} const left = ({kind}){source_a};",
            "#pragma GCC ivdep",
            f"for (int32_t n = 0; n < {n}; n++) {total.name}[(z * {m} + m) * {n} + n] += left * ({kind}){source_b}; }}",
        ]


def _buffer_operand(buffer: Buffer, shape: tuple[int, ...], permutation: list[int]) -> str:
    """C initializer of a row-major operand in the arena."""
    strides = (shape[1], 1)
    first, second = permutation
    return f"{{{buffer.name}, {{{strides[first]}, {strides[second]}}}, 0, 0, {{{shape[first]}, {shape[second]}}}, 1}}"


def _scratch_bytes(m: int, n: int, k: int) -> int:
    """Memory for panels of B, and for lines of B or for A, whichever is more, with every start aligned."""
    width = -(-n // _LARGEST_PANEL) * _LARGEST_PANEL
    return (4 * (k + 1) * (width + _LARGEST_LANES) + max(4 * m * (k + 1), 12 * max(m, k)) + 512 + 63) // 64 * 64
