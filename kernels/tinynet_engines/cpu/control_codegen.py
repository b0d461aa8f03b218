"""Code generation for control flow: jumps, branches, loops, and the values that they carry."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from .analysis import Analysis
from .elements import compute_type
from .forms import Buffer, End, Index, Nest, Scalar
from .group_codegen import order_of_total
from .ir import Block, Function, Operation, Value


class Assignment(NamedTuple):
    """The next value of a loop-carried tensor; elements past `ends` (by dimension, as in `loops`) do not change."""

    target: Buffer
    value: Value
    ends: dict[int, End]


class ControlWriter:
    """The part of the kernel writer that writes control flow."""

    function: Function
    analysis: Analysis
    forms: dict[Value, Scalar | Buffer]
    offsets: dict[Value, str]
    lines: list
    preheaders: list[list]
    _pending_scalars: list[str]

    # What the kernel writer provides:
    name: ...
    scalar: ...
    expression: ...
    place: ...
    loops: ...
    fill: ...
    filled: ...
    new_buffer: ...
    arena_scope: ...
    visit_all: ...
    queued_product: ...
    open_queue: ...
    close_queue: ...
    defer_to_store: ...
    _assign: ...
    _declare_variable: ...
    _ends: ...

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
                pairs = [(argument, next_values[argument]) for argument in carried]
                self._assign_all(pairs, together=terminator in self.analysis.joint_yields)
                for argument in arguments:
                    if argument in self.analysis.advances and argument not in self.analysis.same_as:
                        for increment in self.analysis.advances[argument].increments:
                            self.lines.append(f"{self.offsets[argument]} += {self.expression(increment)};")
                self._commit_scalars()
        self.lines.append("}")
        self.preheaders.pop()
        if product and queue and not self.defer_to_store(operation, product, queue):
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

    def _assign_all(self, pairs: list[tuple[Value, Value]], together: bool = False) -> None:
        """Assign simultaneously: every new value is computed from the old ones. `together`: those alike in one loop."""
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
        for group in _alike(waiting) if together else ():
            if len(group) > 1 and self._may_overwrite_together(group, waiting):
                waiting = [each for each in waiting if each not in group]
                self._fill_together(group)
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

    def _fill_together(self, group: list[Assignment]) -> None:
        """Assign tensors of one shape in one loop, which computes once what several of them need."""
        shape = group[0].value.type.shape

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            return [self.filled(target, value, index, nest) for target, value, _ in group]

        self.loops(shape, body, ends=group[0].ends)

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

    def _may_overwrite_together(self, group: list[Assignment], waiting: list[Assignment]) -> bool:
        """Whether one loop may fill several buffers: nothing else reads them, and they themselves only in place."""
        names = {target.name for target, _, _ in group}
        outside = [each.value for each in waiting if each not in group]
        if any(name in names for value in outside for name, _ in self.buffers_read(value)):
            return False
        return all(same for _, value, _ in group for name, same in self.buffers_read(value) if name in names)

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


def _alike(assignments: list[Assignment]) -> list[list[Assignment]]:
    """Assignments grouped by shape, order in memory and ends: those of one group can share a loop."""
    groups: dict[tuple, list[Assignment]] = {}
    for each in assignments:
        key = (each.value.type.shape, each.target.order, tuple(sorted(each.ends.items())))
        groups.setdefault(key, []).append(each)
    return list(groups.values())
