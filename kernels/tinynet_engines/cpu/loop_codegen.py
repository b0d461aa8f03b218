"""Code generation for loop nests over the elements of a tensor.

The innermost loop is cut where a mask of its loads ends, ``arange < bound``: elements before the end are loaded without
a mask, those after it are not loaded at all. With a mask, gcc 12 merges what AVX-512 loads into a register's old
content, so that each vector waits for the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .analysis import Analysis
from .forms import ZERO, End, Index, Nest, loop_heads, valid_count
from .placement import LONG


class Cut(NamedTuple):
    """A condition that the first elements of a loop satisfy: its key in ``Nest.known``, and C text of their number."""

    condition: tuple
    end: str


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

        def written(known: dict[tuple, str]) -> tuple[Nest, list[str]]:
            nest = Nest(len(heads))
            nest.below = {index[dimension].text: end.bounds for dimension, end in (ends or {}).items()}
            nest.known |= known
            return nest, body(tuple(index), nest)

        parts = [written({})]
        cut = self.cut(parts[0][0], indices[-1], sizes[-1]) if vectorize and len(heads) == len(sizes) > 0 else None
        innermost = heads[-1:]
        if cut is not None:
            counter, cut_at = indices[-1].text, self.name("cut")
            self.lines.append(f"int32_t const {cut_at} = least({cut.end}, {stops[-1]});")
            parts = [written({cut.condition: "1"}), written({cut.condition: "0"})]
            innermost = [
                f"for (int32_t {counter} = 0; {counter} < {cut_at}; {counter}++) {{",
                f"for (int32_t {counter} = {cut_at}; {counter} < {stops[-1]}; {counter}++) {{",
            ]
        self.lines.append("{")
        for level, head in enumerate(heads[:-1]):
            for nest, _ in parts:
                self.lines += nest.levels[level]
            self.lines.append(head)
        for nest, _ in parts:
            self.lines += nest.levels[max(len(heads) - 1, 0)]
        if heads:
            for head, (nest, statements) in zip(innermost, parts, strict=True):
                if vectorize:
                    self.lines.append("#pragma GCC ivdep")
                self.lines += [head, *nest.levels[-1], *statements, "}"]
        else:
            self.lines += parts[0][1]
        self.lines.append("}" * max(len(heads), 1))

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
