"""How the code generator represents values while it writes C."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from .analysis import Expression
from .ir import Value

if TYPE_CHECKING:
    from .halves import Halves


@dataclass(frozen=True)
class Index:
    """C text of one index and the loop level it belongs to (-1: before all loops)."""

    text: str
    level: int = -1


ZERO = Index("0")
_MOST_LOOPS = 4  # of one nest


@dataclass(frozen=True)
class Scalar:
    """A value held in a C variable or literal."""

    text: str


@dataclass(frozen=True)
class Buffer:
    """A tensor in the arena. ``element``: its type in memory; ``depth``: the loops around its definition.

    ``carried``: the buffer holds a loop-carried tensor and changes from one iteration to the next. ``order``: its
    dimensions from the outermost to the innermost in memory; () for row-major.
    """

    name: str
    element: str
    depth: int
    carried: bool = False
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class End:
    """C text of where a loop ends, and bounds (expressions of the analysis) that all its indices are below."""

    text: str
    bounds: tuple[Expression, ...] = ()


class Nest:
    """Statements of a loop nest by level: ``levels[0]`` is before the loops, ``levels[k + 1]`` inside loop k.

    ``known``: C text of elements that were computed; ``level_of``: the level of C texts; ``below``: by C text of an
    index, the bounds that it stays below; ``masks``: of the loads, each with the index that it is evaluated at;
    ``accessed``: types of the elements that the innermost loop itself reads and writes; ``halves``: its blocks, if any.
    """

    def __init__(self, depth: int, halves: Halves | None = None):
        self.halves = halves
        self.accessed: set[str] = set()
        self.levels: list[list[str]] = [[] for _ in range(depth + 1)]
        self.known: dict[tuple, str] = {}
        self.level_of: dict[str, int] = {}
        self.below: dict[str, tuple[Expression, ...]] = {}
        self.masks: list[tuple[Value, tuple[Index, ...]]] = []

    @property
    def innermost(self) -> int:
        """The level of the innermost loop."""
        return len(self.levels) - 2


def loop_heads(names: list[str], shape: list[int], ends: list[str] | None = None) -> tuple[list[Index], list[str]]:
    """The indices of nested loops over a shape and the C text that begins each loop, one level for each dimension.

    More than `_MOST_LOOPS` are one loop over all elements, in which the indices are its counter's digits: C compilers
    unroll every one of many short loops, as of a sort's tiles of shape [2, 2, ..., 2].

    Args:
        names: of the variables.
        shape: sizes, powers of two.
        ends: C text of where the loops end, if not all at their sizes.
    """
    if ends is None and len(shape) > _MOST_LOOPS:
        below, counter, indices = prod(shape), names[0], []
        for size in shape:
            below //= size
            indices.append(Index(f"(({counter} >> {below.bit_length() - 1}) & {size - 1})", 0))
        return indices, [f"for (int32_t {counter} = 0; {counter} < {prod(shape)}; {counter}++) {{"]
    heads = [
        f"for (int32_t {name} = 0; {name} < {end}; {name}++) {{" for name, end in zip(names, ends or shape, strict=True)
    ]
    return [Index(name, level) for level, name in enumerate(names)], heads


def valid_count(bounds: list[str], size: int) -> str:
    """C text of how many of ``size`` elements satisfy every bound."""
    text = str(size)
    for bound in bounds:
        text = f"clip_count({bound}, {text})"
    return f"(int32_t){text}"
