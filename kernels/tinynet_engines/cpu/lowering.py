"""Operations that are rewritten as others before the analysis.

``tt.dot_scaled`` multiplies numbers in microscaling formats (Open Compute Project, MX specification 1.0): each group of
neighbors along the inner dimension has a scale of its own. It becomes a ``tt.dot`` of fp32 numbers, which hold the
scaled ones exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .ir import Block, Function, Operation, Type, UnsupportedOperation, Value

_FORMATS = {"e2m1", "e4m3", "e5m2", "bf16", "fp16"}


def lower(function: Function) -> None:
    """Rewrite a function in place."""
    for block in function.blocks:
        _lower_block(block)


def _lower_block(block: Block) -> None:
    operations, block.operations = block.operations, []
    for operation in operations:
        for region in operation.regions:
            _lower_block(region)
        if operation.name == "tt.dot_scaled":
            _ScaledProduct(operation, block).lower()
        else:
            block.append(operation)


class _ScaledProduct:
    """One ``tt.dot_scaled``, rewritten at the end of a block."""

    def __init__(self, product: Operation, block: Block):
        self.product = product
        self.block = block

    def lower(self) -> None:
        product = self.product
        match = re.search(r"\blhs = (\w+) rhs = (\w+)", product.head)
        if match is None or not set(match.groups()) <= _FORMATS:
            raise UnsupportedOperation(product, "of these formats is not supported by the CPU engine")
        for value in product.operands:
            value.users.remove(product)
        operands = iter(product.operands)
        scaled = " scale " in product.head.partition(",")[0], " scale " in product.head.partition(",")[2]
        left, left_scale = next(operands), next(operands) if scaled[0] else None
        right, right_scale = next(operands), next(operands) if scaled[1] else None
        inner = len(product.result.type.shape) - 1
        a = self._numbers(left, match.group(1), inner - (product.attributes.get("lhs_k_pack") is False))
        a = self._scaled(a, left_scale, inner)
        b = self._numbers(right, match.group(2), inner - (product.attributes.get("rhs_k_pack") is not False))
        b = self._scaled(b, right_scale and self._swapped(right_scale), inner - 1)
        self._add("tt.dot", [a, b, next(operands)], product.result)

    def _add(self, name: str, operands: Sequence[Value], result: Value | Type, **attributes: object) -> Value:
        source = self.product
        operation = Operation(
            name, list(operands), attributes=attributes, text=source.text, location=source.location, head=source.head
        )
        for value in operation.operands:
            value.users.append(operation)
        if isinstance(result, Type):
            result = Value(result, self.product.result.name)
        result.owner = operation
        operation.results = [result]
        self.block.append(operation)
        return result

    def _numbers(self, data: Value, form: str, packed: int) -> Value:
        """fp32 numbers of an operand, in which pairs of 4-bit numbers are packed along dimension ``packed``."""
        shape = data.type.shape
        if form != "e2m1":
            return self._add("arith.extf", [data], Type(shape, "f32"))
        low, high = (self._add(f"tinynet.{half}_e2m1", [data], Type(shape, "f32")) for half in ("low", "high"))
        pairs = self._add("tt.join", [low, high], Type((*shape, 2), "f32"))
        order = list(range(len(shape)))
        order.insert(packed + 1, len(shape))
        beside = Type(tuple(pairs.type.shape[dimension] for dimension in order), "f32")
        pairs = self._add("tt.trans", [pairs], beside, order=order)
        whole = tuple(size * (1 + (dimension == packed)) for dimension, size in enumerate(shape))
        return self._add("tt.reshape", [pairs], Type(whole, "f32"))

    def _swapped(self, scale: Value) -> Value:
        """The transposition of the last two dimensions."""
        *outer, rows, columns = scale.type.shape
        order = [*range(len(outer)), len(outer) + 1, len(outer)]
        return self._add("tt.trans", [scale], Type((*outer, columns, rows), scale.type.element), order=order)

    def _scaled(self, numbers: Value, scale: Value | None, inner: int) -> Value:
        """Numbers times the scale of their group along dimension ``inner``."""
        if scale is None:
            return numbers
        shape, groups = numbers.type.shape, scale.type.shape
        name = "arith.extf" if scale.type.is_float else "tinynet.e8m0"
        scale = self._add(name, [scale], Type(groups, "f32"))
        apart = (*groups[: inner + 1], 1, *groups[inner + 1 :])
        scale = self._add("tt.expand_dims", [scale], Type(apart, "f32"), axis=inner + 1)
        repeated = (*groups[: inner + 1], shape[inner] // groups[inner], *groups[inner + 1 :])
        scale = self._add("tt.broadcast", [scale], Type(repeated, "f32"))
        scale = self._add("tt.reshape", [scale], Type(shape, "f32"))
        return self._add("arith.mulf", [numbers, scale], numbers.type)
