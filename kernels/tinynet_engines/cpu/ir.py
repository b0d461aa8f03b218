"""The engine's own small IR, which the parser builds and every later stage reads.

A :class:`Function` holds blocks, a :class:`Block` holds operations, an :class:`Operation` defines and uses
:class:`Value` objects. Values are objects, not names, so that equal names in sibling regions cannot be confused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod


class UnsupportedOperation(NotImplementedError):
    """An operation (or a form of it) that this engine cannot compile."""

    def __init__(self, operation: Operation | None, reason: str = "is not supported by the CPU engine"):
        name = operation.name if operation is not None else "the kernel"
        where = f" ({operation.location})" if operation is not None and operation.location else ""
        text = f"\n  {operation.text}" if operation is not None and operation.text else ""
        super().__init__(f"{name} {reason}{where}{text}")


@dataclass(frozen=True)
class Type:
    """Type of a value: a shape (empty for a scalar) and an element such as ``f32``, ``i1`` or ``*bf16``."""

    shape: tuple[int, ...]
    element: str

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def is_tensor(self) -> bool:
        return bool(self.shape)

    @property
    def is_pointer(self) -> bool:
        return self.element.startswith("*")

    @property
    def is_float(self) -> bool:
        return self.element[0] == "f" or self.element == "bf16"

    @property
    def is_integer(self) -> bool:
        return self.element[0] == "i"

    @property
    def pointee(self) -> str:
        return self.element[1:]


@dataclass(eq=False)
class Value:
    """One SSA value. ``owner`` is the operation that defines it, None for a block argument."""

    type: Type
    name: str
    owner: Operation | None = None
    users: list[Operation] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Operation:
    """One operation: ``attributes`` holds its dictionary and keyword attributes, ``head`` its text before the types."""

    name: str
    operands: list[Value]
    results: list[Value] = field(default_factory=list)
    attributes: dict[str, object] = field(default_factory=dict)
    regions: list[Block] = field(default_factory=list)
    successors: list[tuple[str, list[Value]]] = field(default_factory=list)
    block: Block | None = field(default=None, repr=False)
    position: int = 0
    head: str = ""
    text: str = ""
    location: str = ""

    @property
    def result(self) -> Value:
        return self.results[0]

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise UnsupportedOperation(self, f"has no integer attribute {name!r}")
        return value

    def walk(self) -> Iterator[Operation]:
        """This operation and everything nested in its regions."""
        yield self
        for region in self.regions:
            for operation in region.operations:
                yield from operation.walk()


@dataclass(eq=False)
class Block:
    """A list of operations with arguments; ``label`` is set in functions with branches.

    ``following``: the other blocks of a region, which the parser turns into nested branches.
    """

    arguments: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    label: str = ""
    following: list[Block] = field(default_factory=list, repr=False)

    def append(self, operation: Operation) -> None:
        operation.block = self
        operation.position = len(self.operations)
        self.operations.append(operation)

    @property
    def terminator(self) -> Operation:
        return self.operations[-1]


@dataclass(eq=False)
class Function:
    """A function: its first block's arguments are its parameters."""

    name: str
    blocks: list[Block]

    @property
    def parameters(self) -> list[Value]:
        return self.blocks[0].arguments

    def walk(self) -> Iterator[Operation]:
        for block in self.blocks:
            for operation in block.operations:
                yield from operation.walk()
