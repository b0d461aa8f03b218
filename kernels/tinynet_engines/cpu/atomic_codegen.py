"""Code generation for atomic operations.

Programs run on a few threads, each to its end: a program may wait for an earlier one, but not for a later one.
"""

from __future__ import annotations

from collections.abc import Callable

from .elements import compute_type, element_bytes, from_memory, rounded, to_memory
from .forms import Buffer, Index, Nest, Scalar
from .ir import Operation, UnsupportedOperation, Value

_PATIENCE = 60 * 10**9  # nanoseconds after which a wait without a limit of its own fails: it would never end


class AtomicWriter:
    """The part of the kernel writer that compiles atomic operations."""

    forms: dict[Value, Scalar | Buffer]
    lines: list

    # What the kernel writer provides:
    name: ...
    scalar: ...
    element: ...
    linear: ...
    loops: ...
    _declare_variable: ...

    def visit_tt_atomic_rmw(self, operation: Operation) -> None:
        kind = operation.head.split(",")[0].split()[0]
        pointer, value, *mask = operation.operands
        self._atomic(operation, pointer, mask, lambda old, index, nest: _atomic_update(
            operation, kind, old, self.element(value, index, nest)
        ))  # fmt: skip

    def visit_tt_atomic_cas(self, operation: Operation) -> None:
        pointer, compare, value = operation.operands
        element = pointer.type.pointee
        bits = _bits_type(element)

        def update(old: str, index: tuple[Index, ...], nest: Nest) -> str:
            expected = _bits(element, bits, self.element(compare, index, nest))
            return f"({_bits(element, bits, old)} == {expected} ? {self.element(value, index, nest)} : {old})"

        self._atomic(operation, pointer, [], update)

    def _atomic(
        self,
        operation: Operation,
        pointer: Value,
        mask: list[Value],
        update: Callable[[str, tuple[Index, ...], Nest], str],
    ) -> None:
        """A compare-and-swap loop, which serves every kind of update and every type."""
        element, result = pointer.type.pointee, operation.result
        bits = _bits_type(element)
        kind = compute_type(element)
        wanted = bool(result.users)
        target: Scalar | Buffer | None = None
        if wanted:
            self._declare_variable(result, "old")
            target = self.forms[result]

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            address, old, new, seen = self.element(pointer, index, nest), self.name("a"), self.name("a"), self.name("a")
            text = update(old, index, nest)
            guard = self.element(mask[0], index, nest) if mask else "1"
            lines = [
                f"if ({guard}) {{ {bits} *where = (void *){address};",
                f"{bits} {seen} = __atomic_load_n(where, __ATOMIC_SEQ_CST), {new}; {kind} {old};",
                f"do {{ {old} = {_from_bits(element, kind, seen)}; {new} = {_bits(element, bits, text)}; }}",
                f"while (!__atomic_compare_exchange_n(where, &{seen}, {new}, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));",
            ]
            if isinstance(target, Buffer):
                position = self.linear(index, result.type.shape)
                lines.append(f"{target.name}[{position}] = {to_memory(element, old)};")
            elif target is not None:
                lines.append(f"{target.text} = {old};")
            lines.append("}" if target is None or not isinstance(target, Buffer) else (
                f"}} else {target.name}[{self.linear(index, result.type.shape)}] = 0;"
            ))  # fmt: skip
            return lines

        self.loops(pointer.type.shape, body, vectorize=False)

    def visit_tt_atomic_load(self, operation: Operation) -> None:
        pointer, *mask = operation.operands
        bits = _bits_type(pointer.type.pointee)
        self._declare_variable(operation.result, "old")

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            address = f"(const {bits} *){self.element(pointer, index, nest)}"
            guard = self.element(mask[0], index, nest) if mask else "1"
            read = f"({guard} ? __atomic_load_n({address}, __ATOMIC_SEQ_CST) : 0)"
            return [self._result(operation, index, read)]

        self.loops(pointer.type.shape, body, vectorize=False)

    def visit_tt_atomic_store(self, operation: Operation) -> None:
        pointer, value, *mask = operation.operands
        element = pointer.type.pointee
        bits = _bits_type(element)

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            text = _bits(element, bits, self.element(value, index, nest))
            guard = f"if ({self.element(mask[0], index, nest)}) " if mask else ""
            address = f"({bits} *){self.element(pointer, index, nest)}"
            return [f"{guard}__atomic_store_n({address}, {text}, __ATOMIC_SEQ_CST);"]

        self.loops(pointer.type.shape, body, vectorize=False)

    def visit_tt_atomic_poll(self, operation: Operation) -> None:
        """Wait until memory holds what is expected, or the time is up."""
        pointer, expected, *timeout = operation.operands
        bits = _bits_type(pointer.type.pointee)
        deadline = self.name("deadline")
        limit = self.scalar(timeout[0]) if timeout else str(_PATIENCE)
        self.lines.append(f"int64_t const {deadline} = later({limit});")
        self._declare_variable(operation.result, "seen")

        def body(index: tuple[Index, ...], nest: Nest) -> list[str]:
            address, found = self.element(pointer, index, nest), self.name("found")
            text = _bits(pointer.type.pointee, bits, self.element(expected, index, nest))
            lines = [
                f"const {bits} *where_{found} = (const void *){address}; _Bool {found};",
                f"while (!({found} = __atomic_load_n(where_{found}, __ATOMIC_SEQ_CST) == {text})"
                f" && later(0) < {deadline});",
            ]
            if not timeout:
                message = f"tl.atomic_poll waited a minute for another program ({operation.location})"
                lines.append(f'if (!{found}) {{ program->services->fail(program, "{message}"); return; }}')
            return [*lines, self._result(operation, index, found)]

        self.loops(pointer.type.shape, body, vectorize=False)

    def _result(self, operation: Operation, index: tuple[Index, ...], bits: str) -> str:
        """The statement that stores one element of a result, given its bits in memory."""
        form, element = self.forms[operation.result], operation.result.type.element
        if isinstance(form, Buffer):
            place = self.linear(index, operation.result.type.shape)
            return f"{form.name}[{place}] = {to_memory(element, _from_bits(element, compute_type(element), bits))};"
        return f"{form.text} = {_from_bits(element, compute_type(element), bits)};"


def _bits_type(element: str) -> str:
    return f"uint{8 * element_bytes(element)}_t"


def _bits(element: str, bits: str, text: str) -> str:
    """C text of a value's bits in memory."""
    if element == "f32":
        return f"bits_from_float({text})"
    if element == "f64":
        return f"bits_from_double({text})"
    if element.startswith("*"):
        return f"({bits})(uintptr_t)({text})"
    return f"({bits})({to_memory(element, text)})"


def _from_bits(element: str, kind: str, text: str) -> str:
    if element == "f32":
        return f"float_from_bits({text})"
    if element == "f64":
        return f"double_from_bits({text})"
    return f"({kind}){from_memory(element, text)}"


def _atomic_update(operation: Operation, kind: str, old: str, value: str) -> str:
    """C text of the new value of an atomic read-modify-write."""
    element = operation.result.type.element
    unsigned = f"uint{8 * element_bytes(element)}_t"
    match kind:
        case "fadd":
            return rounded(element, f"({old} + {value})")
        case "add":
            return f"({compute_type(element)})(({unsigned}){old} + ({unsigned}){value})"
        case "and" | "or" | "xor":
            return f"({old} { {'and': '&', 'or': '|', 'xor': '^'}[kind] } {value})"
        case "exch":
            return value
        case "max" | "min":
            symbol = ">" if kind == "max" else "<"
            return f"({old} {symbol} {value} ? {old} : {value})"
        case "umax" | "umin":
            symbol = ">" if kind == "umax" else "<"
            return f"(({unsigned}){old} {symbol} ({unsigned}){value} ? {old} : {value})"
    raise UnsupportedOperation(operation, f"with the kind {kind!r} is not supported by the CPU engine")
