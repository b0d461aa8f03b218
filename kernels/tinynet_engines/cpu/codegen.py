"""The engine's IR to C: the body of one C function that runs one program of the kernel.

Tensor operations are evaluated element by element inside the loops of the root that needs them (see ``analysis``).
A :class:`Nest` collects the statements of one loop nest by the level they belong to, so that statements independent of
the inner loops are placed outside them; the C compiler vectorizes the innermost loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .analysis import Analysis, Expression
from .atomic_codegen import AtomicWriter
from .control_codegen import ControlWriter
from .dot_codegen import DotWriter, Leaf
from .element_codegen import ElementWriter
from .elements import compute_type, element_bytes, literal, rounded, storage_type, to_memory
from .forms import ZERO, Buffer, End, Index, Nest, Scalar, valid_count
from .halves import HalvesWriter
from .ir import Function, Operation, UnsupportedOperation, Value
from .kinds import is_lazy
from .loop_codegen import LoopWriter
from .operations import element_expression
from .reduction_codegen import ReductionWriter
from .stored_product import StoredProduct, StoredProductWriter


@dataclass(frozen=True)
class GeneratedKernel:
    """C text of a kernel and the facts that a launch needs."""

    body: str
    arena_bytes: int
    used_disjointness: bool
    starts_again: bool
    written: list[int]
    data_dependent: bool


# Bytes of a tile that is a local array instead of memory in the arena: it may live in registers. At least a whole
# vector: gcc 12 miscompiles a masked loop over four elements that it has moved there.
_LOCAL_BYTES = range(64, 1024 + 1)


class KernelWriter(
    AtomicWriter,
    ControlWriter,
    DotWriter,
    ElementWriter,
    HalvesWriter,
    LoopWriter,
    ReductionWriter,
    StoredProductWriter,
):
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
        self.stored_products: dict[Operation, StoredProduct] = {}
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

    # ---------------------------------------------------------------------------------- tensors into memory

    def fill(self, buffer: Buffer, value: Value, ends: dict[int, End] | None = None, inner: int | None = None) -> None:
        """Evaluate a tensor into a buffer, up to ``ends`` as in :meth:`loops`."""

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            return [self.filled(buffer, value, index, nest)]

        self.loops(value.type.shape, body, inner, ends=ends)

    def filled(self, buffer: Buffer, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        """C statement that assigns an element of a value to that of a buffer."""
        place = self.place(buffer, index, value.type.shape)
        if nest.halves is not None and self.buffer_lies_in_block(buffer, index, nest):
            return self.assignment_in_block(buffer.element, place, value, index, nest.halves, nest)
        return self.assignment(buffer.element, place, value, index, nest)

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
        if self._halves(value):
            self._fill_joined(buffer, value)
        else:
            self.fill(buffer, value, self.needed_ends(value), inner)
        self.forms[value] = buffer
        return buffer

    def _fill_joined(self, buffer: Buffer, value: Value) -> None:
        """Evaluate a join, or joins of joins, into a buffer: one loop computes all parts of an element."""
        parts: list[tuple[Value, tuple[Index, ...]]] = [(value, ())]
        while all(self._halves(part) for part, _ in parts):
            parts = [
                (half, (Index(str(place)), *last))
                for part, last in parts
                for place, half in enumerate(self._halves(part))
            ]

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            texts = [to_memory(buffer.element, self.element(part, index, nest)) for part, _ in parts]
            places = [self.place(buffer, (*index, *last), value.type.shape) for _, last in parts]
            return [f"{place} = {text};" for place, text in zip(places, texts, strict=True)]

        self.loops(parts[0][0].type.shape, body)

    def _halves(self, value: Value) -> list[Value]:
        """The operands of a join that is not in memory; of anything else, none."""
        owner = value.owner
        if value in self.forms or owner is None or owner.name != "tt.join":
            return []
        return [self.analysis.resolve(operand) for operand in owner.operands]

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
        if operation in self.stored_products and self.store_product(operation):
            return
        bounds = self._common_bounds([store.operands[2] if len(store.operands) > 2 else None for store in group])

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            for leaf, _ in bounds.values():  # conditions that the loops' ends ensure are not checked again
                position = [ZERO if dimension is None else index[dimension] for dimension in leaf.dimensions]
                nest.known[(leaf.condition, *(each.text for each in position))] = "1"
            statements = []
            for store in group:
                pointer, value, *mask = store.operands
                condition = self.element(mask[0], index, nest) if mask else "1"
                element, place = pointer.type.pointee, f"*{self.element(pointer, index, nest)}"
                if nest.halves is not None and self.points_in_block(pointer, condition, index, nest):
                    statement = self.assignment_in_block(element, place, value, index, nest.halves, nest)
                else:
                    guard = f"if ({condition}) " if condition != "1" else ""
                    statement = guard + self.assignment(element, place, value, index, nest)
                statements.append(statement)
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
            spans = [
                f"{self.evaluate(pointer)}, {self._extent(pointer)} * {element_bytes(pointer.type.pointee)}"
                for pointer in pair
            ]
            self.lines.append(f"if (overlap({', '.join(spans)})) {{ careful(program); return; }}")

    def _extent(self, pointer: Value) -> str:
        """C text of how many elements a pointer tensor spans.

        Without those past the end of a row: what lies behind a tensor differs from run to run, and the two variants
        may round differently.
        """
        extent = self.analysis.extent(pointer) or 0
        masks = {
            user.operands[position] if len(user.operands) > position else None
            for user in pointer.users
            if (position := {"tt.load": 1, "tt.store": 2}.get(user.name)) is not None
        }
        mask = masks.pop() if len(masks) == 1 else None
        if mask is None or pointer.type.shape != (extent,):
            return str(extent)
        bounds = [self.expression(each) for each in self.analysis.prefix_bounds(mask, 0) if self.is_known(each)]
        return valid_count(bounds, extent)

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
