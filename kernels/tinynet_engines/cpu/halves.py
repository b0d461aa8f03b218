"""Code generation for 16-bit floats in the innermost loop of a nest: in blocks of one vector of fp32.

C compilers convert 16-bit floats with more instructions than processors need. So functions of the run-time library
(``halves.h``) convert a block, between memory and arrays that the compiler holds in registers, and the loop over its
elements computes with fp32 alone.
"""

from __future__ import annotations

from .analysis import Analysis
from .elements import HALVES, element_bytes, to_memory
from .forms import Buffer, Index, Nest, Scalar
from .ir import Value

BLOCK = 16  # elements, as in halves.h


class Halves:
    """The blocks of an innermost loop.

    ``index``: of an element, the sum of two C variables: the block's first element, and ``lane``. ``before``,
    ``after``: the lines around the loop over a block. ``conditions``: masks of whole rows; a row without them is not
    computed in blocks. ``reads``: how many values are read. ``rounds``: whether values are rounded to be stored.
    """

    def __init__(self, index: Index, lane: str):
        self.index = index
        self.lane = lane
        self.before: list[str] = []
        self.after: list[str] = []
        self.conditions: list[str] = []
        self.reads = 0
        self.rounds = False

    def read(self, array: str, element: str, address: str) -> str:
        """C text of the block's element at an address."""
        self.reads += 1
        self.before += [_declared(array), self._at_first_lane(f"load_block_{element}({array}, {address})")]
        return f"{array}[{self.lane}]"

    def write(self, array: str, element: str, address: str, rounds: bool) -> str:
        """C text of what to assign the block's element at an address to."""
        self.rounds |= rounds
        function = "round_block" if rounds else "store_block"
        self.before.append(_declared(array))
        self.after.append(self._at_first_lane(f"{function}_{element}({address}, {array})"))
        return f"{array}[{self.lane}]"

    def are_worth_it(self, nest: Nest) -> bool:
        """Whether blocks help a loop: if it computes, and without small types, by which compilers choose vectors."""
        computes = self.rounds or len(nest.levels[-1]) > self.reads
        return computes and all(element_bytes(element) >= 4 for element in nest.accessed)

    def _at_first_lane(self, call: str) -> str:
        return f"{{ int32_t const {self.lane} = 0; {call}; }}"


def _declared(array: str) -> str:
    return f"float {array}[{BLOCK}] __attribute__((aligned(64)));"


class HalvesWriter:
    """The part of the kernel writer that decides what is read and written in blocks."""

    analysis: Analysis
    forms: dict[Value, Scalar | Buffer]

    # What the kernel writer provides:
    name: ...
    element: ...

    def buffer_lies_in_block(self, buffer: Buffer, index: tuple[Index, ...], nest: Nest) -> bool:
        """Whether the elements of a buffer that the lanes of a block need are neighbors."""
        halves = nest.halves
        if halves is None or buffer.element not in HALVES:
            return False
        texts = [index[dimension].text for dimension in buffer.order or range(len(index))]
        while texts and texts[-1] == "0":
            texts.pop()
        return texts[-1:] == [halves.index.text] and not any(halves.lane in text for text in texts[:-1])

    def points_in_block(self, pointer: Value, mask: str, index: tuple[Index, ...], nest: Nest) -> bool:
        """Whether a pointer tensor points to neighbors in the lanes of a block, all of them or none behind a mask."""
        halves = nest.halves
        pointer = self.analysis.resolve(pointer)
        if halves is None or pointer.type.pointee not in HALVES or isinstance(self.forms.get(pointer), Buffer):
            return False
        moving = [dimension for dimension, each in enumerate(index) if halves.lane in each.text]
        if len(moving) != 1 or index[moving[0]] != halves.index or self.analysis.step(pointer, moving[0]) != 1:
            return False
        if mask == "1":
            return True
        if nest.level_of.get(mask, nest.innermost) == nest.innermost:
            return False
        halves.conditions.append(mask)
        return True

    def assignment(self, element: str, place: str, value: Value, index: tuple[Index, ...], nest: Nest) -> str:
        """C statement that stores an element of a value at a place in memory."""
        nest.accessed.add(element)
        return f"{place} = {to_memory(element, self.element(value, index, nest))};"

    def assignment_in_block(
        self, element: str, place: str, value: Value, index: tuple[Index, ...], halves: Halves, nest: Nest
    ) -> str:
        """The same at a place whose neighbors the other lanes of a block have."""
        value = self.analysis.resolve(value)
        source = None if value in self.forms else self._before_rounding(value)
        text = self.element(source or value, index, nest)
        return f"{halves.write(self.name('h'), element, f'&{place}', source is not None)} = {text};"

    def _before_rounding(self, value: Value) -> Value | None:
        """The fp32 tensor that is rounded to nearest to give this one; None if there is none."""
        rounding = value.owner
        if rounding is None or rounding.name not in ("arith.truncf", "tt.fp_to_fp"):
            return None
        source = rounding.operands[0]
        to_nearest = rounding.attributes.get("rounding", "rtne") == "rtne"
        is_exact = self.analysis.is_exact(source, value.type.element)
        return source if to_nearest and source.type.element == "f32" and not is_exact else None
