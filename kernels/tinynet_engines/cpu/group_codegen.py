"""Code generation for products of groups: many thin matrices, multiplied side by side.

In ``tl.dot(a [G, M, D], b [G, D, D], c [G, M, D])`` with a small D, one matrix is too thin for a vector of the
processor, but those of several groups fill one together. The run-time library (``groups.h``) takes rows of A that hold
all groups, as a grouped convolution's pixels do, and adds to such rows of C: the accumulator lies as [M, G, D].
The same for sums over those rows, ``tl.dot(a [G, D, M], b [G, M, D], c [G, D, D])`` with M > D.
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
ORDER = (1, 0, 2)  # rows, groups, columns


def order_of_total(product: Operation) -> tuple[int, ...]:
    """The order in memory of a product's accumulator."""
    return ORDER if is_product_of_groups(product) or is_reduction_of_groups(product) else ()


def is_product_of_groups(product: Operation) -> bool:
    """Whether a product is [G, M, D] x [G, D, D]."""
    left, right = (operand.type.shape for operand in product.operands[:2])
    return _is_thin(product) and right[1] == right[2] == left[2]


def is_reduction_of_groups(product: Operation) -> bool:
    """Whether a product is [G, D, M] x [G, M, D], a sum over many rows."""
    left, right = (operand.type.shape for operand in product.operands[:2])
    return _is_thin(product) and left[1] == right[2] < left[2]


def _is_thin(product: Operation) -> bool:
    """Whether columns are as few as `groups.h` takes them."""
    left, right, total = (operand.type for operand in product.operands)
    if len(left.shape) != 3 or right.element != left.element or total.element != "f32":
        return False
    groups, _, width = right.shape
    row = groups * width
    return left.element in ("f32", "bf16", "f16") and width in _WIDTHS and row % 16 == 0 and row <= _LARGEST_ROW


def scratch_bytes(groups: int, rows: int, depth: int) -> int:
    """Memory of one product: panels of B, the table of A's rows and, where a vector is cut short, copies of them."""
    return (4 * groups * depth * depth + _table_bytes(groups, rows, depth) + 127) // 64 * 64


def _table_bytes(groups: int, rows: int, depth: int) -> int:
    """Memory of the library's table of rows, and of copies of them."""
    copied_row = (4 * groups * depth + 127) // 64 * 64
    return (8 * (rows + 32) + copied_row * rows + 127) // 64 * 64


def product_of_groups(writer: DotWriter, product: Operation, total: Buffer, kind: str, queue: str | None) -> None:
    """Writes the call of the library for one product."""
    left, right, _ = product.operands
    groups, rows, depth = left.type.shape
    table, transient, bounds = _rows(writer, left, (0, 1, 2))
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


def reduction_of_groups(writer: DotWriter, product: Operation, total: Buffer, kind: str) -> None:
    """Writes the call of the library for one sum over rows."""
    left, right, _ = product.operands
    groups, rows, width = right.type.shape
    a, _, a_bounds = _rows(writer, left, (0, 2, 1))
    b, _, b_bounds = _rows(writer, right, (0, 1, 2))
    valid_groups, valid_rows = (
        valid_count(a_bounds[dimension] + b_bounds[dimension], size) for dimension, size in enumerate((groups, rows))
    )
    memory = writer.allocate("i8", 2 * _table_bytes(groups, rows, width), "scratch")
    writer.lines.append(
        f"{{ struct group_reduction product = {{{groups}, {width}, {valid_rows}, {valid_groups}, {kind}, {a}, {b}, "
        f"{total.name}, {memory}}}; program->services->reduce_groups(&product); }}"
    )


def _rows(writer: DotWriter, value: Value, dimensions: tuple[int, int, int]) -> tuple[str, int, list[list[str]]]:
    """A table of rows, NULL for a row of zeros; whether they are copies; bounds of the groups and the rows.

    ``dimensions``: of the value that are groups, rows, and columns of a group.
    """
    groups, rows, width = (value.type.shape[dimension] for dimension in dimensions)
    source, load = _load_of(writer, value, dimensions)
    if load is not None:
        pointer, *mask = load.operands
        step, within = (writer.analysis.step(pointer, dimension) for dimension in (source[0], source[2]))
        side_by_side = within == 1 and (step == width or groups == 1)
        conditions = _conditions(writer, mask, source) if side_by_side else None
        if conditions is not None:
            by_row, bounds = conditions

            def row(line: Index, nest: Nest) -> str:
                at = [ZERO, ZERO, ZERO]
                at[source[1]] = line
                guards = [
                    writer.element(leaf.condition, tuple(ZERO if d is None else at[d] for d in leaf.dimensions), nest)
                    for leaf in by_row
                ]
                address = f"(const void *){writer.element(pointer, tuple(at), nest)}"
                return f"{' & '.join(guards)} ? {address} : (const void *)0" if guards else address

            return _table(writer, rows, row), 0, bounds
    buffer = writer.new_buffer(value, "m", tuple(dimensions[position] for position in ORDER))
    writer.fill(buffer, value)
    return _table(writer, rows, lambda line, _: f"{buffer.name} + {line.text} * {groups * width}"), 1, [[], []]


def _load_of(
    writer: DotWriter, value: Value, dimensions: tuple[int, int, int]
) -> tuple[tuple[int, ...], Operation | None]:
    """The load that a value is, through transpositions, and which of its dimensions `dimensions` are; else None."""
    value = writer.analysis.resolve(value)
    found = tuple(dimensions)
    while value not in writer.forms and value.owner is not None and value.owner.name == "tt.trans":
        order: list[int] = value.owner.attributes["order"]  # type: ignore[assignment]
        found = tuple(order[dimension] for dimension in found)
        value = writer.analysis.resolve(value.owner.operands[0])
    owner = value.owner
    is_load = value not in writer.forms and owner is not None and owner.name == "tt.load"
    return found, owner if is_load else None


def _table(writer: DotWriter, rows: int, row: Callable[[Index, Nest], str]) -> str:
    table = writer.allocate("*i8", rows, "rows")

    def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
        return [f"{table}[{index[0].text}] = (void *)({row(index[0], nest)});"]

    writer.loops((rows,), body)
    return f"(const void *const *){table}"


def _weights(writer: DotWriter, right: Value) -> tuple[str, list[Expression], list[str]]:
    """The first element of B, the steps to the next group, row and column, and bounds of the groups."""
    depth = right.type.shape[1]
    _, load = _load_of(writer, right, (0, 1, 2))
    if load is not None and load.result is writer.analysis.resolve(right):
        pointer, *mask = load.operands
        steps = [writer.analysis.step(pointer, dimension) for dimension in range(3)]
        conditions = _conditions(writer, mask, (0, 1, 2))
        if None not in steps and conditions is not None and not conditions[0] and not conditions[1][1]:
            return writer.evaluate(pointer), [step for step in steps if step is not None], conditions[1][0]
    buffer = writer.as_buffer(right, right.type.element)
    return buffer.name, [depth * depth, depth, 1], []


def _conditions(
    writer: DotWriter, mask: list[Value], dimensions: tuple[int, ...]
) -> tuple[list[Leaf], list[list[str]]] | None:
    """Of a load's mask: conditions of single rows, and bounds of the groups and the rows; None if there are others."""
    groups, rows, _ = dimensions
    bounds: list[list[str]] = [[], []]
    by_row: list[Leaf] = []
    if not mask:
        return by_row, bounds
    if len(mask) > 1 and not writer.analysis.is_zero(mask[1]):
        return None
    for leaf in writer.leaves(mask[0], [0, 1, 2]):
        along = {leaf.dimensions[dimension] for dimension in writer.analysis.varying(leaf.condition)} - {None}
        bound = writer.range_bound(leaf) if along in ({groups}, {rows}) else None
        if bound is not None:
            bounds[0 if bound[0] == groups else 1].append(bound[1])
        elif along <= {rows}:
            by_row.append(leaf)
        else:
            return None
    return by_row, bounds
