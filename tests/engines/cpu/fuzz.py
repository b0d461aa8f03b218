"""Differential test: random small Triton kernels on the CPU engine against Triton's interpreter.

    python tests/engines/cpu/fuzz.py --count 2000 --seed 0

prints every seed whose kernel differs, with its source. A kernel is a function of its seed: expressions on floats,
integers and booleans, casts, masks, views, reductions, scans, loops with carried tensors, branches, dot products, and
arguments that overlap in memory. The repaired interpreter is the oracle and runs in a separate process.

Comparisons and casts to integers only see floats that every engine computes exactly (small multiples of 1/4), so that
a difference of one rounding cannot grow into a different branch.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_pieces
import torch

SIZE = 1 << 15  # elements of every buffer: more than any offset reaches
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Variable:
    """A tensor in the generated source. kind: f, i, b (float, integer, boolean); magnitude bounds an exact float."""

    name: str
    kind: str
    shape: tuple[int, ...]
    exact: bool = True
    magnitude: float = 4.0


class Generator:
    """Writes one kernel."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.seed = seed
        self.lines: list[str] = []
        self.indent = 1
        self.count = 0
        self.variables: list[Variable] = []
        self.stores = 0

    # ------------------------------------------------------------------------------------------------- helpers

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.indent + line)

    def new(self, text: str, kind: str, shape: tuple[int, ...], exact: bool = True, magnitude: float = 4.0) -> Variable:
        self.count += 1
        variable = Variable(f"v{self.count}", kind, shape, exact, magnitude)
        self.emit(f"{variable.name} = {text}")
        self.variables.append(variable)
        return variable

    def pick(self, kind: str, shape: tuple[int, ...], exact: bool = False) -> Variable:
        fits = [v for v in self.variables if v.kind == kind and v.shape == shape and (v.exact or not exact)]
        if kind == "f" and exact:
            fits = [v for v in fits if v.magnitude < 1e5]
        if fits and self.random.random() < 0.9:
            return self.random.choice(fits)
        return self.load(kind, shape) if kind != "b" else self.compare(shape)

    def any_shape(self) -> tuple[int, ...]:
        return self.random.choice([v.shape for v in self.variables if v.shape] or [self.shape])

    def offsets(self, shape: tuple[int, ...]) -> str:
        """An offset tensor of a shape, in bounds of a buffer for every program."""
        r = self.random
        start = r.choice(["0", "pid * 64", "7", "pid * 16 + 3"])
        if len(shape) == 1:
            form = r.choice(["{a}", "{a}", "{a} * 2", "({n} - 1 - {a})", "({a} * 5) % {n}", "{a} // 2", "({a} ^ 1)"])
            return f"{start} + " + form.format(a=f"tl.arange(0, {shape[0]})", n=shape[0])
        rows, columns = f"tl.arange(0, {shape[0]})[:, None]", f"tl.arange(0, {shape[1]})[None, :]"
        form = r.choice(
            [
                "{r} * {C} + {c}",
                "{r} * {C} + {c}",
                "{r} + {c} * {R}",
                "{r} * stride + {c}",
                "({r} % 3) * {C} + {c}",
                "{r} * 0 + {c}",
                "{r} * {C} + {c} // 2",
            ]
        )
        return f"{start} + " + form.format(r=rows, c=columns, R=shape[0], C=shape[1])

    # ------------------------------------------------------------------------------------------------- pieces

    def load(self, kind: str, shape: tuple[int, ...]) -> Variable:
        pointer = self.random.choice(["x_ptr", "y_ptr"] if kind == "f" else ["i_ptr", "j_ptr"])
        self.count += 1
        offsets = f"o{self.count}"
        self.emit(f"{offsets} = {self.offsets(shape)}")
        if self.random.random() < 0.4:
            bound = self.random.choice(["n", "n - 9", "40", "pid * 20 + 30"])
            other = self.random.choice(["0", "1"]) if kind == "i" else self.random.choice(["0.0", "-1.5"])
            return self.new(f"tl.load({pointer} + {offsets}, mask={offsets} < {bound}, other={other})", kind, shape)
        return self.new(f"tl.load({pointer} + {offsets})", kind, shape)

    def compare(self, shape: tuple[int, ...]) -> Variable:
        kind = self.random.choice("fi")
        a, b = self.pick(kind, shape, exact=True), self.pick(kind, shape, exact=True)
        return self.new(f"{a.name} {self.random.choice(['<', '<=', '>', '>=', '==', '!='])} {b.name}", "b", shape)

    def float_operation(self, shape: tuple[int, ...]) -> None:
        r = self.random
        a = self.pick("f", shape)
        match r.randrange(11):
            case 0 | 1:
                b = self.pick("f", shape)
                self.new(
                    f"{a.name} {r.choice('+-')} {b.name}", "f", shape, a.exact and b.exact, a.magnitude + b.magnitude
                )
            case 2:
                a, b = self.pick("f", shape, True), self.pick("f", shape, True)
                if a.magnitude * b.magnitude < 1e5:
                    exact = a.magnitude * b.magnitude < 64
                    self.new(f"{a.name} * {b.name}", "f", shape, exact, a.magnitude * b.magnitude)
            case 3:
                b = self.pick("f", shape)
                name = r.choice(["maximum", "minimum"])
                magnitude = max(a.magnitude, b.magnitude)
                self.new(f"tl.{name}({a.name}, {b.name})", "f", shape, a.exact and b.exact, magnitude)
            case 4:
                self.new(f"tl.abs({a.name})", "f", shape, a.exact, a.magnitude)
            case 5:
                condition, b = self.pick("b", shape), self.pick("f", shape)
                magnitude = max(a.magnitude, b.magnitude)
                text = f"tl.where({condition.name}, {a.name}, {b.name})"
                self.new(text, "f", shape, a.exact and b.exact, magnitude)
            case 6:
                b = self.pick("f", shape)
                self.new(f"{a.name} / (tl.abs({b.name}) + 1.0)", "f", shape, False, a.magnitude)
            case 7:
                text = r.choice(["tl.exp(-tl.abs({}))", "tl.sqrt(tl.abs({}))", "tl.log(tl.abs({}) + 1.0)"])
                self.new(text.format(a.name), "f", shape, False, a.magnitude + 1)
            case 8:
                text = r.choice(["tl.sigmoid({})", "tl.sin({})", "tl.exp2(-tl.abs({}))", "tl.floor({})"])
                a = self.pick("f", shape, True)
                exact = "floor" in text
                self.new(text.format(a.name), "f", shape, exact, a.magnitude + 1)
            case 9:
                a = self.pick("f", shape, True)
                if a.magnitude < 500:
                    self.new(f"({a.name}.to(tl.float16) + 0.25).to(tl.float32)", "f", shape, True, a.magnitude + 1)
            case _:
                i = self.pick("i", shape)
                self.new(f"({i.name} & 15).to(tl.float32)", "f", shape, True, 16)

    def integer_operation(self, shape: tuple[int, ...]) -> None:
        r = self.random
        a, b = self.pick("i", shape), self.pick("i", shape)
        match r.randrange(11):
            case 0 | 1:
                self.new(f"{a.name} {r.choice('+-*')} {b.name}", "i", shape)
            case 2:
                self.new(f"{a.name} {r.choice('&|^')} {b.name}", "i", shape)
            case 3:
                self.new(f"{a.name} {r.choice(['<<', '>>'])} ({b.name} & 31)", "i", shape)
            case 4:
                self.new(f"{a.name} {r.choice(['//', '%'])} ({b.name} | 1)", "i", shape)
            case 5:
                self.new(f"{a.name} {r.choice(['//', '%'])} {r.choice([3, 7, 16, -5])}", "i", shape)
            case 6:
                condition = self.pick("b", shape)
                self.new(f"tl.where({condition.name}, {a.name}, {b.name})", "i", shape)
            case 7:
                kind = r.choice(["int8", "int16", "int64", "uint8", "uint16"])
                self.new(f"{a.name}.to(tl.{kind}).to(tl.int32)", "i", shape)
            case 8:
                self.new(f"(({a.name}.to(tl.uint32, bitcast=True)) >> 3).to(tl.int32)", "i", shape)
            case 9:
                f = self.pick("f", shape, True)
                self.new(f"({f.name} * 4.0).to(tl.int32)", "i", shape)
            case _:
                self.new(f"tl.{r.choice(['maximum', 'minimum'])}({a.name}, {b.name})", "i", shape)

    def boolean_operation(self, shape: tuple[int, ...]) -> None:
        a, b = self.pick("b", shape), self.pick("b", shape)
        self.new(self.random.choice([f"{a.name} & {b.name}", f"{a.name} | {b.name}", f"~{a.name}"]), "b", shape)

    def view(self, shape: tuple[int, ...]) -> None:
        kind = self.random.choice("fi")
        a = self.pick(kind, shape)
        keep = (a.exact, a.magnitude)
        if len(shape) == 1:
            size = shape[0]
            choice = self.random.randrange(5)
            if choice == 0:
                self.new(f"tl.reshape({a.name}, ({size // 4}, 4))", kind, (size // 4, 4), *keep)
            elif choice == 1:
                self.new(f"{a.name}[:, None] + tl.zeros(({size}, 4), {a.name}.dtype)", kind, (size, 4), *keep)
            elif choice == 2:
                b = self.pick(kind, shape)
                joined = f"tl.join({a.name}, {b.name})"
                exact = (a.exact and b.exact, max(a.magnitude, b.magnitude))
                self.new(f"tl.reshape(tl.trans({joined}), ({2 * size},))", kind, (2 * size,), *exact)
            elif choice == 3:
                i = self.pick("i", shape)
                self.new(f"tl.gather({a.name}, {i.name} & {size - 1}, 0)", kind, shape, *keep)
            else:
                self.count += 1
                left, right = f"v{self.count}", f"w{self.count}"
                self.emit(f"{left}, {right} = tl.split(tl.reshape({a.name}, ({size // 2}, 2)))")
                self.variables += [Variable(name, kind, (size // 2,), *keep) for name in (left, right)]
        elif self.random.random() < 0.5:
            self.new(f"tl.trans({a.name})", kind, shape[::-1], *keep)
        else:
            self.new(f"tl.reshape({a.name}, ({shape[0] * shape[1]},))", kind, (shape[0] * shape[1],), *keep)

    def reduction(self, shape: tuple[int, ...]) -> None:
        r = self.random
        kind = r.choice("fi")
        a = self.pick(kind, shape, exact=r.random() < 0.5)
        axis = r.randrange(len(shape))
        rest = shape[:axis] + shape[axis + 1 :]
        name = r.choice(["sum", "max", "min", "xor_sum"] if kind == "i" else ["sum", "max", "min", "argmax"])
        magnitude = a.magnitude * (shape[axis] if name == "sum" else 1)
        if name == "argmax":
            a = self.pick("f", shape, True)
            self._reduced(f"tl.argmax({a.name}, {axis})", "i", rest, shape, axis, True, 1)
        elif r.random() < 0.25 and kind == "i":
            self.new(f"tl.cumsum({a.name}, {axis}{', reverse=True' if r.random() < 0.5 else ''})", "i", shape)
        elif r.random() < 0.15:
            self.new(f"tl.cumsum({a.name}, {axis})", kind, shape, False, a.magnitude * shape[axis])
        elif r.random() < 0.1 and len(shape) == 1 and a.exact:
            self.new(f"tl.sort({a.name})", kind, shape, a.exact, a.magnitude)
        else:
            self._reduced(f"tl.{name}({a.name}, {axis})", kind, rest, shape, axis, a.exact, magnitude)

    def _reduced(
        self,
        text: str,
        kind: str,
        rest: tuple[int, ...],
        shape: tuple[int, ...],
        axis: int,
        exact: bool,
        magnitude: float,
    ) -> None:
        """Use a reduction's result as a tensor again: a scalar by broadcasting, a row or column too."""
        exact = exact and magnitude < 1e4
        if rest:
            result = self.new(text, kind, rest, exact, magnitude)
            place = "[None, :]" if axis == 0 else "[:, None]"
            if self.random.random() < 0.6:
                b = self.pick(kind, shape)
                magnitude += b.magnitude
                self.new(f"{b.name} + {result.name}{place}", kind, shape, exact and b.exact, magnitude)
        else:
            b = self.pick(kind, shape)
            self.new(f"{b.name} - {text}", kind, shape, exact and b.exact, magnitude + b.magnitude)

    def dot(self) -> None:
        side = self.random.choice([16, 32])
        shape = (side, side)
        a, b = self.pick("f", shape, True), self.pick("f", shape, True)
        if a.magnitude * b.magnitude > 1e3:
            return
        text = f"tl.dot({a.name}, {self.random.choice(['tl.trans({})', '{}']).format(b.name)}, input_precision='ieee')"
        self.new(text, "f", shape, False, a.magnitude * b.magnitude * side)

    def loop(self) -> None:
        """A loop that carries tensors (two of which may swap), a pointer and a counter."""
        r = self.random
        shape = self.any_shape()
        kind = r.choice("fi")
        a, b = self.pick(kind, shape), self.pick(kind, shape)
        self.count += 1
        p, q, offsets, k = (f"{letter}{self.count}" for letter in "pqsk")
        pointer = "x_ptr" if kind == "f" else "i_ptr"
        self.emit(f"{p} = {a.name}")
        self.emit(f"{q} = {b.name}")
        self.emit(f"{offsets} = {pointer} + {self.offsets(shape)}")
        count = r.choice(["3", "2", "pid + 1", "0", "n % 5"])
        if r.random() < 0.25:
            self.emit(f"{k} = 0")
            self.emit(f"while {k} < {count}:")
            step = f"{k} += 1"
        else:
            self.emit(f"for {k} in range({r.choice(['0, ', '1, '])}{count}):")
            step = "pass"
        outside = list(self.variables)
        self.indent += 1
        self.emit(f"g{self.count} = tl.load({offsets})")
        body = r.randrange(5)
        if body == 0:
            self.emit(f"{p}, {q} = {q}, {p}")
        elif body == 1:
            self.emit(f"{p} = {p} + g{self.count}")
            self.emit(f"{q} = tl.maximum({q}, {p})")
        elif body == 2:
            self.emit(f"{p} = {p} - {q}" if kind == "i" else f"{p} = tl.minimum({p}, {q})")
            self.emit(f"{q} = g{self.count} + {k}")
        elif body == 3 and len(shape) == 2 and shape[0] == shape[1]:
            self.emit(f"{p} = tl.trans({p})")
            self.emit(f"{q} = {q} + {p}")
        else:
            self.emit(f"if {k} % 2 == 0:")
            self.emit(
                f"    {p} = tl.where({p} > {q}, {q}, g{self.count})" if kind == "i" else f"    {p} = g{self.count}"
            )
            self.emit(f"{q} = {q} + {p}")
        self.emit(f"{offsets} += {r.choice(['1', '3', 'pid'])}")
        self.emit(step)
        self.indent -= 1
        self.variables = outside
        for name in (p, q):
            self.variables.append(Variable(name, kind, shape, kind != "f", 1e6))

    def branch(self) -> None:
        shape = self.any_shape()
        kind = self.random.choice("fi")
        a = self.pick(kind, shape)
        self.count += 1
        name = f"c{self.count}"
        self.emit(f"{name} = {a.name}")
        self.emit(f"if {self.random.choice(['pid == 1', 'n > 50', 'pid < 1'])}:")
        outside = list(self.variables)
        self.indent += 1
        if kind == "f":
            self.float_operation(shape)
        else:
            self.integer_operation(shape)
        last = self.pick(kind, shape)
        self.emit(f"{name} = {last.name} + {a.name}")
        self.indent -= 1
        self.variables = outside
        exact = a.exact and last.exact
        self.variables.append(Variable(name, kind, shape, exact, a.magnitude + last.magnitude))

    def store(self) -> None:
        """A store to its program's own part of an output, or of an input (whose loads must then see it)."""
        candidates = [v for v in self.variables if v.kind in "fi" and v.shape and (v.exact or v.kind == "f")]
        if not candidates:
            return
        value = self.random.choice(candidates[-8:])
        rank = len(value.shape)
        lane = f"tl.arange(0, {value.shape[0]})"
        if rank == 2:
            lane = f"{lane}[:, None] * {value.shape[1]} + tl.arange(0, {value.shape[1]})[None, :]"
            if self.random.random() < 0.3:
                rows, columns = value.shape
                lane = f"tl.arange(0, {rows})[:, None] + tl.arange(0, {columns})[None, :] * {rows}"
        size = value.shape[0] * (value.shape[1] if rank == 2 else 1)
        base = "u_ptr" if value.kind == "f" else "k_ptr"
        start = self.stores * 1024
        if self.programs == 1 and value.kind == "f" and value.exact and self.random.random() < 0.3:
            base, start = self.random.choice(["x_ptr", "y_ptr"]), self.random.choice([0, 1, 5])
        else:
            self.stores += 1
        if size * self.programs > 1024 or self.stores > 3:
            return
        mask = f", mask={lane} < n" if self.random.random() < 0.4 else ""
        self.emit(f"tl.store({base} + {start} + pid * {size} + {lane}, {value.name}{mask})")

    # -------------------------------------------------------------------------------------------------- whole

    def source(self) -> str:
        r = self.random
        self.programs = r.choice([1, 1, 2, 3])
        self.shape = r.choice([(16,), (32,), (64,), (128,), (4, 8), (16, 16), (8, 16), (32, 32), (2, 64)])
        self.emit("pid = tl.program_id(0)")
        self.load("f", self.shape)
        self.load("i", self.shape)
        pieces: list[tuple[Callable[[tuple[int, ...]], None], int]] = [
            (self.float_operation, 6),
            (self.integer_operation, 6),
            (self.boolean_operation, 2),
            (self.view, 2),
            (self.reduction, 3),
            *((functools.partial(piece, self), weight) for piece, weight in fuzz_pieces.PIECES),
        ]
        for _ in range(r.randrange(4, 14)):
            choice = r.random()
            if choice < 0.08:
                self.loop()
            elif choice < 0.14:
                self.branch()
            elif choice < 0.18:
                self.dot()
            elif choice < 0.32:
                self.store()
            else:
                (piece,) = r.choices([p for p, _ in pieces], [w for _, w in pieces])
                shape = self.any_shape()
                if max(shape) <= 256:
                    piece(shape)
        while self.stores < 2 and any(v.kind in "fi" for v in self.variables):
            before = self.stores
            self.store()
            if self.stores == before and r.random() < 0.5:
                break
        constant = r.choice(["", ": tl.const"])
        arguments = f"x_ptr, y_ptr, u_ptr, i_ptr{constant}, j_ptr{constant}, k_ptr, n, stride"
        return f"@triton.jit\ndef kernel_{self.seed}({arguments}):\n" + "\n".join(self.lines) + "\n"

    @property
    def shift(self) -> int:
        """Elements between the starts of x and y when they are views of one buffer; 0: separate buffers."""
        return random.Random(self.seed + 1).choice([0, 0, 1, 3, 64])


def write_module(seeds: list[int], path: Path) -> None:
    sources = [
        "import triton\nimport triton.language as tl\n",
        fuzz_pieces.FUNCTIONS,
        *(Generator(seed).source() for seed in seeds),
    ]
    path.write_text("\n\n".join(sources))


def inputs(seed: int) -> list[torch.Tensor]:
    """x, y, u, i, j, k. Floats are multiples of 1/4 in [-4, 4]; x and y may overlap."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randint(-16, 17, (2 * SIZE,), generator=generator) / 4
    shift = Generator(seed).shift
    x, y = memory[:SIZE], memory[shift : shift + SIZE] if shift else memory[SIZE:]
    i = torch.randint(-(2**31), 2**31 - 1, (SIZE,), generator=generator).to(torch.int32)
    j = torch.randint(-50, 50, (SIZE,), generator=generator).to(torch.int32)
    return [x, y, torch.zeros(SIZE), i, j, torch.zeros(SIZE, dtype=torch.int32)]


def run(module: Path, seeds: list[int], compiled: bool) -> dict[int, list[torch.Tensor] | str]:
    """Buffers after each kernel, or the error it raised."""
    specification = importlib.util.spec_from_file_location(module.stem, module)
    assert specification is not None and specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(loaded)
    results: dict[int, list[torch.Tensor] | str] = {}
    for seed in seeds:
        generator = Generator(seed)
        generator.source()
        buffers = inputs(seed)
        options = {"enable_fp_fusion": False} if compiled else {}
        try:
            getattr(loaded, f"kernel_{seed}")[(generator.programs,)](*buffers, 100, 72, **options)
            results[seed] = [buffer.clone() for buffer in buffers]
        except Exception as error:
            results[seed] = f"{type(error).__name__}: {error}"
    return results


def interpret(module: Path, seeds: list[int], directory: Path) -> dict[int, list[torch.Tensor] | str]:
    """The same in a separate process under ``TRITON_INTERPRET=1``."""
    answer = directory / f"{module.stem}.pt"
    command = [sys.executable, __file__, "--interpret", str(module), str(answer), *map(str, seeds)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        raise RuntimeError(process.stderr)
    return torch.load(answer)


def difference(left: list[torch.Tensor] | str, right: list[torch.Tensor] | str) -> str | None:
    """How two runs of a kernel differ; None if they agree, or if the interpreter failed."""
    if isinstance(right, str):
        return None
    if isinstance(left, str):
        return f"the engine raised {left}"
    for name, a, b in zip("xyuijk", left, right, strict=True):
        if a.dtype == torch.int32:
            wrong = a != b
        else:
            scale = b.abs().clamp(min=1.0)
            wrong = ~(((a - b).abs() <= 2e-4 * scale) | (a == b) | (a.isnan() & b.isnan()))
        if wrong.any():
            at = int(wrong.nonzero()[0])
            return f"{name}[{at}]: engine {a[at].item()}, interpreter {b[at].item()} ({int(wrong.sum())} differ)"
    return None


def check(seeds: list[int], directory: Path) -> dict[int, str]:
    """Differences by seed."""
    module = directory / f"kernels_{seeds[0]}.py"
    write_module(seeds, module)
    ours = run(module, seeds, compiled=True)
    reference = interpret(module, seeds, directory)
    raised = sum(isinstance(reference[seed], str) for seed in seeds)
    if raised > len(seeds) // 3:
        examples = [reference[seed] for seed in seeds if isinstance(reference[seed], str)]
        raise RuntimeError(f"{raised} of {len(seeds)} kernels are not valid Triton, e.g. {examples[0]}")
    found = {seed: difference(ours[seed], reference[seed]) for seed in seeds}
    return {seed: text for seed, text in found.items() if text is not None}


def main() -> int:
    parser = argparse.ArgumentParser(description="Differential test of the CPU engine")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--show", action="store_true", help="print the source of every kernel that differs")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    from tinynet_engines import cpu

    cpu.activate()
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        for first in range(arguments.seed, arguments.seed + arguments.count, arguments.batch):
            seeds = list(range(first, min(first + arguments.batch, arguments.seed + arguments.count)))
            found = check(seeds, Path(directory))
            for seed, text in found.items():
                print(f"seed {seed}: {text}")
                if arguments.show:
                    print(Generator(seed).source())
            failures += len(found)
            print(f"seeds {seeds[0]} to {seeds[-1]}: {len(found)} differ", flush=True)
    print(f"{arguments.count} kernels, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--interpret"]:
        from tinynet_engines.interpreter import install

        install()
        fuzz_pieces.reduce_in_a_tree()
        torch.save(run(Path(sys.argv[2]), list(map(int, sys.argv[4:])), compiled=False), sys.argv[3])
    else:
        raise SystemExit(main())
