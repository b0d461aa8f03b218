"""Facts about a kernel that the code generator needs before it writes any C.

Tensors are not computed as a whole: a tensor operation is a rule for one element, evaluated inside the loops of the
operation that finally needs it (a store, a reduction, a dot product: a *root*). The analysis finds

- the affine structure of offsets: by how much a value changes from one index to the next along a dimension;
- which values are the same in every element (*uniform*), and along which dimensions a value varies;
- which kernel argument a pointer comes from, so that accesses to different memory can be reordered;
- where values are evaluated (``placement``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .elements import HALVES
from .ir import Block, Function, Operation, Value
from .kinds import EFFECTS, READS, ROOTS, VIEWS, WRITES, is_lazy
from .placement import Placement

# A scalar that is known when a loop starts: a number, a scalar value of the kernel, or an operation on two of those.
Expression = int | Value | tuple
# (tensor, dimension) -> bounds at and past which no element is used; None: nothing uses the tensor
_Needed = dict[tuple[Value, int], list[Expression] | None]


@dataclass(frozen=True, eq=False)
class Advance:
    """A loop-carried tensor that changes only by uniform ``increments``, added to ``initial`` in every iteration."""

    initial: Value
    increments: tuple[Expression, ...]


def _can_restart(function: Function) -> bool:
    """Whether a program has no side effect before its stores, and all of those are adjacent and outside loops."""
    return len(function.blocks) == 1 and _stores_at_most_once(function.blocks[0])


def _stores_at_most_once(block: Block) -> bool:
    effects = [each for each in block.operations if any(inner.name in EFFECTS for inner in each.walk())]
    if len(effects) == 1 and effects[0].name == "scf.if":
        return all(_stores_at_most_once(region) for region in effects[0].regions)
    return all(effect.name == "tt.store" for effect in effects)


def add(left: Expression, right: Expression) -> Expression:
    if isinstance(left, int) and isinstance(right, int):
        return left + right
    if left == 0:
        return right
    return left if right == 0 else ("+", left, right)


def multiply(left: Expression, right: Expression) -> Expression:
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    if left == 0 or right == 0:
        return 0
    if left == 1:
        return right
    return left if right == 1 else ("*", left, right)


class Analysis(Placement):
    """Facts about one function.

    Args:
        function: the kernel.
        assume_disjoint: whether to assume that memory of different arguments does not overlap (the launch checks it).
        assume_loaded_disjoint: whether to assume the same of addresses that the kernel loads. The program itself then
            checks the pairs in ``overlap_checks`` before its first side effect. Where they overlap, it restarts without
            either assumption.
    """

    def __init__(self, function: Function, assume_disjoint: bool = True, assume_loaded_disjoint: bool = False):
        self.function = function
        self.assume_disjoint = assume_disjoint
        self.assume_loaded_disjoint = assume_loaded_disjoint and _can_restart(function)
        self.used_disjointness = False
        # By the block that relies on them: pairs of pointers (a dict serves as an ordered set).
        self.overlap_checks: dict[Block | None, dict[tuple[Value, Value], None]] = {}
        self.advances: dict[Value, Advance] = {}
        self.same_as: dict[Value, Value] = {}
        self.store_group: dict[Operation, tuple[Operation, ...]] = {}
        self.materialized: set[Value] = set()
        self._carried_initial: dict[Value, tuple[Value, Value]] = {}
        self._costs: dict[Value, int] = {}
        self._bases: dict[Value, Value | None] = {}
        self._exact: dict[tuple[Value, str], bool] = {}
        self._constant_in_runs: dict[tuple[Value, int, int], bool] = {}
        self._loops = [operation for operation in function.walk() if operation.name == "scf.for"]
        self.joint_yields = {loop.regions[0].terminator for loop in self._loops if _loads_halves(loop.regions[0])}
        for loop in self._loops:
            self._find_advances(loop)
        for block in self._blocks(function.blocks):
            self._find_store_groups(block)
        self._place_values()

    def _blocks(self, blocks: list[Block]) -> list[Block]:
        found = []
        for block in blocks:
            found.append(block)
            for operation in block.operations:
                found += self._blocks(operation.regions)
        return found

    # ----------------------------------------------------------------------------------- loop-carried values

    def _find_advances(self, loop: Operation) -> None:
        body = loop.regions[0]
        if not body.operations or body.terminator.name != "scf.yield":
            return
        carried = zip(body.arguments[1:], loop.operands[3:], body.terminator.operands, loop.results, strict=False)
        for argument, initial, next_value, result in carried:
            self._carried_initial[argument] = (initial, next_value)
            self.same_as[result] = argument
            if next_value is argument:
                self.same_as[argument] = initial
            elif argument.type.is_tensor and (argument.type.is_pointer or argument.type.is_integer):
                increments = self._increments(next_value, argument)
                if increments:
                    self.advances[argument] = Advance(initial, increments)
        for result, argument in zip(loop.results, body.arguments[1:], strict=False):
            if argument not in self.advances and argument not in self.same_as:
                del self.same_as[result]

    def _increments(self, value: Value, argument: Value) -> tuple[Expression, ...] | None:
        """The uniform steps between a loop-carried tensor and its next value; None if it changes otherwise."""
        increments: list[Expression] = []
        while value is not argument:
            operation = value.owner
            if operation is None or operation.name not in ("tt.addptr", "arith.addi"):
                return None
            step = self.uniform(operation.operands[1])
            if step is None:
                return None
            increments.append(step)
            value = operation.operands[0]
        return tuple(increments)

    def resolve(self, value: Value) -> Value:
        """The value behind loop results and loop-invariant block arguments."""
        while value in self.same_as:
            value = self.same_as[value]
        return value

    # ------------------------------------------------------------------------------------- affine structure

    def uniform(self, value: Value) -> Expression | None:
        """The scalar that every element equals, or None."""
        value = self.resolve(value)
        operation = value.owner
        if not value.type.is_tensor:
            number = integer_constant(operation)
            return value if number is None else number
        if operation is None:
            return None
        if operation.name == "tt.splat":
            return self.uniform(operation.operands[0])
        if operation.name == "arith.constant":
            return integer_constant(operation)
        if operation.name in ("tt.broadcast", "tt.expand_dims", "tt.reshape", "arith.extsi"):
            return self.uniform(operation.operands[0])
        if operation.name in ("arith.muli", "arith.addi"):
            left, right = (self.uniform(operand) for operand in operation.operands)
            if left is not None and right is not None:
                return add(left, right) if operation.name == "arith.addi" else multiply(left, right)
        return None

    def step(
        self, value: Value, dimension: int, wraps: list[tuple[Expression, int]] | None = None, run: int = 0
    ) -> Expression | None:
        """How much an integer or pointer tensor grows from one index to the next; None if that is not constant.

        Assumes that offsets do not overflow 2^31 within one tile. (Values that are compared or stored do wrap.)

        Args:
            value: the tensor.
            dimension: the dimension to step along.
            wraps: if given, ``(start + arange) % bound`` counts as ``arange``, and (expression, least) is added for
                what must hold: the step is right if every expression is at least that number.
            run: if given, the step need only hold within each run of this many indices: there ``arange // run`` is
                constant, and ``arange % run`` counts as ``arange``.
        """
        value = self.resolve(value)
        shape = value.type.shape
        if not shape or shape[dimension] == 1:
            return 0
        if value in self.advances:
            return self.step(self.advances[value].initial, dimension, wraps, run)
        operation = value.owner
        if operation is None:
            return None
        operands = operation.operands
        match operation.name:
            case "tt.splat" | "arith.constant":
                return 0
            case "tt.make_range":
                return 1
            case "tt.expand_dims":
                axis = operation.integer("axis")
                return self.step(operands[0], dimension if dimension < axis else dimension - 1, wraps, run)
            case "tt.broadcast" | "arith.extsi" | "arith.extui" | "tt.bitcast":
                return self.step(operands[0], dimension, wraps, run)
            case "tt.trans":
                order: list[int] = operation.attributes["order"]  # type: ignore[assignment]
                return self.step(operands[0], order[dimension], wraps, run)
            case "arith.divsi" | "arith.remsi" if run and self.is_constant_in_runs(value, dimension, run):
                return 0
            case "arith.remsi" if run and self._is_range_over(operation, run):
                return 1
            case "arith.remsi" if wraps is not None:
                start, bound = self._start_of_range(operands[0]), self.uniform(operands[1])
                if start is None or bound is None or self.step(operands[0], dimension) != 1:
                    return None
                bound = self._spelled_out(bound)
                wraps.append((bound, shape[dimension]))  # first: a remainder by zero must not be computed
                if start != 0:
                    wraps += [(start, 0), (("-", bound, ("%", start, bound)), shape[dimension])]
                return 1
            case "arith.addi" | "tt.addptr" | "arith.subi":
                left, right = (self.step(operand, dimension, wraps, run) for operand in operands)
                if left is None or right is None:
                    return None
                return add(left, multiply(right, -1) if operation.name == "arith.subi" else right)
            case "arith.muli":
                left, right = (self.step(operand, dimension, wraps, run) for operand in operands)
                if left is None or right is None:
                    return None
                if left == 0 and right == 0:
                    return 0
                factor = self.uniform(operands[1] if right == 0 else operands[0])
                return None if factor is None else multiply(left if right == 0 else right, factor)
        return None

    def is_constant_in_runs(self, value: Value, dimension: int, run: int) -> bool:
        """Whether a tensor is constant within each run of ``run`` indices, which have equal ``arange // run``."""
        key = (self.resolve(value), dimension, run)
        if key not in self._constant_in_runs:
            self._constant_in_runs[key] = self._is_constant_in_runs(*key)
        return self._constant_in_runs[key]

    def _is_constant_in_runs(self, value: Value, dimension: int, run: int) -> bool:
        operation = value.owner
        if not value.type.shape or value.type.shape[dimension] == 1:
            return True
        if operation is None:
            return False
        if operation.name in ("tt.splat", "arith.constant"):
            return self.uniform(value) is not None
        if operation.name == "tt.expand_dims":
            return self.is_constant_in_runs(
                operation.operands[0], dimension - (dimension > operation.integer("axis")), run
            )
        if operation.name == "arith.divsi" and self._is_range_over(operation, run):
            return True
        if not operation.name.startswith("arith.") and operation.name not in ("tt.broadcast", "tt.addptr"):
            return False
        return all(self.is_constant_in_runs(operand, dimension, run) for operand in operation.operands)

    def _is_range_over(self, division: Operation, run: int) -> bool:
        """Whether an operation divides ``arange`` by ``run`` or a multiple of it."""
        source, divisor = division.operands[0].owner, self.uniform(division.operands[1])
        if source is None or source.name != "tt.make_range" or source.integer("start", 0) % run:
            return False
        return isinstance(divisor, int) and divisor > 0 and divisor % run == 0

    def is_exact(self, value: Value, element: str) -> bool:
        """Whether a smaller float type represents every element exactly: its own numbers, or a choice among them."""
        key = (self.resolve(value), element)
        if key not in self._exact:
            self._exact[key] = self._is_exact(*key)
        return self._exact[key]

    def _is_exact(self, value: Value, element: str) -> bool:
        operation = value.owner
        if value.type.element == element:
            return True
        if operation is None:
            return False
        match operation.name:
            case "arith.constant":
                return str(operation.attributes["value"]) in ("0.000000e+00", "0xFF800000", "0x7F800000")
            case "arith.select":
                chosen = operation.operands[1:]
            case "arith.addf":  # exact if one operand is zero
                chosen = operation.operands if any(map(self.is_zero, operation.operands)) else []
            case "arith.extf" | "arith.negf" | "arith.maximumf" | "arith.minimumf" | "arith.maxnumf" | "arith.minnumf":
                chosen = operation.operands
            case "tt.splat" | "tt.broadcast" | "tt.expand_dims" | "tt.reshape" | "tt.trans":
                chosen = operation.operands
            case _:
                return False
        return bool(chosen) and all(self.is_exact(each, element) for each in chosen)

    def is_zero(self, value: Value) -> bool:
        """Whether every element is the constant 0."""
        operation = self.resolve(value).owner
        while operation is not None and operation.name in ("tt.splat", "tt.broadcast"):
            operation = operation.operands[0].owner
        if operation is None or operation.name != "arith.constant":
            return False
        return str(operation.attributes["value"]) in ("0", "0.000000e+00")

    def unit_dimension(self, pointer: Value) -> int:
        """The dimension along which a pointer tensor has unit stride; else the last one."""
        shape = pointer.type.shape
        for dimension in reversed(range(len(shape))):
            if shape[dimension] > 1 and self.step(pointer, dimension) == 1:
                return dimension
        return len(shape) - 1

    def varying(self, value: Value) -> set[int]:
        """The dimensions along which a tensor may vary."""
        value = self.resolve(value)
        shape = value.type.shape
        everything = {dimension for dimension, size in enumerate(shape) if size > 1}
        operation = value.owner
        if operation is None or value in self.materialized or operation.name in ROOTS:
            return everything
        operands = operation.operands
        if operation.name in ("tt.splat", "arith.constant"):
            return set()
        if operation.name == "tt.broadcast":
            return self.varying(operands[0])
        if operation.name == "tt.expand_dims":
            axis = operation.integer("axis")
            return {dimension + (dimension >= axis) for dimension in self.varying(operands[0])}
        if operation.name in VIEWS or operation.name == "tt.load":
            return everything
        return set().union(*(self.varying(operand) for operand in operands if operand.type.is_tensor))

    # ------------------------------------------------------------------------------------------ needed elements

    def needed_below(self, value: Value, dimension: int) -> list[Expression]:
        """Bounds b such that no element at or past b along a dimension is ever used: the value reaches, through
        elementwise operations and products, only stores masked by ``arange < b`` and selects on that condition."""
        bounds = self._needed_below(value, dimension, {})
        return [] if bounds is None else bounds

    def _needed_below(self, value: Value, dimension: int, seen: _Needed) -> list[Expression] | None:
        """As :meth:`needed_below`; None if nothing uses the value, so that nothing limits it."""
        if (value, dimension) in seen:
            return seen[value, dimension]
        seen[value, dimension] = None  # the answer while a cycle through a loop is followed
        common: list[Expression] | None = None
        for user in value.users:
            bounds = self._needed_by(value, user, dimension, seen)
            if bounds is not None:
                common = bounds if common is None else [bound for bound in common if bound in bounds]
        seen[value, dimension] = common
        return common

    def _needed_by(self, value: Value, user: Operation, dimension: int, seen: _Needed) -> list[Expression] | None:
        if user.name == "tt.store":
            mask_bounds = self.prefix_bounds(user.operands[2], dimension) if len(user.operands) > 2 else []
            return (
                mask_bounds if user.operands[1] is value and value not in (user.operands[0], *user.operands[2:]) else []
            )
        if user.name == "scf.yield":
            loop = next((op for op in self._loops if op.regions[0].terminator is user), None)
            if loop is None or user.operands.count(value) != 1:
                return []
            position = user.operands.index(value)
            unchanged = self.unchanged_from(loop.regions[0].arguments[1 + position], value, dimension)
            if unchanged:
                return unchanged
            after = self._needed_below(loop.results[position], dimension, seen)
            inside = self._needed_below(loop.regions[0].arguments[1 + position], dimension, seen)
            if inside is not None:  # only bounds that hold in every iteration limit the next one
                inside = [bound for bound in inside if self._is_before(bound, loop)]
            if after is None or inside is None:
                return inside if after is None else after
            return [bound for bound in after if bound in inside]
        if user.name == "tt.trans":
            order: list[int] = user.attributes["order"]  # type: ignore[assignment]
            return self._needed_below(user.result, order.index(dimension), seen)
        if user.name == "arith.select" and user.operands[1] is value and user.operands.count(value) == 1:
            return [
                *self.prefix_bounds(user.operands[0], dimension),
                *(self._needed_below(user.result, dimension, seen) or []),
            ]
        if user.name == "tt.dot" and dimension == 0 and user.operands[0] is value and user.operands.count(value) == 1:
            return self._needed_below(user.result, dimension, seen)
        accumulates = user.name == "tt.dot" and user.operands[2] is value and user.operands.count(value) == 1
        elementwise = is_lazy(user) and user.name not in VIEWS and user.name != "tt.load"
        if (accumulates or elementwise) and user.result.type.shape == value.type.shape:
            return self._needed_below(user.result, dimension, seen)
        return []

    def _is_before(self, expression: Expression, loop: Operation) -> bool:
        """Whether an expression is computed before a loop."""
        if isinstance(expression, tuple):
            return all(self._is_before(operand, loop) for operand in expression[1:])
        if isinstance(expression, int) or expression in self.function.parameters:
            return True
        return expression.owner is not None and self._order(expression.owner) < self._order(loop)

    def unchanged_from(self, argument: Value, value: Value, dimension: int) -> list[Expression]:
        """Bounds past which a loop-carried tensor does not change: its next value is a select on ``arange < b``, or a
        sum that started at 0 and to which only zeros are added there."""
        owner = self.resolve(value).owner
        if owner is None:
            return []
        if owner.name == "arith.select" and owner.operands[2] is argument:
            return self.prefix_bounds(owner.operands[0], dimension)
        if owner.name == "arith.addf" and owner.operands.count(argument) == 1:
            initial, _ = self._carried_initial.get(argument, (argument, argument))
            added = owner.operands[1 - owner.operands.index(argument)]
            return self._zero_from(added, dimension) if self.is_zero(initial) else []
        return []

    def _zero_from(self, value: Value, dimension: int) -> list[Expression]:
        """Bounds past which a tensor is 0, as what a mask switched off is."""
        owner = self.resolve(value).owner
        if owner is None:
            return []
        match owner.name:
            case "tt.load" if len(owner.operands) > 1 and all(map(self.is_zero, owner.operands[2:])):
                return self.prefix_bounds(owner.operands[1], dimension)
            case "arith.select" if self.is_zero(owner.operands[2]):
                return self.prefix_bounds(owner.operands[0], dimension)
            case "arith.extf" | "arith.truncf" | "tt.fp_to_fp":
                return self._zero_from(owner.operands[0], dimension)
            case "arith.mulf" | "arith.addf":
                left, right = (self._zero_from(operand, dimension) for operand in owner.operands)
                return [bound for bound in left if bound in right]
        return []

    def prefix_bounds(self, mask: Value, dimension: int) -> list[Expression]:
        """The bounds b of all terms ``arange(0, n) < b`` along a dimension in the conjunction that forms a mask.

        ``start + arange < n`` is such a term too if its numbers are counted (see :meth:`is_counted`).
        """
        owner = self.resolve(mask).owner
        if owner is None:
            return []
        if owner.name == "arith.andi":
            return [bound for operand in owner.operands for bound in self.prefix_bounds(operand, dimension)]
        if owner.name == "tt.broadcast":
            source = owner.operands[0]
            return self.prefix_bounds(source, dimension) if source.type.shape[dimension] > 1 else []
        if owner.name == "tt.expand_dims":
            axis = owner.integer("axis")
            if dimension == axis:
                return []
            return self.prefix_bounds(owner.operands[0], dimension - (dimension > axis))
        if owner.name == "arith.cmpi" and owner.head.startswith("slt,"):
            moving, bound = owner.operands[0], self.uniform(owner.operands[1])
            start = self._start_of_range(moving)
            if bound is not None and start is not None and self.step(moving, dimension) == 1:
                return [self._spelled_out(bound) if start == 0 else ("-", self._spelled_out(bound), start)]
        return []

    def _start_of_range(self, value: Value) -> Expression | None:
        """The first number of a tensor that is ``arange``, or ``arange`` and a counted number; None for others."""
        owner = self.resolve(value).owner
        if owner is None:
            return None
        if owner.name in ("tt.expand_dims", "tt.broadcast"):
            return self._start_of_range(owner.operands[0])
        if owner.name == "tt.make_range":
            return owner.integer("start", 0)
        if owner.name == "arith.addi":
            for number, moving in (owner.operands, owner.operands[::-1]):
                added, start = self.uniform(number), self._start_of_range(moving)
                if added is not None and start is not None and self.is_counted(number):
                    return add(self._spelled_out(added), start)
        return None

    def _spelled_out(self, bound: Expression) -> Expression:
        """A sum or difference as an expression of its operands, which may be known where it is not computed yet."""
        owner = bound.owner if isinstance(bound, Value) else None
        symbol = {"arith.addi": "+", "arith.subi": "-"}.get(owner.name) if owner is not None else None
        if owner is None or symbol is None:
            return bound
        return (symbol, *(self._spelled_out(self.uniform(operand) or 0) for operand in owner.operands))

    # ------------------------------------------------------------------------------------------------ memory

    def base(self, pointer: Value) -> Value | None:
        """The kernel argument that a pointer was derived from, or None if unknown."""
        if pointer not in self._bases:
            self._bases[pointer] = None  # the answer while a cycle through a loop is followed
            self._bases[pointer] = self._find_base(pointer)
        return self._bases[pointer]

    def _find_base(self, pointer: Value) -> Value | None:
        if pointer in self._carried_initial:
            initial, next_value = self._carried_initial[pointer]
            base = self._bases[pointer] = self.base(initial)
            return base if self.base(next_value) is base else None
        resolved = self.resolve(pointer)
        if resolved is not pointer:
            return self.base(resolved)
        operation = pointer.owner
        if operation is None:
            return pointer if pointer in self.function.parameters else None
        through = {"tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.trans", "tt.reshape", "tt.bitcast"}
        if operation.name in through:
            return self.base(operation.operands[0])
        if operation.name == "arith.select":
            left, right = self.base(operation.operands[1]), self.base(operation.operands[2])
            return left if left is right else None
        if operation.name == "scf.for":
            return self.base(operation.regions[0].arguments[1 + operation.results.index(pointer)])
        if operation.name == "tt.int_to_ptr" and self.assume_loaded_disjoint and not pointer.type.is_tensor:
            return pointer
        return None

    def disjoint(self, left: Value, right: Value, block: Block | None) -> bool:
        """Whether two pointers address different memory: of two arguments, which the launch checks, or from loaded
        addresses, which the program checks before the stores of ``block``."""
        if not self.assume_disjoint:
            self.used_disjointness = True
            return False
        bases = self.base(left), self.base(right)
        if None in bases or bases[0] is bases[1]:
            return False
        if all(base in self.function.parameters for base in bases):
            self.used_disjointness = True
            return True
        if self.extent(left) is None or self.extent(right) is None:
            return False
        if (right, left) not in self.overlap_checks.setdefault(block, {}):
            self.overlap_checks[block][left, right] = None
        return True

    def extent(self, pointer: Value) -> int | None:
        """Elements from the first one that a pointer tensor addresses to the last; None if the first is not lowest."""
        extent = 1
        for dimension, size in enumerate(pointer.type.shape):
            step = self.step(pointer, dimension)
            if not isinstance(step, int) or step < 0:
                return None
            extent += step * (size - 1)
        return extent

    def checks_come_first(self) -> bool:
        """Whether every overlap check precedes every side effect: each checking block has all its stores in one loop.

        (``_can_restart`` ensures that nothing before those stores has a side effect.)
        """
        stores = [
            [each for each in block.operations if each.name == "tt.store"] for block in self.overlap_checks if block
        ]
        return all(self.store_group.get(each[0]) == tuple(each) for each in stores)

    def written_parameters(self) -> list[int]:
        """Positions of the pointer arguments that a kernel may write to; all of them if a target is unknown."""
        written = set()
        for operation in self.function.walk():
            if operation.name in WRITES:
                base = self.base(operation.operands[0])
                if base not in self.function.parameters:
                    return [i for i, parameter in enumerate(self.function.parameters) if parameter.type.is_pointer]
                written.add(self.function.parameters.index(base))
        return sorted(written)

    def is_counted(self, value: Value) -> bool:
        """Whether a value is computed from arguments, program ids, counters of loops and constants alone."""
        counters = {loop.regions[0].arguments[0] for loop in self._loops}
        seen: set[Value] = set()
        stack = [value]
        while stack:
            current = self.resolve(stack.pop())
            if current in seen or current in counters or current in self.function.parameters:
                continue
            seen.add(current)
            owner = current.owner
            if current in self._carried_initial:
                stack += self._carried_initial[current]
            elif owner is None or owner.regions or owner.name in READS:
                return False
            else:
                stack += owner.operands
        return True

    def has_data_dependent_addresses(self) -> bool:
        """Whether the addresses that a kernel loads from or stores to depend on loaded values."""
        memory = WRITES | READS
        known: dict[Value, bool] = {}
        return any(
            self._depends_on_memory(operation.operands[0], known)
            for operation in self.function.walk()
            if operation.name in memory
        )

    def _depends_on_memory(self, value: Value, known: dict[Value, bool]) -> bool:
        if value not in known:
            known[value] = False  # the answer while a cycle through a loop is followed
            operation = value.owner
            if value in self._carried_initial:
                sources = list(self._carried_initial[value])
            elif operation is None:
                known[value] = value not in self.function.parameters and not value.type.is_integer
                return known[value]
            else:
                sources = list(operation.operands)
                for region in operation.regions:
                    sources += region.terminator.operands if region.operations else []
            loads = operation is not None and operation.name in READS
            known[value] = loads or any(self._depends_on_memory(source, known) for source in sources)
        return known[value]


def integer_constant(operation: Operation | None) -> int | None:
    """The number an ``arith.constant`` holds, or None."""
    if operation is None or operation.name != "arith.constant":
        return None
    text = str(operation.attributes["value"])
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.match(r"-?\d+$", text) and operation.result.type.is_integer else None


def _loads_halves(block: Block) -> bool:
    """Whether 16-bit floats are loaded in a block, which are worth converting once for all that use them."""
    return any(each.name == "tt.load" and each.result.type.element in HALVES for each in block.operations)
