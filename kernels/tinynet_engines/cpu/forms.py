"""How the code generator represents values while it writes C."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Index:
    """C text of one index and the loop level it belongs to (-1: before all loops)."""

    text: str
    level: int = -1


ZERO = Index("0")


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


class Nest:
    """Statements of a loop nest by level: ``levels[0]`` is before the loops, ``levels[k + 1]`` inside loop k."""

    def __init__(self, depth: int):
        self.levels: list[list[str]] = [[] for _ in range(depth + 1)]
        self.known: dict[tuple, str] = {}


def valid_count(bounds: list[str], size: int) -> str:
    """C text of how many of ``size`` elements satisfy every bound."""
    text = str(size)
    for bound in bounds:
        text = f"clip_count({bound}, {text})"
    return f"(int32_t){text}"
