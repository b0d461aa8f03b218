"""Code generation for elements of tensors: an expression of C for one element, and the statements that it needs.

Each statement goes to the outermost loop of the nest that it can be computed in.
"""

from __future__ import annotations

import math

from .analysis import Analysis, Expression
from .elements import HALVES, compute_type, element_bytes, from_memory, literal, storage_type, to_memory
from .forms import ZERO, Buffer, Index, Nest, Scalar
from .ir import Function, Operation, UnsupportedOperation, Value
from .operations import element_expression

_ZEROS = ("(0.0f)", "(0.0)", "(0)", "INT64_C(0)", "0")
_ROW_OF_ZEROS = 4096  # bytes, as in kernel.h


class ElementWriter:
    """The part of the kernel writer that evaluates elements."""

    function: Function
    analysis: Analysis
    forms: dict[Value, Scalar | Buffer]
    offsets: dict[Value, str]
    checks: list[str]

    # What the kernel writer provides:
    name: ...
    scalar: ...
    buffer_lies_in_block: ...
    points_in_block: ...

    def expression(self, expression: Expression) -> str:
        """C text of an analysis expression, in 64-bit arithmetic."""
        if isinstance(expression, int):
            return f"INT64_C({expression})" if abs(expression) < 2**63 else str(expression)
        if isinstance(expression, Value):
            return f"(int64_t){self.scalar(expression)}"
        symbol, left, right = expression
        return f"({self.expression(left)} {symbol} {self.expression(right)})"

    def emit(self, nest: Nest, level: int, element: str, text: str) -> str:
        name = self.name("e")
        nest.levels[level + 1].append(f"{compute_type(element)} const {name} = {text};")
        nest.level_of[name] = level
        return name

    def linear(self, index: tuple[Index, ...], shape: tuple[int, ...]) -> str:
        """Row-major offset of an index."""
        parts, stride = [], 1
        for position, size in zip(reversed(index), reversed(shape), strict=False):
            if position.text != "0":
                parts.append(position.text if stride == 1 else f"{position.text} * {stride}")
            stride *= size
        return " + ".join(reversed(parts)) or "0"

    def place(self, buffer: Buffer, index: tuple[Index, ...], shape: tuple[int, ...]) -> str:
        """C text of one element of a tensor in memory."""
        order = buffer.order or range(len(shape))
        return f"{buffer.name}[{self.linear(tuple(index[d] for d in order), tuple(shape[d] for d in order))}]"

    def element(self, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        """C text of one element of a value; the statements it needs are added to the nest."""
        value = self.analysis.resolve(value)
        form = self.forms.get(value)
        if isinstance(form, Scalar):
            nest.level_of.setdefault(form.text, -1)
            return form.text
        shape = value.type.shape
        index = tuple(ZERO if size == 1 else position for position, size in zip(index, shape, strict=False))
        key = (value, *(position.text for position in index))
        if key not in nest.known:
            level = max((position.level for position in index), default=-1)
            nest.known[key] = self._element(value, index, nest, level)
        return nest.known[key]

    def _element(self, value: Value, index: tuple[Index, ...], nest: Nest, level: int) -> str:
        form = self.forms.get(value)
        if isinstance(form, Buffer):
            text = self.place(form, index, value.type.shape)
            if nest.halves is not None and self.buffer_lies_in_block(form, index, nest):
                text = nest.halves.read(self.name("h"), form.element, f"&{text}")
                return self.emit(nest, level, value.type.element, text)
            if level == nest.innermost:
                nest.accessed.add(form.element)
            return self.emit(nest, level, value.type.element, from_memory(form.element, text))
        if value.type.is_pointer and (moving := self._affine_part(value, index)):
            return self._affine_pointer(value, index, nest, moving)
        if value in self.analysis.advances:
            initial = self.element(self.analysis.advances[value].initial, index, nest)
            offset = self.offsets[value]
            if value.type.is_pointer:
                return self.emit(nest, level, value.type.element, f"{initial} + {offset}")
            kind = compute_type(value.type.element)
            return self.emit(nest, level, value.type.element, f"({kind})({initial} + {offset})")
        operation = value.owner
        if operation is None:
            raise UnsupportedOperation(None, f"uses {value.name} before it has a value")
        view = getattr(self, "_view_" + operation.name.replace(".", "_"), None)
        if view is not None:
            return view(operation, value, index, nest)
        if operation.name == "tt.load":
            return self._loaded(operation, index, nest, level)
        if operation.name == "arith.cmpi" and self._is_ensured(value, index, nest):
            return "1"
        texts = [self.element(operand, index, nest) for operand in operation.operands]
        if operation.name == "arith.truncf" and self.analysis.is_exact(operation.operands[0], value.type.element):
            return texts[0]
        if (decided := _decided(operation, texts)) is not None:
            return decided
        # Inside only those loops that an operand depends on.
        level = max((nest.level_of.get(text, level) for text in texts), default=level)
        if operation.name in ("arith.divsi", "arith.remsi") and value.type.element == "i32":
            divided = self._divided(operation, texts, nest, level)
            if divided is not None:
                return divided
        return self.emit(nest, level, value.type.element, element_expression(operation, texts))

    def _is_ensured(self, condition: Value, index: tuple[Index, ...], nest: Nest) -> bool:
        """Whether the end of a loop ensures a condition ``index < bound``."""
        return any(
            bound in nest.below[position.text]
            for dimension, position in enumerate(index)
            if position.text != "0" and nest.below.get(position.text)
            for bound in self.analysis.prefix_bounds(condition, dimension)
        )

    def _divided(self, operation: Operation, texts: list[str], nest: Nest, level: int) -> str | None:
        """A quotient or remainder of many elements by one number, through its reciprocal; None if divisors differ."""
        divisor = self.analysis.uniform(operation.operands[1])
        if isinstance(divisor, int) and divisor > 0 and divisor & (divisor - 1) == 0:  # shifts
            symbol = "/" if operation.name == "arith.divsi" else "%"
            return self.emit(nest, level, "i32", f"({texts[0]} {symbol} ({divisor}))")
        if divisor is None or isinstance(divisor, tuple):
            return None
        number = f"({divisor})" if isinstance(divisor, int) else self.scalar(divisor)
        if ("inverse", number) not in nest.known:
            name = nest.known["inverse", number] = self.name("e")
            nest.levels[0].append(f"double const {name} = inverse_i32({number});")
        key = ("quotient", texts[0], number)
        if key not in nest.known:
            inverse = nest.known["inverse", number]
            nest.known[key] = self.emit(nest, level, "i32", f"divide_by_i32({texts[0]}, {inverse})")
        if operation.name == "arith.divsi":
            return nest.known[key]
        product = f"(uint32_t){nest.known[key]} * (uint32_t){number}"
        return self.emit(nest, level, "i32", f"(int32_t)((uint32_t){texts[0]} - {product})")

    def _affine_part(self, pointer: Value, index: tuple[Index, ...]) -> list[tuple[Index, Expression]]:
        """(index, step) along the dimensions in which a pointer tensor has a constant step."""
        moving = []
        for dimension, position in enumerate(index):
            step = self.analysis.step(pointer, dimension)
            if position.text != "0" and step is not None:
                moving.append((position, step))
        return moving

    def _affine_pointer(
        self, pointer: Value, index: tuple[Index, ...], nest: Nest, moving: list[tuple[Index, Expression]]
    ) -> str:
        """A pointer as an origin, hoisted out of the loops it does not depend on, plus 64-bit offsets."""
        moved = {position.text for position, _ in moving}
        origin_index = tuple(ZERO if position.text in moved else position for position in index)
        origin = self.element(pointer, origin_index, nest)
        parts = []
        for position, step in moving:
            if step == 0:
                continue
            if step == 1:
                parts.append(f"(int64_t){position.text}")
                continue
            key = ("step", self.expression(step))
            if key not in nest.known:
                nest.known[key] = key[1] if isinstance(step, int) else self.emit(nest, -1, "i64", key[1])
            parts.append(f"(int64_t){position.text} * {nest.known[key]}")
        return f"({origin} + ({' + '.join(parts)}))" if parts else origin

    def _loaded(self, load: Operation, index: tuple[Index, ...], nest: Nest, level: int) -> str:
        """One element of a load's result, in the nest."""
        element = load.result.type.element
        _, *optional = load.operands
        if optional and self.element(optional[0], index, nest) == "0":
            other = self.element(optional[1], index, nest) if len(optional) > 1 else f"({compute_type(element)})0"
            nest.level_of.setdefault(other, -1)
            return other
        return self.emit(nest, level, element, self._load(load, index, nest))

    def _load(self, operation: Operation, index: tuple[Index, ...], nest: Nest) -> str:
        element = operation.result.type.element
        pointer, *optional = operation.operands
        address = self.element(pointer, index, nest)
        read = f"gathered_half({address})" if self._gathers_halves(pointer, index) else f"*{address}"
        mask = "1"
        if optional:
            nest.masks.append((optional[0], index))
            mask = self.element(optional[0], index, nest)
            other = self.element(optional[1], index, nest) if len(optional) > 1 else "0"
            row = self._row_or_zeros(pointer, mask, other, index, nest)
            if row is not None:
                mask, address, read = "1", row, f"*{row}"
            elif mask != "1":
                read = f"({mask} ? {read} : ({storage_type(element)}){to_memory(element, other)})"
        if nest.halves is not None and self.points_in_block(pointer, mask, index, nest):
            return nest.halves.read(self.name("h"), element, address)
        if any(position.level == nest.innermost for position in index):
            nest.accessed.add(element)
        return from_memory(element, read)

    def _row_or_zeros(self, pointer: Value, mask: str, other: str, index: tuple[Index, ...], nest: Nest) -> str | None:
        """C text of an element's address, in a row of zeros where a mask is false; None if the mask is not for rows.

        Compilers vectorize a loop over several rows with masks only if they can load whichever masks are true.
        """
        inner = [dimension for dimension, each in enumerate(index) if each.level == nest.innermost]
        is_for_rows = nest.level_of.get(mask, nest.innermost) < nest.innermost
        if other not in _ZEROS or not is_for_rows or len(inner) != 1 or self.analysis.step(pointer, inner[0]) != 1:
            return None
        if pointer.type.shape[inner[0]] * element_bytes(pointer.type.pointee) > _ROW_OF_ZEROS:
            return None
        start = self.element(pointer, tuple(ZERO if each.level == nest.innermost else each for each in index), nest)
        key = ("row", mask, start)
        if key not in nest.known:
            level = max(nest.level_of[mask], *(each.level for each in index if each.level < nest.innermost), -1)
            kind = compute_type(pointer.type.element)
            nest.known[key] = self.emit(nest, level, pointer.type.element, f"{mask} ? {start} : ({kind})row_of_zeros")
        return f"({nest.known[key]} + (int64_t){index[inner[0]].text})"

    def _gathers_halves(self, pointer: Value, index: tuple[Index, ...]) -> bool:
        """Whether 16-bit floats are read at no constant step along the innermost loop: addresses must be even."""
        if pointer.type.pointee not in HALVES or all(position.text == "0" for position in index):
            return False
        innermost = max(range(len(index)), key=lambda dimension: index[dimension].level)
        base = self.analysis.base(pointer)
        if base not in self.function.parameters or self.analysis.step(pointer, innermost) is not None:
            return False
        message = f"{base.name.lstrip('%')}: got an odd address, expected an even one for 16-bit values"
        check = f'if ((uintptr_t){self.scalar(base)} & 1) {{ program->services->fail(program, "{message}"); return; }}'
        if check not in self.checks:
            self.checks.append(check)
        return True

    # Views: the element of an operand (or the index) that an element of the result is.

    def _view_tt_splat(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        return self.element(operation.operands[0], (), nest)

    def _view_arith_constant(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        text = literal(str(operation.attributes["value"]), value.type.element)
        nest.level_of.setdefault(text, -1)
        return text

    def _view_tt_make_range(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        return f"(int32_t)({index[0].text} + {operation.integer('start', 0)})"

    def _view_tt_expand_dims(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        axis = operation.integer("axis")
        return self.element(operation.operands[0], index[:axis] + index[axis + 1 :], nest)

    def _view_tt_broadcast(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        return self.element(operation.operands[0], index, nest)

    def _view_tt_trans(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        source = [ZERO] * len(index)
        for position, dimension in enumerate(operation.attributes["order"]):  # type: ignore[arg-type]
            source[dimension] = index[position]
        return self.element(operation.operands[0], tuple(source), nest)

    def _view_tt_reshape(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        source, target = operation.operands[0].type.shape, value.type.shape
        if [size for size in source if size > 1] == [size for size in target if size > 1]:
            indices = iter([position for position, size in zip(index, target, strict=False) if size > 1])
            return self.element(
                operation.operands[0], tuple(ZERO if size == 1 else next(indices) for size in source), nest
            )
        form = self._row_major(operation.operands[0])
        if form is not None:
            text = f"{form.name}[{self.linear(index, target)}]"
            level = max((position.level for position in index), default=-1)
            return self.emit(nest, level, value.type.element, from_memory(form.element, text))
        # Leading and trailing dimensions that both shapes have: their indices do not change.
        first = next(i for i, sizes in enumerate(zip(source, target, strict=False)) if sizes[0] != sizes[1])
        same = next(i for i, sizes in enumerate(zip(source[::-1], target[::-1], strict=False)) if sizes[0] != sizes[1])
        split, folded = len(target) - same, source[first : len(source) - same]
        level = max((position.level for position in index[first:split]), default=0)
        linear, remaining, positions = self.linear(index[first:split], target[first:split]), math.prod(folded), []
        for size in folded:
            outermost = not positions
            remaining //= size
            quotient = f"(({linear}) / {remaining})" if remaining > 1 else f"({linear})"
            positions.append(Index(quotient if outermost else f"({quotient} % {size})", level))
        return self.element(operation.operands[0], (*index[:first], *positions, *index[split:]), nest)

    def _row_major(self, value: Value) -> Buffer | None:
        """The buffer in which a tensor lies row-major, whether itself or what it is a transposition of."""
        value = self.analysis.resolve(value)
        order = list(range(len(value.type.shape)))
        while value not in self.forms and value.owner is not None and value.owner.name == "tt.trans":
            moved: list[int] = value.owner.attributes["order"]  # type: ignore[assignment]
            order = [moved[dimension] for dimension in order]
            value = self.analysis.resolve(value.owner.operands[0])
        form = self.forms.get(value)
        if not isinstance(form, Buffer):
            return None
        return form if tuple(order) == (form.order or tuple(range(len(order)))) else None

    def _view_tt_join(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        left, right = (self.element(operand, index[:-1], nest) for operand in operation.operands)
        level = max(position.level for position in index)
        return self.emit(nest, level, value.type.element, f"({index[-1].text} ? {right} : {left})")

    def _view_tt_split(self, operation: Operation, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        return self.element(operation.operands[0], (*index, Index(str(operation.results.index(value)))), nest)


def _decided(operation: Operation, texts: list[str]) -> str | None:
    """One of an operation's operands, if a condition that is known everywhere in the loop makes it the result."""
    if operation.name == "arith.andi" and operation.result.type.element == "i1":
        if "0" in texts:
            return "0"
        if "1" in texts:
            return texts[1 - texts.index("1")]
    if operation.name == "arith.select" and texts[0] in ("0", "1"):
        return texts[1] if texts[0] == "1" else texts[2]
    return None
