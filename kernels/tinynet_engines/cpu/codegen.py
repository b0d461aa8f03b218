"""The engine's IR to C: the body of one C function that runs one program of the kernel.

Tensor operations are evaluated element by element inside the loops of the root that needs them (see ``analysis``).
A :class:`Nest` collects the statements of one loop nest by the level they belong to, so that statements independent of
the inner loops are placed outside them; the C compiler vectorizes the innermost loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from .analysis import Analysis, Expression
from .atomic_codegen import AtomicWriter
from .dot_codegen import DotWriter, Leaf
from .elements import compute_type, element_bytes, from_memory, literal, rounded, storage_type, to_memory
from .forms import ZERO, Buffer, End, Index, Nest, Scalar, valid_count
from .group_codegen import order_of_total
from .ir import Block, Function, Operation, UnsupportedOperation, Value
from .kinds import is_lazy
from .loop_codegen import LoopWriter
from .operations import element_expression
from .reduction_codegen import ReductionWriter


@dataclass(frozen=True)
class GeneratedKernel:
    """C text of a kernel and the facts that a launch needs."""

    body: str
    arena_bytes: int
    used_disjointness: bool
    starts_again: bool
    written: list[int]
    data_dependent: bool


class Assignment(NamedTuple):
    """The next value of a loop-carried tensor; elements past `ends` (by dimension, as in `loops`) do not change."""

    target: Buffer
    value: Value
    ends: dict[int, End]


# Bytes of a tile that is a local array instead of memory in the arena: it may live in registers. At least a whole
# vector: gcc 12 miscompiles a masked loop over four elements that it has moved there.
_LOCAL_BYTES = range(64, 1024 + 1)


class KernelWriter(AtomicWriter, DotWriter, LoopWriter, ReductionWriter):
    """Writes the body of one kernel.

    Args:
        function: the kernel, as the parser returned it.
        analysis: the facts about it.
    """

    def __init__(self, function: Function, analysis: Analysis):
        self.function = function
        self.analysis = analysis
        self.forms: dict[Value, Scalar | Buffer] = {}
        self.offsets: dict[Value, str] = {}  # advancing loop-carried tensors -> C variable of the increments so far
        self.lines: list = []
        self.checks: list[str] = []  # of the arguments, before everything else
        self.preheaders: list[list] = []  # per loop around the current place: lines that run before it
        self.names = 0
        self.arena_top = 0
        self.arena_bytes = 0
        self.persistent_bytes = 0
        self.queues: dict[Operation, str] = {}
        self._pending_scalars: list[str] = []

    # ---------------------------------------------------------------------------------------------- the function

    def generate(self) -> GeneratedKernel:
        for position, parameter in enumerate(self.function.parameters):
            self._declare_parameter(position, parameter)
        self.lines.append(self.checks)
        for block in self.function.blocks[1:]:
            for argument in block.arguments:
                self._declare_variable(argument)
        several = len(self.function.blocks) > 1
        for block in self.function.blocks:
            if several:
                self.lines.append(f"{block.label}:;")
            self.visit_all(block.operations)
        arena_bytes = self.arena_bytes + self.persistent_bytes
        body = "\n".join(
            [
                "char *const arena = program->arena;",
                f"char *const persistent = arena + {self.arena_bytes};",
                "(void)arena; (void)persistent;",
                *_flatten(self.lines),
            ]
        )
        analysis = self.analysis
        return GeneratedKernel(
            body,
            arena_bytes,
            analysis.used_disjointness,
            bool(analysis.overlap_checks),
            analysis.written_parameters(),
            analysis.has_data_dependent_addresses(),
        )

    def _declare_parameter(self, position: int, parameter: Value) -> None:
        element = parameter.type.element
        source = f"program->arguments[{position}]"
        kind = compute_type(element)
        if parameter.type.is_pointer:
            text = f"{source}.pointer"
        elif parameter.type.is_float:
            text = rounded(element, f"({kind}){source}.real")
        else:
            text = f"({kind}){source}.integer"
        self.lines.append(f"{kind} const p{position} = {text}; (void)p{position};")
        self.forms[parameter] = Scalar(f"p{position}")

    def visit_all(self, operations: list[Operation]) -> None:
        for operation in operations:
            self.visit(operation)

    def visit(self, operation: Operation) -> None:
        handler = getattr(self, "visit_" + operation.name.replace(".", "_"), None)
        try:
            if handler is not None:
                handler(operation)
            elif not is_lazy(operation):
                raise UnsupportedOperation(operation)
            elif not operation.result.type.is_tensor:
                texts = [self.scalar(operand) for operand in operation.operands]
                self.define_scalar(operation.result, element_expression(operation, texts))
            elif operation.result in self.analysis.materialized:
                self.materialize(operation.result)
        except UnsupportedOperation as error:
            if error.args and "(" in str(error):
                raise
            raise UnsupportedOperation(operation, str(error)) from None

    # ------------------------------------------------------------------------------------- names and memory

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def define_scalar(self, value: Value, text: str) -> None:
        name = self.name("s")
        self.lines.append(f"{compute_type(value.type.element)} const {name} = {text};")
        self.forms[value] = Scalar(name)

    def scalar(self, value: Value) -> str:
        form = self.forms.get(self.analysis.resolve(value))
        if not isinstance(form, Scalar):
            raise UnsupportedOperation(value.owner, "has no scalar value here")
        return form.text

    def allocate(self, element: str, count: int, prefix: str = "t") -> str:
        """A C array of ``count`` elements, local or in the arena, until the current scope ends."""
        name = self.name(prefix)
        kind = storage_type(element)
        if count * element_bytes(element) in _LOCAL_BYTES:
            self.lines.append(f"{kind} {name}[{count}] __attribute__((aligned(64)));")
            return name
        self.lines.append(f"{kind} *restrict const {name} = (void *)(arena + {self.arena_top});")
        self.arena_top += (count * element_bytes(element) + 63) // 64 * 64
        self.arena_bytes = max(self.arena_bytes, self.arena_top)
        return name

    def allocate_persistent(self, element: str, count: int) -> str:
        """C text of memory that no other value of the program uses."""
        text = f"({storage_type(element)} *)(persistent + {self.persistent_bytes})"
        self.persistent_bytes += (count * element_bytes(element) + 63) // 64 * 64
        return text

    @contextmanager
    def arena_scope(self) -> Iterator[None]:
        """Memory allocated inside is freed at the end."""
        top = self.arena_top
        yield
        self.arena_top = top

    def new_buffer(self, value: Value, prefix: str = "t", order: tuple[int, ...] = ()) -> Buffer:
        name = self.allocate(value.type.element, value.type.count, prefix)
        return Buffer(name, value.type.element, len(self.preheaders), order=order)

    def _declare_variable(self, value: Value, prefix: str = "v") -> None:
        """Declare a value that is assigned in several places: block arguments, results of branches and loops."""
        if value.type.is_tensor:
            self.forms[value] = self.new_buffer(value, prefix)
        else:
            name = self.name(prefix)
            self.lines.append(f"{compute_type(value.type.element)} {name} = 0;")
            self.forms[value] = Scalar(name)

    def _assign(self, target: Value, value: Value) -> None:
        form = self.forms[target]
        if isinstance(form, Buffer):
            self.fill(form, value)
        else:
            self.lines.append(f"{form.text} = {self.scalar(value)};")

    # --------------------------------------------------------------------------------- elements of tensors

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
        if optional:
            nest.masks.append((optional[0], index))
            mask = self.element(optional[0], index, nest)
            other = self.element(optional[1], index, nest) if len(optional) > 1 else "0"
            if mask != "1":
                read = f"({mask} ? {read} : ({storage_type(element)}){to_memory(element, other)})"
        return from_memory(element, read)

    def _gathers_halves(self, pointer: Value, index: tuple[Index, ...]) -> bool:
        """Whether 16-bit floats are read at no constant step along the innermost loop: addresses must be even."""
        if pointer.type.pointee not in ("bf16", "f16") or all(position.text == "0" for position in index):
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

    # ---------------------------------------------------------------------------------- tensors into memory

    def fill(self, buffer: Buffer, value: Value, ends: dict[int, End] | None = None, inner: int | None = None) -> None:
        """Evaluate a tensor into a buffer, up to ``ends`` as in :meth:`loops`."""
        shape = value.type.shape

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            text = to_memory(buffer.element, self.element(value, index, nest))
            return [f"{self.place(buffer, index, shape)} = {text};"]

        self.loops(shape, body, inner, ends=ends)

    def materialize(self, value: Value) -> Buffer:
        """Compute a tensor into a buffer now."""
        value = self.analysis.resolve(value)
        form = self.forms.get(value)
        if isinstance(form, Buffer) and not form.order:
            return form
        owner, inner = value.owner, None
        if owner is not None and owner.name == "tt.load":
            inner = self.analysis.unit_dimension(owner.operands[0])
        buffer = self.new_buffer(value)
        self.fill(buffer, value, self.needed_ends(value), inner)
        self.forms[value] = buffer
        return buffer

    def needed_ends(self, value: Value) -> dict[int, End]:
        """By dimension: the end of the elements that are ever used, if before the end of the shape."""
        return self._ends(value, lambda dimension: self.analysis.needed_below(value, dimension))

    def _ends(self, value: Value, bounds_along: Callable[[int], list[Expression]]) -> dict[int, End]:
        ends = {}
        for dimension, size in enumerate(value.type.shape):
            bounds = [bound for bound in bounds_along(dimension) if self.is_known(bound)]
            if bounds:
                ends[dimension] = End(valid_count([self.expression(bound) for bound in bounds], size), tuple(bounds))
        return ends

    def evaluate(self, value: Value, index: tuple[Index, ...] | None = None) -> str:
        """C text of one element at a fixed index, outside all loops."""
        nest = Nest(0)
        text = self.element(value, index or (ZERO,) * len(value.type.shape), nest)
        self.lines += nest.levels[0]
        return text

    # ------------------------------------------------------------------------------------ simple operations

    def visit_arith_constant(self, operation: Operation) -> None:
        if not operation.result.type.is_tensor:
            text = literal(str(operation.attributes["value"]), operation.result.type.element)
            self.forms[operation.result] = Scalar(text)

    def visit_ub_poison(self, operation: Operation) -> None:
        if operation.result.type.is_tensor:
            raise UnsupportedOperation(operation)
        self.forms[operation.result] = Scalar("0")

    def visit_tt_get_program_id(self, operation: Operation) -> None:
        self.define_scalar(operation.result, f"program->id[{'xyz'.index(operation.head)}]")

    def visit_tt_get_num_programs(self, operation: Operation) -> None:
        self.define_scalar(operation.result, f"program->count[{'xyz'.index(operation.head)}]")

    def visit_tt_unsplat(self, operation: Operation) -> None:
        self.define_scalar(operation.result, self.evaluate(operation.operands[0]))

    def visit_gpu_barrier(self, operation: Operation) -> None:
        """Programs run sequentially here: there is nothing to wait for."""

    visit_ttg_barrier = visit_ttg_local_barrier = visit_llvm_intr_assume = visit_gpu_barrier

    def visit_tt_return(self, operation: Operation) -> None:
        self.lines.append("return;")

    def visit_cf_br(self, operation: Operation) -> None:
        self._jump(*operation.successors[0])

    def visit_cf_cond_br(self, operation: Operation) -> None:
        self.lines.append(f"if ({self.scalar(operation.operands[0])}) {{")
        self._jump(*operation.successors[0])
        self.lines.append("} else {")
        self._jump(*operation.successors[1])
        self.lines.append("}")

    def _jump(self, label: str, values: list[Value]) -> None:
        block = next(block for block in self.function.blocks if block.label == label)
        for argument, value in zip(block.arguments, values, strict=False):
            self._assign(argument, value)
        self.lines.append(f"goto {label};")

    # ---------------------------------------------------------------------------------------------- memory

    def visit_tt_load(self, operation: Operation) -> None:
        if not operation.result.type.is_tensor:
            nest = Nest(0)
            text = self._load(operation, (), nest)
            self.lines += nest.levels[0]
            self.define_scalar(operation.result, text)
        elif operation.result in self.analysis.materialized:
            self.materialize(operation.result)

    def visit_tt_store(self, operation: Operation) -> None:
        if not operation.operands[0].type.is_tensor:
            pointer, value, *mask = operation.operands
            element = pointer.type.pointee
            guard = f"if ({self.scalar(mask[0])}) " if mask else ""
            self.lines.append(f"{guard}*{self.scalar(pointer)} = {to_memory(element, self.scalar(value))};")
            return
        group = self.analysis.store_group[operation]
        if operation is not group[-1]:
            return
        self._check_overlap(operation)
        bounds = self._common_bounds([store.operands[2] if len(store.operands) > 2 else None for store in group])

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            for leaf, _ in bounds.values():  # conditions that the loops' ends ensure are not checked again
                position = [ZERO if dimension is None else index[dimension] for dimension in leaf.dimensions]
                nest.known[(leaf.condition, *(each.text for each in position))] = "1"
            statements = []
            for store in group:
                pointer, value, *mask = store.operands
                condition = self.element(mask[0], index, nest) if mask else "1"
                guard = f"if ({condition}) " if condition != "1" else ""
                text = to_memory(pointer.type.pointee, self.element(value, index, nest))
                statements.append(f"{guard}*{self.element(pointer, index, nest)} = {text};")
            return statements

        pointer = operation.operands[0]
        ends = {dimension: End(end) for dimension, (_, end) in bounds.items()}
        self.loops(pointer.type.shape, body, self.analysis.unit_dimension(pointer), ends=ends)

    def _common_bounds(self, masks: list[Value | None]) -> dict[int, tuple[Leaf, str]]:
        """By dimension: a condition ``arange < bound`` that is part of every mask, and how many indices satisfy it.

        A loop up to there needs no mask for it: a masked store costs a branch in compiled C.
        """
        found: dict[int, tuple[Leaf, str]] = {}
        if masks[0] is None:
            return found
        for leaf in self.leaves(masks[0], list(range(len(masks[0].type.shape)))):
            everywhere = all(
                mask is not None
                and any(
                    other.condition is leaf.condition and other.dimensions == leaf.dimensions
                    for other in self.leaves(mask, list(range(len(mask.type.shape))))
                )
                for mask in masks
            )
            bound = self.range_bound(leaf) if everywhere else None
            if bound is not None and masks[0].type.shape[bound[0]] > 1 and bound[0] not in found:
                dimension, text = bound
                end = self.name("end")
                self.lines.append(f"int32_t const {end} = {valid_count([text], masks[0].type.shape[dimension])};")
                found[dimension] = (leaf, end)
        return found

    def _check_overlap(self, store: Operation) -> None:
        """Restart the program in its careful variant if memory overlaps that was assumed to be disjoint."""
        for pair in self.analysis.overlap_checks.get(store.block, ()):
            spans = []
            for pointer in pair:
                size = (self.analysis.extent(pointer) or 0) * element_bytes(pointer.type.pointee)
                spans.append(f"{self.evaluate(pointer)}, {size}")
            self.lines.append(f"if (overlap({', '.join(spans)})) {{ careful(program); return; }}")

    def visit_tt_gather(self, operation: Operation) -> None:
        source, indices = operation.operands
        axis, shape = operation.integer("axis"), source.type.shape
        table = self.materialize(source)
        result = self.new_buffer(operation.result)

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            chosen = self.element(indices, index, nest)
            safe = Index(f"((uint64_t){chosen} < {shape[axis]} ? (int64_t){chosen} : 0)", index[-1].level)
            position = self.linear((*index[:axis], safe, *index[axis + 1 :]), shape)
            return [f"{result.name}[{self.linear(index, indices.type.shape)}] = {table.name}[{position}];"]

        self.loops(indices.type.shape, body)
        self.forms[operation.result] = result

    def visit_tt_cat(self, operation: Operation) -> None:
        result = self.new_buffer(operation.result)
        start = 0
        for operand in operation.operands:
            part = Buffer(f"({result.name} + {start})", result.element, result.depth)
            self.fill(part, operand)
            start += operand.type.count
        self.forms[operation.result] = result

    def visit_tt_histogram(self, operation: Operation) -> None:
        result = self.new_buffer(operation.result)
        bins = operation.result.type.count
        self.lines.append(f"memset({result.name}, 0, {bins * element_bytes(result.element)});")
        source, *mask = operation.operands

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            chosen = self.element(source, index, nest)
            guard = f"{self.element(mask[0], index, nest)} && " if mask else ""
            return [f"if ({guard}(uint64_t){chosen} < {bins}) {result.name}[{chosen}]++;"]

        self.loops(source.type.shape, body, vectorize=False)
        self.forms[operation.result] = result

    # ------------------------------------------------------------------------------------------- debugging

    def visit_tt_assert(self, operation: Operation) -> None:
        message = str(operation.attributes["strings"][0])  # type: ignore[index]
        where = operation.location or self.function.name
        text = f"device assertion failed: {message} ({where})".replace("\\", "\\\\").replace('"', '\\"')
        condition = operation.operands[0]

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            holds = self.element(condition, index, nest)
            return [f'if (!{holds}) {{ program->services->fail(program, "{text}"); return; }}']

        self.loops(condition.type.shape, body, vectorize=False)

    def visit_tt_print(self, operation: Operation) -> None:
        prefix = str(operation.attributes.get("strings", [""])[0])  # type: ignore[index]
        signs = operation.attributes.get("isSigned", [])
        for position, operand in enumerate(operation.operands):
            self._print(operation, prefix, operand, bool(signs[position]))  # type: ignore[index]
        if not operation.operands:
            self.lines.append(f'program->services->print(program, "{prefix}", 0, 0, 1, 0, 0);')

    def _print(self, operation: Operation, prefix: str, value: Value, signed: bool) -> None:
        is_float = value.type.is_float
        kind = 0 if is_float else 1 if signed else 2
        if operation.attributes.get("hex") is True and not is_float:
            kind = 3

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            text = self.element(value, index, nest)
            positions = ", ".join(position.text for position in index) or "0"
            real, integer = (text, "0") if is_float else ("0", f"(int64_t){text}")
            return [
                f"{{ int64_t index[] = {{{positions}}};",
                f'program->services->print(program, "{prefix}", index, {len(index)}, {kind}, {real}, {integer}); }}',
            ]

        self.loops(value.type.shape, body, vectorize=False)

    # ---------------------------------------------------------------------------------------- control flow

    def visit_scf_for(self, operation: Operation) -> None:
        body = operation.regions[0]
        variable, *arguments = body.arguments
        initials = operation.operands[3:]
        carried: list[Value] = []
        product = self.queued_product(operation)
        total = product.operands[2] if product else None
        orders = {each.operands[2]: order_of_total(each) for each in body.operations if each.name == "tt.dot"}
        fresh = False
        for argument, initial, result in zip(arguments, initials, operation.results, strict=False):
            if argument in self.analysis.same_as:
                continue
            if argument in self.analysis.advances:
                kind = "int64_t" if argument.type.is_pointer else compute_type(argument.type.element)
                self.offsets[argument] = self.name("offset")
                self.lines.append(f"{kind} {self.offsets[argument]} = 0;")
                continue
            if argument is total and self.analysis.is_zero(initial):
                fresh = True
                buffer = self.new_buffer(argument, "v", orders[argument])
                self.forms[argument] = replace(buffer, depth=len(self.preheaders) + 1, carried=True)
            else:
                self._start_carried(argument, initial, orders.get(argument, ()))
            form = self.forms[argument]
            self.forms[result] = replace(form, depth=len(self.preheaders)) if isinstance(form, Buffer) else form
            carried.append(argument)
        low, high, step = (self.scalar(operand) for operand in operation.operands[:3])
        kind, counter, name = compute_type(variable.type.element), self.name("k"), self.name("s")
        cast = "(int64_t)"
        if operation.attributes["unsigned"]:
            cast = "(int64_t)(uint32_t)" if variable.type.element == "i32" else "(int64_t)"
        accumulator = self.forms.get(total) if total else None
        queue = self.open_queue(product, accumulator, fresh) if product and isinstance(accumulator, Buffer) else None
        self.preheaders.append([])
        self.lines.append(self.preheaders[-1])
        self.lines += [
            f"for (int64_t {counter} = {cast}{low}; {counter} < {cast}{high}; {counter} += {cast}{step}) {{",
            f"{kind} const {name} = ({kind}){counter}; (void){name};",
        ]
        self.forms[variable] = Scalar(name)
        with self.arena_scope():
            terminator = body.terminator if body.operations and body.terminator.name == "scf.yield" else None
            self.visit_all(body.operations[:-1] if terminator else body.operations)
            if terminator:
                next_values = dict(zip(arguments, terminator.operands, strict=False))
                self._assign_all([(argument, next_values[argument]) for argument in carried])
                for argument in arguments:
                    if argument in self.analysis.advances and argument not in self.analysis.same_as:
                        for increment in self.analysis.advances[argument].increments:
                            self.lines.append(f"{self.offsets[argument]} += {self.expression(increment)};")
                self._commit_scalars()
        self.lines.append("}")
        self.preheaders.pop()
        if queue:
            self.close_queue(queue)

    def _start_carried(self, argument: Value, initial: Value, order: tuple[int, ...]) -> None:
        """Declare the variable or buffer of a loop-carried value, holding its initial value."""
        if not argument.type.is_tensor:
            name = self.name("v")
            self.lines.append(f"{compute_type(argument.type.element)} {name} = {self.scalar(initial)};")
            self.forms[argument] = Scalar(name)
            return
        buffer = self.take_buffer(initial, order)
        if buffer is None:
            buffer = self.new_buffer(argument, "v", order)
            self.fill(buffer, initial)
        self.forms[argument] = replace(buffer, depth=len(self.preheaders) + 1, carried=True)

    def take_buffer(self, value: Value, order: tuple[int, ...] = ()) -> Buffer | None:
        """The buffer in this order of a value that nothing else needs any more, to be overwritten; else None."""
        form = self.forms.get(value)
        if not isinstance(form, Buffer) or form.order != order or len(value.users) != 1:
            return None
        if form.depth != len(self.preheaders):  # it is needed again in the next iteration of a loop around
            return None
        return form

    def _assign_all(self, pairs: list[tuple[Value, Value]]) -> None:
        """Assign simultaneously: every new value is computed from the old ones."""
        self._pending_scalars = []
        waiting: list[Assignment] = []
        for target, value in pairs:
            form = self.forms[target]
            if isinstance(form, Scalar):
                name = self.name("n")
                self.lines.append(f"{compute_type(target.type.element)} const {name} = {self.scalar(value)};")
                self._pending_scalars.append(f"{form.text} = {name};")
                continue
            current = self.forms.get(self.analysis.resolve(value))
            if not (isinstance(current, Buffer) and current.name == form.name):
                waiting.append(Assignment(form, value, self._unchanged_ends(target, value)))
        copies: list[tuple[Assignment, Buffer]] = []
        while waiting:
            ready = next((each for each in waiting if self._may_overwrite(each, waiting)), None)
            if ready is not None:
                waiting.remove(ready)
                self.fill(*ready)
                continue
            assignment = waiting.pop(0)
            temporary = self.new_buffer(assignment.value, "n")
            self.fill(temporary, assignment.value, assignment.ends)
            copies.append((assignment, temporary))
        for assignment, temporary in copies:
            self._copy(assignment, temporary)

    def _copy(self, assignment: Assignment, source: Buffer) -> None:
        target, value, ends = assignment

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            shape = value.type.shape
            return [f"{self.place(target, index, shape)} = {self.place(source, index, shape)};"]

        self.loops(value.type.shape, body, ends=ends)

    def _unchanged_ends(self, argument: Value, value: Value) -> dict[int, End]:
        """By dimension: where the elements start that do not change when a loop-carried tensor becomes ``value``."""
        return self._ends(value, lambda dimension: self.analysis.unchanged_from(argument, value, dimension))

    def _commit_scalars(self) -> None:
        self.lines += self._pending_scalars
        self._pending_scalars = []

    def _may_overwrite(self, assignment: Assignment, waiting: list[Assignment]) -> bool:
        """Whether a buffer may be filled now: no waiting assignment reads it, and its own reads it only in place."""
        buffer, value, _ = assignment
        for _, other, _ in waiting:
            if other is not value and any(name == buffer.name for name, _ in self.buffers_read(other)):
                return False
        return all(elementwise for name, elementwise in self.buffers_read(value) if name == buffer.name)

    def buffers_read(self, value: Value, elementwise: bool = True) -> list[tuple[str, bool]]:
        """Names of the buffers that a tensor is evaluated from, and whether each is read at the same index only."""
        found: list[tuple[str, bool]] = []
        seen: set[tuple[Value, bool]] = set()
        stack = [(value, elementwise)]
        while stack:
            current, same = stack.pop()
            current = self.analysis.resolve(current)
            if (current, same) in seen:
                continue
            seen.add((current, same))
            form = self.forms.get(current)
            if isinstance(form, Buffer):
                found.append((form.name, same))
            elif form is None and current in self.analysis.advances:
                stack.append((self.analysis.advances[current].initial, same))
            elif form is None and current.owner is not None:
                owner = current.owner
                moved = owner.name in (
                    "tt.broadcast",
                    "tt.trans",
                    "tt.reshape",
                    "tt.expand_dims",
                    "tt.join",
                    "tt.split",
                )
                stack += [(operand, same and not moved) for operand in owner.operands if operand.type.is_tensor]
        return found

    def visit_scf_if(self, operation: Operation) -> None:
        for result in operation.results:
            self._declare_variable(result, "f")
        self.lines.append(f"if ({self.scalar(operation.operands[0])}) {{")
        for position, region in enumerate(operation.regions):
            if position:
                self.lines.append("} else {")
            with self.arena_scope():
                self._visit_region(region, operation.results)
        self.lines.append("}")

    def _visit_region(self, region: Block, results: list[Value]) -> None:
        terminator = region.terminator if region.operations and region.terminator.name == "scf.yield" else None
        self.visit_all(region.operations[:-1] if terminator else region.operations)
        if terminator:
            for result, value in zip(results, terminator.operands, strict=False):
                self._assign(result, value)

    def visit_scf_while(self, operation: Operation) -> None:
        before, after = operation.regions
        for argument, initial in zip(before.arguments, operation.operands, strict=False):
            self._declare_variable(argument)
            self._assign(argument, initial)
        for result in operation.results:
            self._declare_variable(result, "w")
        for argument, result in zip(after.arguments, operation.results, strict=False):
            self.forms[argument] = self.forms[result]
        self.preheaders.append([])
        self.lines += [self.preheaders[-1], "for (;;) {"]
        with self.arena_scope():
            self.visit_all(before.operations[:-1])
            condition, *values = before.terminator.operands
            for result, value in zip(operation.results, values, strict=False):
                self._assign(result, value)
            self.lines.append(f"if (!{self.scalar(condition)}) break;")
            terminator = after.terminator if after.operations and after.terminator.name == "scf.yield" else None
            self.visit_all(after.operations[:-1] if terminator else after.operations)
            if terminator:
                self._assign_all(list(zip(before.arguments, terminator.operands, strict=False)))
                self._commit_scalars()
        self.lines.append("}")
        self.preheaders.pop()


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


def _flatten(lines: list) -> Iterator[str]:
    for line in lines:
        if isinstance(line, str):
            yield line
        else:
            yield from _flatten(line)


def generate(function: Function, assume_disjoint: bool = True) -> GeneratedKernel:
    """C for one kernel.

    Args:
        function: the kernel, as :func:`parser.parse` returned it.
        assume_disjoint: whether to assume that memory of different arguments, and at addresses that the kernel loads,
            does not overlap.

    Raises:
        UnsupportedOperation: the kernel contains something that the engine cannot compile.
    """
    analysis = Analysis(function, assume_disjoint, assume_loaded_disjoint=assume_disjoint)
    if not analysis.checks_come_first():
        analysis = Analysis(function, assume_disjoint)
    return KernelWriter(function, analysis).generate()
