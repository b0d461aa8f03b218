"""Code generation for products that are stored as soon as they are computed.

Where nothing but a store reads a loop's sum of products, the run-time library writes it from registers, with a bias per
column and a rectifier if the kernel applies them: `finish_into` of ``dot.h``. The products that are still in the loop's
queue are computed there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from .analysis import Analysis
from .elements import ELEMENT_KINDS
from .forms import ZERO, Index, Nest, valid_count
from .group_codegen import ORDER
from .ir import Operation, Value
from .kinds import EFFECTS
from .operations import predicate_of


@dataclass(frozen=True)
class StoredProduct:
    """A sum of products on its way to memory: store(rectify(sum + bias)).

    Attributes:
        queue: C name of the queue of its products.
        store: what alone reads it.
        bias: a tensor whose rows are equal, or None.
        rectified: whether numbers of 0 and less become 0.
    """

    queue: str
    store: Operation
    bias: Value | None
    rectified: bool


class StoredProductWriter:
    """The part of the kernel writer that stores products."""

    analysis: Analysis
    lines: list
    stored_products: dict[Operation, StoredProduct]  # those deferred to their store, by that

    # What the kernel writer provides:
    name: ...
    allocate: ...
    element: ...
    evaluate: ...
    expression: ...
    is_known: ...
    leaves: ...
    loops: ...
    range_bound: ...
    close_queue: ...

    def arena_scope(self) -> AbstractContextManager[None]: ...

    def defer_to_store(self, loop: Operation, product: Operation, queue: str) -> bool:
        """Lets the store of a loop's sum finish its queue, and returns True, if that can be done."""
        position = loop.regions[0].arguments.index(product.operands[2]) - 1
        stored = self._stored(queue, loop.results[position])
        if stored is None or not self._may_be_deferred(loop, product, stored.store):
            return False
        self.stored_products[stored.store] = stored
        return True

    def _stored(self, queue: str, total: Value) -> StoredProduct | None:
        """How a sum reaches a store that alone reads it; None if it does not, or by another way."""
        rows = total if len(total.type.shape) == 2 else _rows_of_groups(total)
        if rows is None:
            return None
        value, bias, rectified = rows, None, False
        while value not in self.analysis.materialized:
            users = value.users
            names = [user.name for user in users]
            if names == ["tt.store"] and users[0].operands[1] is value:
                return StoredProduct(queue, users[0], bias, rectified) if value.type.element in ELEMENT_KINDS else None
            if names == ["arith.truncf"]:
                value = users[0].result
                if [user.name for user in value.users] != ["tt.store"]:
                    return None
            elif names == ["arith.addf"] and bias is None and not rectified:
                bias = next((operand for operand in users[0].operands if operand is not value), value)
                if not self.analysis.varying(bias) <= {1}:
                    return None
                value = users[0].result
            elif sorted(names) == ["arith.cmpf", "arith.select"] and not rectified:
                comparison, choice = sorted(users, key=lambda user: user.name)
                if not self._rectifies(value, comparison, choice):
                    return None
                value, rectified = choice.result, True
            else:
                return None
        return None

    def _rectifies(self, value: Value, comparison: Operation, choice: Operation) -> bool:
        """Whether a choice is ``value <= 0 ? 0 : value``."""
        left, right = comparison.operands
        condition, zero, other = choice.operands
        return (
            predicate_of(comparison) == "ole"
            and left is value
            and self.analysis.is_zero(right)
            and condition is comparison.result
            and condition.users == [choice]
            and self.analysis.is_zero(zero)
            and other is value
        )

    def _may_be_deferred(self, loop: Operation, product: Operation, store: Operation) -> bool:
        """Whether the last products may be computed at the store: nothing that they read is written before or by it."""
        block = store.block
        if block is None or block is not loop.block or self.analysis.store_group[store] != (store,):
            return False
        between = block.operations[loop.position + 1 : store.position]
        if any(inner.name in EFFECTS for operation in between for inner in operation.walk()):
            return False
        parameters, target = self.analysis.function.parameters, store.operands[0]
        loads = _loads_of(product)
        if any(self.analysis.base(pointer) not in parameters for pointer in [target, *loads]):
            return False
        return all(self.analysis.disjoint(pointer, target, block) for pointer in loads)

    def store_product(self, store: Operation) -> bool:
        """Stores a deferred sum from registers and returns True, or else finishes it in memory."""
        stored = self.stored_products[store]
        pointer, value, *mask = store.operands
        steps = [self.analysis.step(pointer, dimension) for dimension in (0, 1)]
        bounds = self._bounds(mask[0]) if mask else [[], []]
        if steps[1] != 1 or steps[0] is None or not self.is_known(steps[0]) or bounds is None:
            self.close_queue(stored.queue)
            return False
        rows, columns = (valid_count(each, size) for each, size in zip(bounds, value.type.shape, strict=True))
        with self.arena_scope():
            bias = self._row(stored.bias) if stored.bias else "0"
            target, floor = self.name("target"), "0.0f" if stored.rectified else "-__builtin_inff()"
            self.lines.append(
                f"struct product_target {target} = {{{self.evaluate(pointer)}, {self.expression(steps[0])}, "
                f"{ELEMENT_KINDS[pointer.type.pointee]}, {columns}, {bias}, {floor}, {rows}}};"
            )
            self.lines.append(f"program->services->finish_into(&{stored.queue}, &{target});")
        return True

    def _bounds(self, mask: Value) -> list[list[str]] | None:
        """A mask as C text of bounds by dimension; None if it is more than that."""
        found: list[list[str]] = [[], []]
        for leaf in self.leaves(mask, [0, 1]):
            bound = self.range_bound(leaf)
            if bound is None:
                return None
            found[bound[0]].append(bound[1])
        return found

    def _row(self, bias: Value) -> str:
        """C name of an array that holds the row of which all rows of a tensor are copies."""
        columns = bias.type.shape[1]
        row = self.allocate("f32", columns, "bias")

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            return [f"{row}[{index[0].text}] = {self.element(bias, (ZERO, *index), nest)};"]

        self.loops((columns,), body)
        return row


def _rows_of_groups(total: Value) -> Value | None:
    """A sum of products of groups [G, M, D] as rows [M, G D], as it lies in memory; None if it is not used as such."""
    groups, rows, width = total.type.shape
    if [user.name for user in total.users] != ["tt.trans"] or total.users[0].attributes["order"] != [*ORDER]:
        return None
    transposed = total.users[0].result
    if [user.name for user in transposed.users] != ["tt.reshape"]:
        return None
    reshaped = transposed.users[0].result
    return reshaped if tuple(reshaped.type.shape) == (rows, groups * width) else None


def _loads_of(product: Operation) -> list[Value]:
    """The pointers of the loads that a product's operands depend on."""
    found, seen, stack = [], set(), [*product.operands[:2]]
    while stack:
        value = stack.pop()
        if value in seen or value.owner is None:
            continue
        seen.add(value)
        if value.owner.name == "tt.load":
            found.append(value.owner.operands[0])
        stack += value.owner.operands
    return found
