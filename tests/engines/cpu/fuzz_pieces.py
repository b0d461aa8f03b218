"""More pieces of random kernels: small floats, scans, places of extrema, sorts, loops over rows, early returns.

The interpreter combines a reduction's elements from left to right, a GPU and the engine in a tree; which of equal
elements, or of NaN, comes out depends on that. :func:`reduce_in_a_tree` gives the interpreter the tree's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fuzz import Generator

FUNCTIONS = """
@triton.jit
def bend(p, x):
    if p > 1:
        return x + 1
    if p == 0:
        return x + x
    return x - 1


@triton.jit
def fork(p, n, x):
    if n > p * 60:
        y = bend(p, x)
        if p == 1:
            return y - x
        return y + 2
    return bend(p + 1, x)


@triton.jit
def later(a, b):
    return b


@triton.jit
def follow(a0, a1, b0, b1):
    return a0 * b0, a1 * b0 + b1


@triton.jit
def largest_pair(a0, a1, b0, b1):
    return tl.maximum(a0, b0), a1 + b1
"""


def small_float(generator: Generator, shape: tuple[int, ...]) -> None:
    """A computation in 16 or 8 bits, on numbers that these represent."""
    r = generator.random
    a, b = generator.pick("f", shape, True), generator.pick("f", shape, True)
    kind = r.choice(["float16", "bfloat16", "float8e5", "float8e4nv"])
    text = [f"tl.minimum(tl.maximum({v.name}, -1.0), 1.0).to(tl.{kind})" for v in (a, b)]
    if kind.startswith("float8"):
        condition = generator.pick("b", shape)
        form = r.choice([f"tl.where({condition.name}, {text[0]}, {text[1]})", text[0]])
    elif len(shape) == 2 and r.random() < 0.3:
        axis = r.randrange(2)
        rest = shape[:axis] + shape[axis + 1 :]
        generator.new(f"tl.sum({text[0]}, {axis}).to(tl.float32)", "f", rest, shape[axis] <= 16, float(shape[axis]))
        return
    else:
        form = r.choice(["{} + {}", "{} - {}", "tl.maximum({}, {})", "tl.where({0} > {1}, {0}, {1})"]).format(*text)
    generator.new(f"({form}).to(tl.float32)", "f", shape, True, 2.0)


def scan(generator: Generator, shape: tuple[int, ...]) -> None:
    """A running total in either direction, by one of the language's functions or by one of the module's."""
    r = generator.random
    axis, reverse = r.randrange(len(shape)), r.choice(["", ", reverse=True"])
    a, b = generator.pick("i", shape), generator.pick("i", shape)
    choice = r.randrange(4)
    if choice == 0:
        generator.new(f"tl.cumprod(({a.name} & 3) - 1, {axis}{reverse})", "i", shape)
    elif choice == 1:
        generator.new(f"tl.associative_scan({a.name}, {axis}, later{reverse})", "i", shape)
    elif choice == 2:
        generator.count += 1
        pair = f"t{generator.count}"
        generator.emit(f"{pair} = tl.associative_scan((({a.name} & 1), ({b.name} & 255)), {axis}, follow{reverse})")
        generator.new(f"{pair}[{r.randrange(2)}]", "i", shape)
    else:
        f = generator.pick("f", shape, True)
        if f.magnitude < 1e3:
            generator.new(f"tl.cumsum({f.name}, {axis}{reverse})", "f", shape, False, f.magnitude * shape[axis])


def extremum(generator: Generator, shape: tuple[int, ...]) -> None:
    """The place of an extremum among few different numbers and NaN, or a reduction of two values at once."""
    r = generator.random
    axis = r.randrange(len(shape))
    a = generator.pick("f", shape, True)
    rest = shape[:axis] + shape[axis + 1 :]
    values = r.choice([a.name, f"tl.floor({a.name} * 0.25)", f"tl.where({a.name} > 1.0, float('nan'), {a.name})"])
    if r.random() < 0.3:
        generator.count += 1
        pair, i = f"t{generator.count}", generator.pick("i", shape)
        generator.emit(f"{pair} = tl.reduce(({i.name}, {i.name} & 7), {axis}, largest_pair)")
        text = f"{pair}[0] + {pair}[1]"
    else:
        text = f"tl.{r.choice(['argmax', 'argmin'])}({values}, {axis})"
    if rest:
        generator.new(text, "i", rest)
    else:
        b = generator.pick("i", shape)
        generator.new(f"{b.name} + ({text})", "i", shape)


def sort(generator: Generator, shape: tuple[int, ...]) -> None:
    kind = generator.random.choice("fi")
    a = generator.pick(kind, shape, exact=True)
    descending = generator.random.choice(["", ", descending=True"])
    generator.new(f"tl.sort({a.name}{descending})", kind, shape, a.exact, a.magnitude)


def call(generator: Generator, shape: tuple[int, ...]) -> None:
    """Calls of functions with early returns, which call others; possibly in a loop."""
    r = generator.random
    kind = r.choice("fi")
    a = generator.pick(kind, shape, exact=True)
    magnitude = 4 * a.magnitude + 8
    if r.random() < 0.6:
        generator.new(f"fork({r.choice(['pid', 'n % 3', '1'])}, n, {a.name})", kind, shape, a.exact, magnitude)
        return
    generator.count += 1
    name, step = f"r{generator.count}", f"k{generator.count}"
    generator.emit(f"{name} = {a.name}")
    generator.emit(f"for {step} in range(pid, 3):")
    generator.emit(f"    {name} = fork({step}, n, {name})")
    generator.new(f"{name} + 0", kind, shape, a.exact, 64 * magnitude)


def row_loop(generator: Generator, shape: tuple[int, ...]) -> None:
    """Sums over a row of a length known at run time, in tiles that a mask cuts short."""
    r = generator.random
    if len(shape) != 1:
        return
    (size,) = shape
    generator.count += 1
    total, start, place = (f"{letter}{generator.count}" for letter in ("h", "s", "o"))
    bound, other = r.choice(["n", "n + 30", "pid * 20", "n - 200"]), r.choice(["0.0", "0.0", "-0.5"])
    generator.emit(f"{total} = tl.zeros(({size},), tl.float32)" + r.choice(["", " + 1.0"]))
    generator.emit(f"for {start} in range({r.choice(['0', 'pid * 4'])}, {bound}, {size}):")
    generator.emit(f"    {place} = {start} + tl.arange(0, {size})")
    load = f"tl.load(x_ptr + {place}, mask={place} < {bound}, other={other})"
    added = r.choice(["{0}", "{0} * {0}", f"tl.where({place} < {bound}, {{0}} + 1.0, 0.0)"]).format(load)
    generator.emit(f"    {total} += {added}")
    generator.new(f"{total} + 0.0", "f", shape, False, 1e4)


def masked_row(generator: Generator, shape: tuple[int, ...]) -> None:
    """Rows that a mask cuts short, read by a sum, an extremum and an expression, perhaps with a store in between."""
    r = generator.random
    if shape[-1] < 32:
        return
    generator.count += 1
    place, mask, row, total, most = (f"{letter}{generator.count}" for letter in ("o", "c", "w", "t", "m"))
    bound, other = r.choice(["n", "n - 9", "40", "pid * 20 + 30", "n + 100"]), r.choice(["0.0", "-1.5", "2.0"])
    column = f"tl.arange(0, {shape[-1]})" + ("[None, :]" if len(shape) == 2 else "")
    start = r.choice(["0", "7", "pid * 64"])
    if len(shape) == 2:
        rows = f"tl.arange(0, {shape[0]})[:, None]"
        generator.emit(f"{place} = {start} + {rows} * {r.choice(['stride', 'n', str(shape[1])])} + {column}")
        generator.emit(f"{mask} = " + r.choice([f"({rows} < pid + 2) & ({column} < {bound})", f"{column} < {bound}"]))
    else:
        generator.emit(f"{place} = {start} + {column}")
        generator.emit(f"{mask} = {column} < {bound}")
    pointer = r.choice(["x_ptr", "y_ptr"])
    generator.emit(f"{row} = tl.load({pointer} + {place}, mask={mask}, other={other})")
    if generator.indent == 1 and r.random() < 0.3:
        generator.store()
    axis = len(shape) - 1
    generator.emit(f"{total} = tl.sum({row}, axis={axis}, keep_dims=True)")
    if generator.indent == 1 and r.random() < 0.2:
        generator.store()
    generator.emit(f"{most} = tl.max({row}, axis={axis}, keep_dims=True)")
    text = r.choice(["{w} - {t} + {m}", "tl.where({c}, {w}, 0.25) + {t}", "{m} - {w}"])
    generator.new(text.format(w=row, t=total, m=most, c=mask), "f", shape, True, 5.0 * shape[-1])


PIECES = [(small_float, 2), (scan, 1), (extremum, 1), (sort, 1), (call, 1), (row_loop, 1), (masked_row, 2)]


def reduce_in_a_tree() -> None:
    """Make the interpreter of this process find the places of extrema as the lanes of a GPU do."""
    from triton.runtime import interpreter

    operations: Any = interpreter.ReduceOps
    stock = operations.min_max

    def min_max(self: Any, argument: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        result = stock(self, argument, val_reduce_op, idx_reduce_op)
        if idx_reduce_op is not None:
            places = result[1].handle
            data = _place(argument.handle.data, self.axis, largest=val_reduce_op is np.nanmax)
            places.data = data.reshape(places.data.shape).astype(places.data.dtype)
        return result

    operations.min_max = min_max


def _place(values: np.ndarray, axis: int, largest: bool) -> np.ndarray:
    values = np.moveaxis(values, axis, 0)
    places = np.broadcast_to(np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    while len(values) > 1:
        half = len(values) // 2
        (a, b), (i, j) = ((each[:half], each[half:]) for each in (values, places))
        first = ((a > b) if largest else (a < b)) | ((a == b) & (i < j))
        values, places = np.where(first, a, b), np.where(first, i, j)
    return places[0]
