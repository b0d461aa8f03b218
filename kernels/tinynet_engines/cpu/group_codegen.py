"""Code generation for products of groups: many thin matrices, multiplied side by side.

In ``tl.dot(a [G, M, D], b [G, D, D], c [G, M, D])`` with a small D, one matrix is too thin for a vector of the
processor, but those of several groups fill one together. The run-time library (``groups.h``) takes rows of A that hold
all groups, as a grouped convolution's pixels do, and adds to such rows of C: the accumulator lies as [M, G, D].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .analysis import Expression
from .forms import ZERO, Buffer, Index, Nest, valid_count
from .ir import Operation, Value

if TYPE_CHECKING:
    from .dot_codegen import DotWriter, Leaf

_WIDTHS = (2, 4, 8, 16)
_LARGEST_ROW = 1024  # channels: LARGEST_ROW of groups.h
_ORDER = (1, 0, 2)  # rows, groups, columns


def order_of_total(product: Operation) -> tuple[int, ...]:
    """The order in memory of a product's accumulator."""
    return _ORDER if is_product_of_groups(product) else ()


def is_product_of_groups(product: Operation) -> bool:
    """Whether `groups.h` computes a product."""
    left, right, total = (operand.type for operand in product.operands)
    if len(left.shape) != 3 or right.element != left.element or total.element != "f32":
        return False
    groups, _, depth = left.shape
    return (
        left.element in ("f32", "bf16", "f16")
        and right.shape == (groups, depth, depth)
        and depth in _WIDTHS
        and groups * depth % 16 == 0
        and groups * depth <= _LARGEST_ROW
    )


def scratch_bytes(groups: int, rows: int, depth: int) -> int:
    """Memory of one product: panels of B, the table of A's rows and, where a vector is cut short, copies of them."""
    row = 4 * groups * depth
    copied_row = (row + 127) // 64 * 64
    return (row * depth + 8 * (rows + 8) + copied_row * rows + 255) // 64 * 64


def product_of_groups(writer: DotWriter, product: Operation, total: Buffer, kind: str, queue: str | None) -> None:
    """Writes the call of the library for one product."""
    left, right, _ = product.operands
    groups, rows, depth = left.type.shape
    table, transient, bounds = _rows(writer, left)
    data, steps, right_bounds = _weights(writer, right)
    valid_rows = valid_count(bounds[1], rows)
    valid_groups = valid_count(bounds[0] + right_bounds, groups)
    size = scratch_bytes(groups, rows, depth)
    memory = "0" if queue else writer.allocate("i8", size, "scratch")
    call = f"enqueue_groups(&product, &{queue})" if queue else "dot_groups(&product)"
    strides = ", ".join(writer.expression(step) for step in steps)
    sizes = f"{rows}, {groups}, {depth}, {valid_rows}, {valid_groups}"
    writer.lines.append(
        f"{{ struct group_product product = {{{sizes}, {kind}, {table}, {transient}, {data}, {{{strides}}}, "
        f"{total.name}, {memory}, {size}}}; program->services->{call}; }}"
    )


def _rows(writer: DotWriter, left: Value) -> tuple[str, int, list[list[str]]]:
    """A table of the rows of A, NULL for a row of zeros; whether they are copies; bounds of the groups and the rows."""
    groups, rows, depth = left.type.shape
    source = writer.analysis.resolve(left)
    load = source.owner
    if source not in writer.forms and load is not None and load.name == "tt.load":
        pointer, *mask = load.operands
        step, within = (writer.analysis.step(pointer, dimension) for dimension in (0, 2))
        side_by_side = within == 1 and (step == depth or groups == 1)
        conditions = _conditions(writer, mask) if side_by_side else None
        if conditions is not None:
            by_row, bounds = conditions

            def row(line: Index, nest: Nest) -> str:
                at = (ZERO, line, ZERO)
                guards = [
                    writer.element(leaf.condition, tuple(ZERO if d is None else at[d] for d in leaf.dimensions), nest)
                    for leaf in by_row
                ]
                address = f"(const void *){writer.element(pointer, at, nest)}"
                return f"{' & '.join(guards)} ? {address} : (const void *)0" if guards else address

            return _table(writer, rows, row), 0, bounds
    buffer = writer.new_buffer(left, "m", _ORDER)
    writer.fill(buffer, left)
    return _table(writer, rows, lambda line, _: f"{buffer.name} + {line.text} * {groups * depth}"), 1, [[], []]


def _table(writer: DotWriter, rows: int, row: Callable[[Index, Nest], str]) -> str:
    table = writer.allocate("*i8", rows, "rows")

    def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
        return [f"{table}[{index[0].text}] = (void *)({row(index[0], nest)});"]

    writer.loops((rows,), body)
    return f"(const void *const *){table}"


def _weights(writer: DotWriter, right: Value) -> tuple[str, list[Expression], list[str]]:
    """The first element of B, the steps to the next group, row and column, and bounds of the groups."""
    depth = right.type.shape[1]
    source = writer.analysis.resolve(right)
    load = source.owner
    if source not in writer.forms and load is not None and load.name == "tt.load":
        pointer, *mask = load.operands
        steps = [writer.analysis.step(pointer, dimension) for dimension in range(3)]
        conditions = _conditions(writer, mask)
        if None not in steps and conditions is not None and not conditions[0] and not conditions[1][1]:
            return writer.evaluate(pointer), [step for step in steps if step is not None], conditions[1][0]
    buffer = writer.as_buffer(right, right.type.element)
    return buffer.name, [depth * depth, depth, 1], []


def _conditions(writer: DotWriter, mask: list[Value]) -> tuple[list[Leaf], list[list[str]]] | None:
    """Of a load's mask: conditions of single rows, and bounds by dimension; None if there are others.

    Of three dimensions, the last has neither.
    """
    bounds: list[list[str]] = [[], []]
    by_row: list[Leaf] = []
    if not mask:
        return by_row, bounds
    if len(mask) > 1 and not writer.analysis.is_zero(mask[1]):
        return None
    for leaf in writer.leaves(mask[0], [0, 1, 2]):
        along = {leaf.dimensions[dimension] for dimension in writer.analysis.varying(leaf.condition)} - {None}
        bound = writer.range_bound(leaf) if len(along) == 1 else None
        if bound is not None and bound[0] < 2:
            bounds[bound[0]].append(bound[1])
        elif along <= {1}:
            by_row.append(leaf)
        else:
            return None
    return by_row, bounds
