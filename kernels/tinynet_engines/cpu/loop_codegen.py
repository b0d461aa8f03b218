"""Code generation for loop nests over the elements of a tensor.

The innermost loop is cut where a mask of its loads ends, ``arange < bound``: elements before the end are loaded without
a mask, those after it are not loaded at all. With a mask, gcc 12 merges what AVX-512 loads into a register's old
content, so that each vector waits for the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .analysis import Analysis
from .elements import HALVES
from .forms import ZERO, End, Index, Nest, loop_heads, valid_count
from .halves import BLOCK, Halves
from .placement import LONG

_FEW_BLOCKS = 4  # whose values may all stay in registers
_Written = tuple[Nest, list[str]]  # of a body: the nest, and the statements of its innermost loop


class Cut(NamedTuple):
    """A condition that the first elements of a loop satisfy: its key in ``Nest.known``, and C text of their number."""

    condition: tuple
    end: str


class _Part(NamedTuple):
    """A part of an innermost loop: its nest, and its lines."""

    nest: Nest
    lines: list[str]


class LoopWriter:
    """The part of the kernel writer that writes loop nests."""

    analysis: Analysis
    lines: list

    # What the kernel writer provides:
    name: ...
    leaves: ...
    range_bound: ...

    def loops(
        self,
        shape: tuple[int, ...],
        body: Callable[[tuple[Index, ...], Nest], list[str]],
        inner: int | None = None,
        vectorize: bool = True,
        ends: dict[int, End] | None = None,
    ) -> None:
        """Loops over a shape with dimension ``inner`` innermost; ``body`` returns the innermost statements.

        ``ends``: where the loop along a dimension ends, if before the end of the shape.
        """
        order = list(range(len(shape)))
        if inner is not None:
            order.remove(inner)
            order.append(inner)
        order = [dimension for dimension in order if shape[dimension] > 1]
        sizes = [shape[dimension] for dimension in order]
        stops = [ends[dimension].text if ends and dimension in ends else str(shape[dimension]) for dimension in order]
        indices, heads = loop_heads([self.name("i") for _ in order], sizes, stops if ends else None)
        index = [ZERO] * len(shape)
        for dimension, each in zip(order, indices, strict=True):
            index[dimension] = each

        def written(known: dict[tuple, str], halves: Halves | None = None) -> _Written:
            nest, position = Nest(len(heads), halves), list(index)
            if halves is not None:
                position[order[-1]] = halves.index
            nest.below = {position[dimension].text: end.bounds for dimension, end in (ends or {}).items()}
            nest.known |= known
            return nest, body(tuple(position), nest)

        nest, statements = written({})
        if not heads:
            self.lines += ["{", *nest.levels[0], *statements, "}"]
            return
        if vectorize and len(heads) == len(sizes):
            parts = self._vectorized(nest, statements, indices[-1], sizes[-1], stops[-1], written)
        else:
            pragma = ["#pragma GCC ivdep"] if vectorize else []
            parts = [_Part(nest, [*pragma, heads[-1], *nest.levels[-1], *statements, "}"])]
        self.lines.append("{")
        for level, head in enumerate(heads):
            for part in parts:
                self.lines += part.nest.levels[level]
            self.lines += [head] if level < len(heads) - 1 else [line for part in parts for line in part.lines]
        self.lines.append("}" * len(heads))

    def _vectorized(
        self, nest: Nest, statements: list[str], along: Index, size: int, stop: str, written: Callable[..., _Written]
    ) -> list[_Part]:
        """The parts of an innermost loop that the compiler vectorizes: where a mask ends it is cut."""
        cut, end = self.cut(nest, along, size), stop
        if cut is not None:
            end = self.name("cut")
            self.lines.append(f"int32_t const {end} = least({cut.end}, {stop});")
            nest, statements = written({cut.condition: "1"})
        parts = self._blocks(along, size, end, written) if size >= BLOCK and nest.accessed & {*HALVES} else []
        parts.append(self._plain(along, "whole" if parts else "0", end, nest, statements))
        if cut is not None:
            parts.append(self._plain(along, end, stop, *written({cut.condition: "0"})))
        return parts

    def _plain(self, along: Index, begin: str, end: str, nest: Nest, statements: list[str]) -> _Part:
        counter = along.text
        head = f"for (int32_t {counter} = {begin}; {counter} < {end}; {counter}++) {{"
        return _Part(nest, ["#pragma GCC ivdep", head, *nest.levels[-1], *statements, "}"])

    def _blocks(self, along: Index, size: int, stop: str, written: Callable[..., _Written]) -> list[_Part]:
        """The loop over all whole blocks, which end at the C variable ``whole``; nothing if blocks would not help."""
        first, lane = self.name("i"), self.name("j")
        halves = Halves(Index(f"({first} + {lane})", along.level), lane)
        nest, statements = written({}, halves)
        cut = self.cut(nest, halves.index, size)
        if cut is not None:
            halves = Halves(halves.index, lane)
            nest, statements = written({cut.condition: "1"}, halves)
        if not halves.are_worth_it(nest):
            return []
        whole, conditions = f"({stop}) & ~{BLOCK - 1}", " && ".join(dict.fromkeys(halves.conditions))
        lines = [
            f"int32_t const whole = {f'{conditions} ? {whole} : 0' if conditions else whole};",
            *([f"#pragma GCC unroll {_FEW_BLOCKS}"] if size <= _FEW_BLOCKS * BLOCK else []),
            f"for (int64_t {first} = 0; {first} < whole; {first} += {BLOCK}) {{",
            *halves.before,
            "#pragma GCC ivdep",
            f"for (int32_t {lane} = 0; {lane} < {BLOCK}; {lane}++) {{",
            *nest.levels[-1],
            *statements,
            "}",
            *halves.after,
            "}",
        ]
        return [_Part(nest, lines)]

    def cut(self, nest: Nest, along: Index, size: int) -> Cut | None:
        """Where a mask of the nest's loads ends on the way along an index, if its loop is worth cutting."""
        if size < LONG:
            return None
        for mask, index in nest.masks:
            for leaf in self.leaves(mask, list(range(len(index)))):
                position = [ZERO if dimension is None else index[dimension] for dimension in leaf.dimensions]
                if all(each.text != along.text for each in position):
                    continue
                condition = (leaf.condition, *(each.text for each in position))
                bound = self.range_bound(leaf) if nest.known.get(condition) != "1" else None
                if bound is not None and index[bound[0]].text == along.text:
                    return Cut(condition, valid_count([bound[1]], size))
        return None
